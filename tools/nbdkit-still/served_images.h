// ServedImages: the images of a repository by the names under which they are exported over NBD. Knows nothing of NBD.
//
// With one snapshot an export is named like its image ("vda"), and what it needs is held against prune until the object
// goes. With none, any snapshot is reached: "SNAPSHOT/IMAGE" with any reference ("web@latest/vda"), held as long as
// somebody reads it. Thread-safe; calls block.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "store/repository.h"

namespace still::served {

struct ServedExport {
  std::string name;
  std::string description;  // One line for people.
};

struct ServedImage {
  std::shared_ptr<store::ImageReader> reader;  // Shared by the connections to one export.
  std::string description;
};

class ServedImages {
 public:
  struct Options {
    store::RepositoryOptions repository;
    std::string snapshot;  // A reference; empty: all snapshots.
    // The export of a client who names none; empty: the only disk of the one snapshot.
    std::string default_export;
  };
  // Errors as Repository::Open and FindSnapshot.
  static absl::StatusOr<std::unique_ptr<ServedImages>> Open(const Options& options);

  // Disks first, then what else a snapshot holds.
  absl::StatusOr<std::vector<ServedExport>> List();
  // What a client gets who names no export. INVALID_ARGUMENT when there is no such.
  absl::StatusOr<std::string> DefaultExport() const;
  // NOT_FOUND lists the images there are.
  absl::StatusOr<ServedImage> Find(absl::string_view export_name);

 private:
  explicit ServedImages(std::unique_ptr<store::Repository> repository) : repository_(std::move(repository)) {}

  const std::unique_ptr<store::Repository> repository_;
  std::string default_export_;
  bool one_snapshot_ = false;
  store::manifest::Snapshot snapshot_;
  // Of the one snapshot, by image; filled before anybody else sees the object.
  std::map<std::string, ServedImage, std::less<>> images_;
};

}  // namespace still::served
