// Manifests come from untrusted storage, and go into the catalog.
#include <cstdint>
#include <string>

#include "base/check.h"
#include "store/repository_state.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace still::store;
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  stillpoint::manifest::v1::Snapshot claimed;
  const std::string id = claimed.ParseFromString(bytes) ? claimed.id() : "";
  auto snapshot = ParseManifest(bytes, id);
  if (!snapshot.ok()) return 0;
  const CatalogSnapshot row = ToRow(*snapshot);
  STILL_CHECK(row.id == id);
  for (const CatalogImage& image : row.images) {
    STILL_CHECK(image.root.size() == NodeId::size() && TreeShape(image.size).height <= 5);
  }
  return 0;
}
