#include "session/hypervisor/host_cpu.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/fd.h"
#include "base/file.h"

namespace still::session {

std::vector<std::string> HostCpuFlags(const std::string& root) {
  // A host with hundreds of processors describes each; the first is enough.
  constexpr size_t kMaxBytes = 16 << 20;
  auto text = ReadFile(JoinPath(root, "proc/cpuinfo"), kMaxBytes);
  if (!text.ok()) return {};
  for (absl::string_view line : absl::StrSplit(*text, '\n')) {
    if (!absl::ConsumePrefix(&line, "flags")) continue;
    std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 1));
    std::vector<std::string> flags = absl::StrSplit(parts.second, ' ', absl::SkipWhitespace());
    std::sort(flags.begin(), flags.end());
    return flags;
  }
  return {};
}

std::string CpuWord(absl::string_view feature) {
  std::string word(feature);
  std::erase_if(word, [](char c) { return c == '_' || c == '-' || c == '.'; });
  return word;
}

absl::StatusOr<KvmTsc> QueryKvmTsc() {
  STILL_ASSIGN_OR_RETURN(OwnedFd kvm, OpenFile("/dev/kvm", O_RDWR));
  KvmTsc tsc;
  tsc.scaling = ::ioctl(kvm.get(), KVM_CHECK_EXTENSION, KVM_CAP_TSC_CONTROL) > 0;
  OwnedFd vm(::ioctl(kvm.get(), KVM_CREATE_VM, 0));
  if (!vm.valid()) return ErrnoStatus(errno, "KVM_CREATE_VM");
  OwnedFd cpu(::ioctl(vm.get(), KVM_CREATE_VCPU, 0));
  if (!cpu.valid()) return ErrnoStatus(errno, "KVM_CREATE_VCPU");
  const int khz = ::ioctl(cpu.get(), KVM_GET_TSC_KHZ, 0);
  if (khz < 0) return ErrnoStatus(errno, "KVM_GET_TSC_KHZ");
  tsc.hz = static_cast<uint64_t>(khz) * 1000;
  return tsc;
}

}  // namespace still::session
