// nbdkit-still-plugin: serves the images of a repository's snapshots, read-only (nbdkit-plugin(3)).
//
//   nbdkit -f -U /tmp/nbd.sock nbdkit-still-plugin.so repository=/srv/vm.still snapshot=web@latest
//
// The repository is opened after nbdkit has gone into the background: its threads and its lease belong to the process
// that serves. A read that fails gives EIO to its client and one line on stderr that names snapshot, image and range;
// the next read tries again.
#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tools/nbdkit-still/plugin_config.h"
#include "tools/nbdkit-still/served_images.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

namespace {

using still::served::PluginConfig;
using still::served::ServedExport;
using still::served::ServedImage;
using still::served::ServedImages;

constexpr uint32_t kPreferredBlock = 4096;        // The unit of deduplication.
constexpr uint32_t kMaxRequest = 32 << 20;        // What every NBD client keeps to anyway.
constexpr uint64_t kMaxExtentsSpan = 1ull << 30;  // Of one answer; a client asks again for what lies behind.
constexpr size_t kPrefetchPiece = 256 << 10;      // A group of blocks.

// Set up by nbdkit's one thread before it serves, taken down after.
PluginConfig* config = nullptr;
ServedImages* images = nullptr;

int ErrnoOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return ENOENT;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return EINVAL;
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
      return EACCES;
    default:
      return EIO;
  }
}

int Fail(const absl::Status& status, int error_number) {
  nbdkit_error("%s", std::string(status.message()).c_str());
  nbdkit_set_error(error_number);
  return -1;
}

// session/disk_server.h looks for these words.
int CannotRead(const absl::Status& status) {
  nbdkit_error("cannot read %s", std::string(status.message()).c_str());
  nbdkit_set_error(EIO);
  return -1;
}

void Load() { config = new PluginConfig; }

void Unload() {
  delete images;
  delete config;
}

int Config(const char* key, const char* value) {
  absl::Status status = config->Set(key, value);
  return status.ok() ? 0 : Fail(status, ErrnoOf(status));
}

int ConfigComplete() {
  absl::Status status = config->Check();
  return status.ok() ? 0 : Fail(status, ErrnoOf(status));
}

int AfterFork() {
  absl::StatusOr<ServedImages::Options> options = config->Read();
  if (!options.ok()) return Fail(options.status(), ErrnoOf(options.status()));
  auto opened = ServedImages::Open(*options);
  if (!opened.ok()) return Fail(opened.status(), ErrnoOf(opened.status()));
  images = opened->release();
  return 0;
}

int ListExports(int /*readonly*/, int /*is_tls*/, nbdkit_exports* exports) {
  absl::StatusOr<std::vector<ServedExport>> list = images->List();
  if (!list.ok()) return Fail(list.status(), EIO);
  for (const ServedExport& entry : *list) {
    if (nbdkit_add_export(exports, entry.name.c_str(), entry.description.c_str()) != 0) return -1;
  }
  return 0;
}

const char* DefaultExport(int /*readonly*/, int /*is_tls*/) {
  absl::StatusOr<std::string> name = images->DefaultExport();
  return name.ok() ? nbdkit_strdup_intern(name->c_str()) : nullptr;
}

void* Open(int /*readonly*/) {
  std::string name = nbdkit_export_name();
  if (name.empty()) {
    absl::StatusOr<std::string> chosen = images->DefaultExport();
    if (!chosen.ok()) {
      Fail(chosen.status(), ENOENT);
      return nullptr;
    }
    name = *std::move(chosen);
  }
  absl::StatusOr<ServedImage> image = images->Find(name);
  if (!image.ok()) {
    Fail(image.status(), ErrnoOf(image.status()));
    return nullptr;
  }
  return new ServedImage(*std::move(image));
}

void Close(void* handle) { delete static_cast<ServedImage*>(handle); }

still::store::ImageReader& ImageOf(void* handle) { return *static_cast<ServedImage*>(handle)->reader; }

