// ScratchDirectory: a private directory under TMPDIR, gone with the object.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "base/status.h"

namespace still::snapshot {

class ScratchDirectory {
 public:
  static absl::StatusOr<std::unique_ptr<ScratchDirectory>> Make();
  explicit ScratchDirectory(std::string path) : path_(std::move(path)) {}
  ~ScratchDirectory();
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  const std::string path_;
};

}  // namespace still::snapshot
