#include "tests/support/fault/fault_store.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace still {
namespace {

absl::Status Crashed() { return absl::UnavailableError("fault store: the machine has stopped"); }

}  // namespace

class FaultObjectStore::Writer final : public ObjectWriter {
 public:
  Writer(FaultObjectStore& faults, std::unique_ptr<ObjectWriter> writer)
      : faults_(faults), writer_(std::move(writer)) {}
  absl::Status Append(absl::string_view data) override {
    if (!failed_.ok()) return failed_;
    failed_ = faults_.Begin(Operation::kAppend, name());
    if (failed_.ok()) failed_ = faults_.TakeRoom(data.size());
    if (failed_.ok()) failed_ = writer_->Append(data);
    return failed_;
  }
  void Finish() override { writer_->Finish(); }
  uint64_t size() const override { return writer_->size(); }
  const std::string& name() const override { return writer_->name(); }
  const absl::Status& failed() const { return failed_; }
  std::unique_ptr<ObjectWriter> Take() { return std::move(writer_); }

 private:
  FaultObjectStore& faults_;
  std::unique_ptr<ObjectWriter> writer_;
  absl::Status failed_;
};

void FaultObjectStore::FailAt(int64_t k, absl::Status status) {
  absl::MutexLock lock(&mutex_);
  fail_at_ = k == 0 ? 0 : calls_ + k;
  failure_ = std::move(status);
}

void FaultObjectStore::CrashAt(int64_t k) {
  absl::MutexLock lock(&mutex_);
  crash_at_ = k == 0 ? 0 : changes_ + k;
}

void FaultObjectStore::Restart() {
  absl::MutexLock lock(&mutex_);
  crashed_ = false;
  crash_at_ = 0;
}

bool FaultObjectStore::crashed() const {
  absl::MutexLock lock(&mutex_);
  return crashed_;
}

void FaultObjectStore::SetRoom(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  room_ = bytes;
}

void FaultObjectStore::FlipBit(std::string object, uint64_t bit) {
  absl::MutexLock lock(&mutex_);
  flipped_.emplace(std::move(object), bit);
}

void FaultObjectStore::BeforeEach(std::function<void(const Call& call)> hook) {
  absl::MutexLock lock(&mutex_);
  hook_ = std::move(hook);
}

int64_t FaultObjectStore::calls() const {
  absl::MutexLock lock(&mutex_);
  return calls_;
}

int64_t FaultObjectStore::changes() const {
  absl::MutexLock lock(&mutex_);
  return changes_;
}

absl::Status FaultObjectStore::Begin(Operation operation, absl::string_view object, size_t count, size_t* done) {
  if (done != nullptr) *done = 0;
  std::function<void(const Call& call)> hook;
  {
    absl::MutexLock lock(&mutex_);
    if (crashed_) return Crashed();
    hook = hook_;
  }
  if (hook) hook({.operation = operation, .object = std::string(object)});
  absl::MutexLock lock(&mutex_);
  if (crashed_) return Crashed();
  bool change = operation == Operation::kNewWriter || operation == Operation::kAppend ||
                operation == Operation::kPublish || operation == Operation::kDelete;
  ++calls_;
  if (change) ++changes_;
  if (change && changes_ == crash_at_) {
    crashed_ = true;
    if (done != nullptr) *done = random_() % (count + 1);
    return Crashed();
  }
  if (calls_ == fail_at_) return Annotate(failure_, absl::StrCat("object ", object));
  if (done != nullptr) *done = count;
  return absl::OkStatus();
}

absl::Status FaultObjectStore::TakeRoom(size_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (bytes > room_) return absl::ResourceExhaustedError("fault store: no room left");
  if (room_ != ~uint64_t{0}) room_ -= bytes;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ObjectWriter>> FaultObjectStore::NewWriter(absl::string_view name, PutOptions options) {
  STILL_RETURN_IF_ERROR(Begin(Operation::kNewWriter, name));
  STILL_ASSIGN_OR_RETURN(std::unique_ptr<ObjectWriter> writer, store_.NewWriter(name, options));
  return std::make_unique<Writer>(*this, std::move(writer));
}

absl::Status FaultObjectStore::Publish(std::vector<std::unique_ptr<ObjectWriter>> writers) {
  size_t count;
  absl::Status status = Begin(Operation::kPublish, writers.empty() ? "" : writers[0]->name(), writers.size(), &count);
  std::vector<std::unique_ptr<ObjectWriter>> inner;
  for (size_t i = 0; i < count; ++i) {
    auto* writer = static_cast<Writer*>(writers[i].get());
    if (!writer->failed().ok()) {
      status = FirstError(std::move(status), writer->failed());
      break;
    }
    inner.push_back(writer->Take());
  }
  if (inner.empty()) return status;
  return FirstError(std::move(status), store_.Publish(std::move(inner)));
}

absl::Status FaultObjectStore::Settle(absl::Span<const std::string> names) {
  STILL_RETURN_IF_ERROR(Begin(Operation::kSettle, names.empty() ? "" : names[0]));
  return store_.Settle(names);
}

absl::Status FaultObjectStore::GetRange(absl::string_view name, uint64_t offset, absl::Span<char> out) {
  STILL_RETURN_IF_ERROR(Begin(Operation::kGetRange, name));
  STILL_RETURN_IF_ERROR(store_.GetRange(name, offset, out));
  absl::MutexLock lock(&mutex_);
  auto [first, last] = flipped_.equal_range(std::string(name));
  for (; first != last; ++first) {
    uint64_t byte = first->second / 8;
    if (byte < offset || byte - offset >= out.size()) continue;
    out[byte - offset] = static_cast<char>(out[byte - offset] ^ (1 << (first->second % 8)));
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> FaultObjectStore::Size(absl::string_view name) {
  STILL_RETURN_IF_ERROR(Begin(Operation::kSize, name));
  return store_.Size(name);
}

absl::StatusOr<std::vector<ObjectInfo>> FaultObjectStore::List(absl::string_view prefix) {
  STILL_RETURN_IF_ERROR(Begin(Operation::kList, prefix));
  return store_.List(prefix);
}

absl::Status FaultObjectStore::Delete(absl::Span<const std::string> names) {
  size_t count;
  absl::Status status = Begin(Operation::kDelete, names.empty() ? "" : names[0], names.size(), &count);
  if (count == 0) return status;
  return FirstError(std::move(status), store_.Delete(names.subspan(0, count)));
}

absl::StatusOr<SweptLeftovers> FaultObjectStore::SweepLeftovers() {
  STILL_RETURN_IF_ERROR(Begin(Operation::kSweep, ""));
  return store_.SweepLeftovers();
}

absl::StatusOr<uint64_t> FaultObjectStore::AvailableBytes() {
  STILL_RETURN_IF_ERROR(Begin(Operation::kSpace, ""));
  return store_.AvailableBytes();
}

}  // namespace still
