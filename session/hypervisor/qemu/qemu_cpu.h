// The processor that guests are given, in QEMU's words: what the accelerator, the host's processor and QEMU allow together
// (QMP query-cpu-model-expansion). /proc/cpuinfo is no answer to that: it has words that the kernel makes up, and what KVM keeps
// from guests.
#pragma once

#include <map>
#include <string>

#include "base/status.h"
#include "session/hypervisor/host_cpu.h"
#include "session/hypervisor/qemu/qmp_client.h"

namespace still::session {

// QEMU's words for features, and whether guests of the model "host" are given them here.
using CpuOffer = std::map<std::string, bool>;

// Of this host under KVM: asks a QEMU without a machine, which takes some 100 ms.
absl::StatusOr<CpuOffer> ProbeKvmCpu();

// Of a VM that runs under KVM with this model ("host", "EPYC,-avx2").
absl::StatusOr<GuestCpu> QueryGuestCpu(QmpClient& qmp, const std::string& model);

// The arguments of query-cpu-model-expansion for a model as it stands on QEMU's command line.
nlohmann::json CpuModelArguments(const std::string& model);

}  // namespace still::session
