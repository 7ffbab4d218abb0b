// A catalog's file may be damaged in any way. Whatever it holds: reading gives rows that can be used or an error, and a
// rebuild gives a catalog that works, unless the file is of a newer version or somebody else's.
#include <fcntl.h>
#include <stdlib.h>

#include <cstdint>
#include <string>

#include "base/check.h"
#include "base/file.h"
#include "store/catalog/catalog.h"
#include "store/repository_state.h"

namespace {

using namespace still;
using namespace still::store;

void ReadEverything(Catalog& catalog) {
  catalog.ForEachPack(true, [](const CatalogPack& pack) { (void)HooksOf(pack), (void)NameOf(pack); }).IgnoreError();
  auto places = catalog.FindNode(std::string(32, 'n'));
  if (places.ok()) {
    for (const NodePlace& place : *places) (void)PackName::FromBytes(place.pack);
  }
  auto snapshots = catalog.ListSnapshots();
  if (snapshots.ok()) {
    for (const CatalogSnapshot& row : *snapshots) ParseManifest(row.manifest, row.id).status().IgnoreError();
  }
  catalog.ListSessions().status().IgnoreError();
  catalog.FindBase("session-1", "vda").status().IgnoreError();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string directory = "/dev/shm/still-catalog-fuzz-XXXXXX";
  STILL_CHECK(::mkdtemp(directory.data()) != nullptr);
  const CatalogOptions options = {.path = JoinPath(directory, "catalog.db")};
  {
    auto file = OpenFile(options.path, O_WRONLY | O_CREAT | O_EXCL);
    STILL_CHECK(file.ok() && PWriteAll(file->get(), data, size, 0, "catalog").ok());
  }
  if (auto catalog = Catalog::Open(options); catalog.ok()) ReadEverything(**catalog);
  const CatalogPack pack = {.name = std::string(16, 'p'), .kind = 2};
  auto rebuilt = Catalog::Rebuild(options, [&](CatalogTransaction& change) { return change.PutPack(pack, {}); });
  if (rebuilt.ok()) {
    auto found = (*rebuilt)->FindPack(pack.name);
    STILL_CHECK(found.ok() && found->has_value());
  }
  rebuilt = absl::UnknownError("closed");
  STILL_CHECK(RemoveTree(directory).ok());
  return 0;
}
