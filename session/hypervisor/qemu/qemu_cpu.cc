#include "session/hypervisor/qemu/qemu_cpu.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/process.h"
#include "base/unix_socket.h"
#include "session/hypervisor/qemu/qemu_probe.h"

namespace still::session {
namespace {

using nlohmann::json;

constexpr absl::Duration kCpuAnswerTimeout = absl::Seconds(30);

// "static": every word is a feature and stands there once. The answer of type "full" adds second names of features, and
// switches of QEMU's own ("migratable", "l3-cache") that say nothing about the processor.
absl::StatusOr<CpuOffer> Expand(QmpClient& qmp, const std::string& model) {
  STILL_ASSIGN_OR_RETURN(json answer,
                         qmp.Execute("query-cpu-model-expansion", CpuModelArguments(model), kCpuAnswerTimeout));
  CpuOffer offer;
  const json& properties = Member(Member(answer, "model"), "props");
  if (!properties.is_object()) return absl::InternalError("QEMU does not say what its processors have");
  for (const auto& [word, value] : properties.items()) {
    if (value.is_boolean()) offer[word] = value.get<bool>();
  }
  return offer;
}

// The first processor's; all have the same.
absl::StatusOr<uint64_t> TscOf(QmpClient& qmp) {
  STILL_ASSIGN_OR_RETURN(json cpus, qmp.Execute("query-cpus-fast", json::object(), kCpuAnswerTimeout));
  if (!cpus.is_array() || cpus.empty()) return absl::InternalError("QEMU names no processor");
  STILL_ASSIGN_OR_RETURN(json hz,
                         qmp.Execute("qom-get", {{"path", TextAt(cpus[0], "qom-path")}, {"property", "tsc-frequency"}},
                                     kCpuAnswerTimeout));
  return hz.is_number_unsigned() ? hz.get<uint64_t>() : 0;
}

}  // namespace

json CpuModelArguments(const std::string& model) {
  std::vector<std::string> parts = absl::StrSplit(model, ',');
  json properties = json::object();
  for (size_t i = 1; i < parts.size(); ++i) {
    absl::string_view word = parts[i];
    const bool minus = absl::ConsumePrefix(&word, "-");
    if (minus || absl::ConsumePrefix(&word, "+")) {
      properties[std::string(word)] = !minus;
      continue;
    }
    const std::pair<std::string, std::string> pair = absl::StrSplit(word, absl::MaxSplits('=', 1));
    int64_t number = 0;
    bool flag = false;
    if (pair.second.empty()) {
      properties[pair.first] = true;
    } else if (absl::SimpleAtoi(pair.second, &number)) {
      properties[pair.first] = number;
    } else if (pair.second == "on" || pair.second == "off" || absl::SimpleAtob(pair.second, &flag)) {
      properties[pair.first] = pair.second == "on" || flag;
    } else {
      properties[pair.first] = pair.second;
    }
  }
  return {{"type", "static"}, {"model", {{"name", parts[0]}, {"props", std::move(properties)}}}};
}

absl::StatusOr<CpuOffer> ProbeKvmCpu() {
  STILL_ASSIGN_OR_RETURN(std::string binary, FindQemu());
  STILL_ASSIGN_OR_RETURN(SocketPair socket, MakeSocketPair());
  ProcessOptions options{
      .argv = {binary, "-machine", "none", "-accel", "kvm", "-nodefaults", "-no-user-config", "-display", "none",
               "-chardev", "stdio,id=qmp,signal=off", "-mon", "chardev=qmp,mode=control"},
      .working_directory = "/",
      .stdin_fd = socket.second.get(),
      .stdout_fd = socket.second.get(),
      .stderr_fd = -1,
      .end_with_parent = true};
  STILL_ASSIGN_OR_RETURN(ChildProcess qemu, ChildProcess::Start(options));
  socket.second.Reset();
  auto ask = [&]() -> absl::StatusOr<CpuOffer> {
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<QmpClient> qmp,
                           QmpClient::Connect(std::move(socket.first), {.handshake_deadline = kCpuAnswerTimeout}));
    return Expand(*qmp, "host");
  };
  absl::StatusOr<CpuOffer> offer = ask();
  if (!offer.ok()) return Annotate(offer.status(), "ask QEMU what KVM gives guests here");
  return offer;
}

absl::StatusOr<GuestCpu> QueryGuestCpu(QmpClient& qmp, const std::string& model) {
  STILL_ASSIGN_OR_RETURN(CpuOffer offer, Expand(qmp, "host"));
  GuestCpu cpu;
  if (model == "host") {
    for (const auto& [word, given] : offer) {
      if (given) cpu.features.push_back(word);
    }
  } else {
    // What the model wants and the host cannot give is left out by QEMU.
    STILL_ASSIGN_OR_RETURN(CpuOffer wanted, Expand(qmp, model));
    for (const auto& [word, given] : wanted) {
      if (given && offer[word]) cpu.features.push_back(word);
    }
  }
  STILL_ASSIGN_OR_RETURN(cpu.tsc_hz, TscOf(qmp));
  return cpu;
}

}  // namespace still::session
