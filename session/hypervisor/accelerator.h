// Which accelerator this host can really run guests with.
//
// /dev/kvm is no proof: there are hosts (nested or para-virtualised ones) where it opens and guests hang. KVM counts
// only when the kernel's hardware back end (kvm_intel, kvm_amd) is loaded too.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"

namespace still::session {

struct Accelerator {
  std::string name;    // "kvm" or "tcg"
  std::string reason;  // Why this one, for `still doctor`.
};

// Looks under `root` ("/" outside tests). Thread-safe; does not block.
Accelerator DetectAccelerator(const std::string& root = "/");

// `wanted`: "auto" or empty (detect), "kvm", "tcg". INVALID_ARGUMENT for anything else. An explicit "kvm" is believed
// as long as /dev/kvm opens; FAILED_PRECONDITION else.
absl::StatusOr<Accelerator> ChooseAccelerator(absl::string_view wanted, const std::string& root = "/");

}  // namespace still::session
