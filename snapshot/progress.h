// Progress of something that takes long: shown as a bar on a terminal, as lines elsewhere, as JSON for programs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace still::snapshot {

struct Progress {
  std::string stage;   // "freeze", "drain", "commit", "disk vda", ...; a new stage starts its own bar.
  uint64_t done = 0;   // Bytes, of the image.
  uint64_t total = 0;  // 0: unknown.
};
// Called from several threads, one call at a time; must not block.
using ProgressSink = std::function<void(const Progress&)>;

}  // namespace still::snapshot
