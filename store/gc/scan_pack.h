// Reads the frames of a pack one after the other: by its footer, or, where that is damaged, by the frames themselves.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "store/repository_state.h"

namespace still::store {

struct ScanOptions {
  FrameKind frames = FrameKind::kGroup;
  // Damaged frames are left out. Else the first one is an error.
  bool skip_damage = false;
};

// Calls `visit` with the payload of each frame that is `wanted`. A pack that is gone: NOT_FOUND, or nothing with
// `skip_damage`.
absl::Status ScanPack(RepositoryState& state, const PackName& name, const ScanOptions& options,
                      const std::function<bool(uint32_t position)>& wanted,
                      const std::function<absl::Status(uint32_t position, absl::string_view payload)>& visit,
                      Scratch& scratch);

}  // namespace still::store