int64_t GetSize(void* handle) { return static_cast<int64_t>(ImageOf(handle).size()); }

const char* ExportDescription(void* handle) { return static_cast<ServedImage*>(handle)->description.c_str(); }

int BlockSize(void* /*handle*/, uint32_t* minimum, uint32_t* preferred, uint32_t* maximum) {
  *minimum = 1;
  *preferred = kPreferredBlock;
  *maximum = kMaxRequest;
  return 0;
}

// Nothing ever changes, so it does not matter over which connection it is read.
int CanMultiConn(void* /*handle*/) { return 1; }
int CanCache(void* /*handle*/) { return NBDKIT_CACHE_NATIVE; }
int CanExtents(void* /*handle*/) { return 1; }

int PRead(void* handle, void* buffer, uint32_t count, uint64_t offset, uint32_t /*flags*/) {
  absl::Status status = ImageOf(handle).Read(offset, absl::MakeSpan(static_cast<char*>(buffer), count));
  return status.ok() ? 0 : CannotRead(status);
}

// Brings the range into the reader's cache. An error is left to the read that meets it.
int Cache(void* handle, uint32_t count, uint64_t offset, uint32_t /*flags*/) {
  std::vector<char> piece(kPrefetchPiece);
  for (const uint64_t end = offset + count; offset < end; offset += piece.size()) {
    const size_t size = std::min<uint64_t>(piece.size(), end - offset);
    if (!ImageOf(handle).Read(offset, absl::MakeSpan(piece.data(), size)).ok()) break;
  }
  return 0;
}

int Extents(void* handle, uint32_t count, uint64_t offset, uint32_t flags, nbdkit_extents* extents) {
  absl::StatusOr<std::vector<still::store::ImageExtent>> found =
      ImageOf(handle).Extents(offset, std::min<uint64_t>(count, kMaxExtentsSpan));
  if (!found.ok()) return CannotRead(found.status());
  for (const still::store::ImageExtent& extent : *found) {
    const uint32_t type = extent.zero ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;
    if (nbdkit_add_extent(extents, extent.offset, extent.length, type) != 0) return -1;
    if ((flags & NBDKIT_FLAG_REQ_ONE) != 0) break;
  }
  return 0;
}

constexpr char kHelp[] =
    "repository=DIRECTORY   (required) the repository\n"
    "snapshot=REFERENCE     exports are the images of this snapshot, by their names;\n"
    "                       without it SNAPSHOT/IMAGE reaches any\n"
    "image=NAME             the export of clients who name none\n"
    "key-file=PATH          opens an encrypted repository (or STILL_KEY_FILE)\n"
    "passphrase-fd=N        the passphrase is read from this descriptor (or STILL_PASSPHRASE)\n";

nbdkit_plugin MakePlugin() {
  nbdkit_plugin plugin{};
  plugin.name = "still";
  plugin.longname = "Stillpoint snapshots";
  plugin.version = STILL_VERSION;
  plugin.description = "Serves the images of a Stillpoint repository, read-only.";
  plugin.load = Load;
  plugin.unload = Unload;
  plugin.config = Config;
  plugin.config_complete = ConfigComplete;
  plugin.config_help = kHelp;
  plugin.after_fork = AfterFork;
  plugin.list_exports = ListExports;
  plugin.default_export = DefaultExport;
  plugin.open = Open;
  plugin.close = Close;
  plugin.get_size = GetSize;
  plugin.export_description = ExportDescription;
  plugin.block_size = BlockSize;
  plugin.can_multi_conn = CanMultiConn;
  plugin.can_cache = CanCache;
  plugin.can_extents = CanExtents;
  plugin.pread = PRead;
  plugin.cache = Cache;
  plugin.extents = Extents;
  return plugin;
}

nbdkit_plugin plugin = MakePlugin();

}  // namespace

NBDKIT_REGISTER_PLUGIN(plugin)
