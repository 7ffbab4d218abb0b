#include "session/hypervisor/accelerator.h"

#include <fcntl.h>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace still::session {

Accelerator DetectAccelerator(const std::string& root) {
  if (auto device = OpenFile(JoinPath(root, "dev/kvm"), O_RDWR); !device.ok()) {
    return {"tcg", std::string(device.status().message())};
  }
  for (absl::string_view module : {"kvm_intel", "kvm_amd"}) {
    if (PathExists(JoinPath(root, absl::StrCat("sys/module/", module)))) {
      return {"kvm", absl::StrCat("/dev/kvm opens and ", module, " is loaded")};
    }
  }
  return {"tcg", "/dev/kvm opens, but neither kvm_intel nor kvm_amd is there: guests may hang"};
}

absl::StatusOr<Accelerator> ChooseAccelerator(absl::string_view wanted, const std::string& root) {
  if (wanted.empty() || wanted == "auto") return DetectAccelerator(root);
  if (wanted == "tcg") return Accelerator{"tcg", "asked for"};
  if (wanted != "kvm") {
    return absl::InvalidArgumentError(absl::StrCat("accelerator \"", wanted, "\": use auto, kvm or tcg"));
  }
  if (auto device = OpenFile(JoinPath(root, "dev/kvm"), O_RDWR); !device.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("accelerator kvm: ", device.status().message(), "; use tcg, or make /dev/kvm accessible"));
  }
  return Accelerator{"kvm", "asked for"};
}

}  // namespace still::session
