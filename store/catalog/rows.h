// What the catalog holds, as values. docs/format/catalog.md says what each is for. Bytes of names and ids are raw.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace still::store {

struct CatalogPack {
  std::string name;  // 16 bytes.
  int kind = 0;      // As in the pack's footer.
  uint64_t size = 0;
  int64_t created_unix_ns = 0;
  uint32_t blocks = 0;
  uint32_t nodes = 0;
  uint64_t overhead = 0;  // Of its bytes, those that are not blocks.
  std::string hooks;      // The sample of its block ids; store/pack knows its form.
  std::optional<absl::Time> condemned;
};

struct CatalogNode {
  std::string id;        // 32 bytes.
  uint32_t ordinal = 0;  // In the pack's footer.
};

struct NodePlace {
  std::string pack;  // Its name.
  uint32_t ordinal = 0;
};

struct CatalogImage {
  std::string name;
  int role = 0;  // manifest.proto, Image.Role.
  uint64_t size = 0;
  std::string root;  // 32 bytes.
  std::string bitmap;
};

struct CatalogSnapshot {
  std::string id;    // 32 hex digits.
  std::string name;  // Unique when not empty.
  std::string session;
  std::string session_id;
  int64_t point_unix_ns = 0;
  int64_t committed_unix_ns = 0;
  int64_t sequence = 0;  // Of its commit; 0: from before they were counted.
  std::string host_id;
  std::string machine_id;
  std::string host;            // Its name.
  int level = 0;               // manifest.proto, Consistency.Level.
  uint64_t logical_bytes = 0;  // Of all images, as the guest sees them.
  int kind = 0;                // manifest.proto, Snapshot.Kind.
  std::string manifest;        // The serialized message.
  std::map<std::string, std::string> labels;
  std::vector<CatalogImage> images;  // Sorted by name.
};

// What is known of a folder of objects: its stamp (ObjectStore::Stamp) when it was last listed and each object had its row,
// and each row its object; empty: that is not known.
struct CatalogListing {
  std::string stamp;
  int64_t changes = 0;  // How often a row of its objects has come or gone.
};

// What can be known of a snapshot without its manifest.
struct SnapshotSummary {
  std::string id;
  std::string name;
  std::string session;
  std::string session_id;
  std::string host_id;
  std::string host;
  std::string machine_id;
  int64_t sequence = 0;
  int64_t committed_unix_ns = 0;
  int64_t point_unix_ns = 0;
  int level = 0;
  uint64_t logical_bytes = 0;
};

// A snapshot whose manifest is gone though nobody has forgotten it.
struct CatalogVanished {
  std::string id;
  std::string name;
  std::string session;
  std::string host;
  absl::Time noticed;
  std::string manifest;  // The serialized message.
};

// A lease that was in the way, and since when it has not changed.
struct CatalogSighting {
  std::string lease;
  std::string content;
  std::string boot;      // Of which boot of this host `since` is.
  absl::Duration since;  // Clock::Monotonic().
};

struct CatalogSession {
  std::string name;
  std::string id;
  uint64_t snapshots = 0;
  int64_t first_point_unix_ns = 0;
  int64_t last_point_unix_ns = 0;
};

// The newest image of a disk: what an incremental capture is based on.
struct CatalogBase {
  std::string snapshot_id;
  CatalogImage image;
};

}  // namespace still::store
