#include "tests/support/fake_vm.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "tests/support/fake_vm_state.h"

namespace still::testing {

absl::Status FakeVm::State::Enter(const std::string& call) {
  std::function<void()> action;
  {
    absl::MutexLock lock(&mutex);
    calls.push_back(call);
    if (auto found = actions.find(call); found != actions.end()) action = found->second;
  }
  if (action) action();
  absl::MutexLock lock(&mutex);
  if (ended) return absl::UnavailableError("the hypervisor is gone");
  std::deque<absl::Status>& planned = failures[call];
  if (planned.empty()) return absl::OkStatus();
  absl::Status error = planned.front();
  planned.pop_front();
  return error;
}

absl::Status FakeVm::State::ResumeVcpus() {
  STILL_RETURN_IF_ERROR(Enter("resume"));
  absl::MutexLock lock(&mutex);
  running = true;
  return absl::OkStatus();
}

void FakeVm::State::End(ProcessExit how, bool by_guest) {
  absl::MutexLock lock(&mutex);
  if (ended) return;
  ended = true;
  running = false;
  exit = how;
  guest_shut_down = by_guest;
}

FakeVm::State::Disk* FakeVm::State::FindDisk(const std::string& name) {
  auto found = std::find_if(disks.begin(), disks.end(), [&](const Disk& disk) { return disk.name == name; });
  STILL_CHECK(found != disks.end());
  return &*found;
}

FakeVm::FakeVm(FakeVmOptions options) : state_(std::make_shared<State>()) {
  state_->directory = options.directory;
  state_->capabilities = options.capabilities;
  state_->device_state = options.device_state;
  state_->description = {.hypervisor = "fake",
                         .version = "1",
                         .machine_type = "fake-1",
                         .cpu_model = "fake",
                         .accelerator = "tcg",
                         .firmware = "none",
                         .ram_block = "pc.ram",
                         .device_state_format = "qemu-migration-3",
                         .cpu = {.features = {"avx2"}, .tsc_hz = 2'900'000'000},
                         .pid = ::getpid()};
  absl::MutexLock lock(&state_->mutex);
  state_->memory = std::move(options.memory);
  state_->memory.resize(options.memory_bytes, '\0');
  state_->running = !options.paused;
  for (FakeDisk& disk : options.disks) {
    state_->disks.push_back({.name = disk.name, .content = std::move(disk.content), .read_only = disk.read_only});
  }
}

FakeVm::~FakeVm() { state_->End({.signal = SIGKILL}, false); }

const session::Capabilities& FakeVm::capabilities() const { return state_->capabilities; }
const session::VmDescription& FakeVm::description() const { return state_->description; }

absl::StatusOr<bool> FakeVm::IsPaused() {
  absl::MutexLock lock(&state_->mutex);
  if (state_->ended) return absl::UnavailableError("the hypervisor is gone");
  return !state_->running;
}

absl::Status FakeVm::Resume() {
  STILL_RETURN_IF_ERROR(state_->Enter("Resume"));
  return state_->ResumeVcpus();
}

absl::Status FakeVm::SetLink(const std::string& nic, bool up) {
  STILL_RETURN_IF_ERROR(state_->Enter("SetLink"));
  absl::MutexLock lock(&state_->mutex);
  state_->links[nic] = up;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<session::VmCapture>> FakeVm::PrepareCapture(const session::CaptureOptions& options,
                                                                           OwnedFd memory_sink) {
  STILL_RETURN_IF_ERROR(state_->Enter("PrepareCapture"));
  return PrepareFakeCapture(state_, options, std::move(memory_sink));
}

void FakeVm::Kill() {
  (void)state_->Enter("Kill");  // It cannot fail, only be logged.
  state_->End({.signal = SIGKILL}, false);
}

ProcessExit FakeVm::WaitForExit() {
  absl::MutexLock lock(&state_->mutex);
  state_->mutex.Await(absl::Condition(&state_->ended));
  return state_->exit;
}

bool FakeVm::guest_shut_down() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->guest_shut_down;
}

void FakeVm::FailNext(const std::string& call, absl::Status error) {
  absl::MutexLock lock(&state_->mutex);
  state_->failures[call].push_back(std::move(error));
}

void FakeVm::OnCall(const std::string& call, std::function<void()> action) {
  absl::MutexLock lock(&state_->mutex);
  state_->actions[call] = std::move(action);
}

void FakeVm::StallMemoryAfter(uint64_t bytes) {
  absl::MutexLock lock(&state_->mutex);
  state_->stall_memory_after = bytes;
}

void FakeVm::BreakMemoryAfter(uint64_t bytes) {
  absl::MutexLock lock(&state_->mutex);
  state_->break_memory_after = bytes;
}

void FakeVm::FailDiskReadsFrom(const std::string& disk, uint64_t offset) {
  absl::MutexLock lock(&state_->mutex);
  state_->FindDisk(disk)->fail_reads_from = offset;
}

void FakeVm::HangDiskReadsFrom(const std::string& disk, uint64_t offset) {
  absl::MutexLock lock(&state_->mutex);
  state_->FindDisk(disk)->hang_reads_from = offset;
}

void FakeVm::LoseBitmaps() {
  absl::MutexLock lock(&state_->mutex);
  for (State::Disk& disk : state_->disks) disk.bitmaps.clear();
}

void FakeVm::WriteMemory(uint64_t address, absl::string_view bytes) {
  absl::MutexLock lock(&state_->mutex);
  STILL_CHECK(state_->running);
  STILL_CHECK(address + bytes.size() <= state_->memory.size());
  state_->memory.replace(address, bytes.size(), bytes.data(), bytes.size());
}

std::string FakeVm::ReadMemory(uint64_t address, uint64_t size) const {
  absl::MutexLock lock(&state_->mutex);
  return state_->memory.substr(address, size);
}

void FakeVm::WriteDisk(const std::string& disk, uint64_t offset, absl::string_view bytes) {
  absl::MutexLock lock(&state_->mutex);
  STILL_CHECK(state_->running);
  State::Disk* found = state_->FindDisk(disk);
  STILL_CHECK(!bytes.empty() && offset + bytes.size() <= found->content.size());
  found->content.replace(offset, bytes.size(), bytes.data(), bytes.size());
  for (auto& [name, dirty] : found->bitmaps) {
    for (uint64_t block = offset / NbdExport::kDirtyBlock;
         block <= (offset + bytes.size() - 1) / NbdExport::kDirtyBlock; ++block) {
      dirty.insert(block);
    }
  }
}

std::string FakeVm::DiskContent(const std::string& disk) const {
  absl::MutexLock lock(&state_->mutex);
  return state_->FindDisk(disk)->content;
}

void FakeVm::PowerOff() { state_->End({}, true); }
void FakeVm::Crash() { state_->End({.signal = SIGKILL}, false); }

std::vector<std::string> FakeVm::calls() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->calls;
}

bool FakeVm::running() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->running;
}

bool FakeVm::capture_active() const {
  absl::MutexLock lock(&state_->mutex);
  return state_->capture_active;
}

std::vector<std::string> FakeVm::bitmaps(const std::string& disk) const {
  absl::MutexLock lock(&state_->mutex);
  std::vector<std::string> names;
  for (const auto& [name, dirty] : state_->FindDisk(disk)->bitmaps) names.push_back(name);
  return names;
}

bool FakeVm::link_up(const std::string& nic) const {
  absl::MutexLock lock(&state_->mutex);
  auto found = state_->links.find(nic);
  return found == state_->links.end() || found->second;
}

}  // namespace still::testing
