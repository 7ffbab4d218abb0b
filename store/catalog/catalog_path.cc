// Where the catalog of a repository lies.
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/home_directory.h"
#include "store/catalog/catalog.h"

namespace still::store {
namespace {

constexpr char kRootsCache[] = "/var/cache/stillpoint";

std::string Environment(const char* name) {
  const char* value = ::getenv(name);
  return value == nullptr ? "" : value;
}

std::string UsersCache() {
  if (std::string xdg = Environment("XDG_CACHE_HOME"); !xdg.empty()) return JoinPath(xdg, "stillpoint");
  const std::string home = HomeDirectory();
  return home.empty() ? "" : JoinPath(home, ".cache/stillpoint");
}

std::string CacheDirectory() {
  if (std::string own = Environment("STILL_CACHE_DIR"); !own.empty()) return own;
  return ::geteuid() == 0 ? kRootsCache : UsersCache();
}

std::string InCache(const std::string& cache, absl::string_view repository_id) {
  return JoinPath(cache, absl::StrCat(repository_id, ".db"));
}

}  // namespace

absl::StatusOr<std::string> CatalogPath(absl::string_view repository_path, absl::string_view repository_id,
                                        bool encrypted) {
  if (!encrypted) return JoinPath(repository_path, "catalog.db");
  const std::string cache = CacheDirectory();
  if (cache.empty()) {
    return absl::FailedPreconditionError(
        "catalog: this user has no home directory; set STILL_CACHE_DIR to a private directory");
  }
  STILL_RETURN_IF_ERROR(Annotate(MakeDirectories(cache), "catalog"));
  return InCache(cache, repository_id);
}

std::vector<std::string> KnownCatalogs(absl::string_view repository_path, absl::string_view repository_id,
                                       bool encrypted) {
  std::vector<std::string> places;
  if (!encrypted) {
    places = {JoinPath(repository_path, "catalog.db")};
  } else {
    for (const std::string& cache : {CacheDirectory(), UsersCache()}) {
      if (!cache.empty()) places.push_back(InCache(cache, repository_id));
    }
  }
  std::sort(places.begin(), places.end());
  places.erase(std::unique(places.begin(), places.end()), places.end());
  places.erase(std::remove_if(places.begin(), places.end(), [](const std::string& path) { return !PathExists(path); }),
               places.end());
  return places;
}

}  // namespace still::store
