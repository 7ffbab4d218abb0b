#include "store/pack/data_writer.h"

#include <atomic>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace still::store {

void Throttle::Take() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &Throttle::HasRoom));
  ++taken_;
}

void Throttle::TakeNow() {
  absl::MutexLock lock(&mutex_);
  ++taken_;
}

void Throttle::Give() {
  absl::MutexLock lock(&mutex_);
  --taken_;
}

void Throttle::WaitUntilIdle() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &Throttle::Idle));
}

struct DataWriter::OpenData {
  std::unique_ptr<PackWriter> writer;
  std::vector<BlockId> blocks;  // Of the adding thread, until the pack has ended.
  uint32_t groups = 0;
  // Groups that are not yet appended, plus one while the pack takes more. Who takes the last one away ends the pack.
  std::atomic<int> pending{1};
};

struct DataWriter::Group {
  std::shared_ptr<OpenData> pack;
  uint32_t number = 0;
  size_t size = 0;
  std::unique_ptr<char[]> data = std::make_unique_for_overwrite<char[]>(kGroupSize);
};

DataWriter::DataWriter(PackSet& packs, WorkerPool& pool, Throttle& throttle, Options options)
    : packs_(packs), pool_(pool), throttle_(throttle), options_(std::move(options)) {
  publisher_ = std::thread([this] { PublishLoop(); });
}

DataWriter::~DataWriter() {
  if (group_ != nullptr) {
    group_.reset();
    throttle_.Give();
    absl::MutexLock lock(&mutex_);
    --groups_under_way_;
  }
  {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(this, &DataWriter::NoGroups));
    ending_ = true;
    if (status_.ok()) status_ = absl::AbortedError("capture: abandoned");
  }
  publisher_.join();
}

absl::Status DataWriter::status() const {
  absl::MutexLock lock(&mutex_);
  return status_;
}

uint64_t DataWriter::bytes_stored() const {
  absl::MutexLock lock(&mutex_);
  return bytes_stored_;
}

void DataWriter::Fail(const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  if (status_.ok()) status_ = status;
}

absl::Status DataWriter::BeginPack() {
  STILL_RETURN_IF_ERROR(status());
  auto pack = std::make_shared<OpenData>();
  STILL_ASSIGN_OR_RETURN(pack->writer, PackWriter::Begin(packs_, PackKind::kData, options_.clock->Now()));
  {
    absl::MutexLock lock(&mutex_);
    ++unpublished_;
  }
  pack_ = std::move(pack);
  options_.on_pack_begun(pack_->writer->number());
  return absl::OkStatus();
}

absl::StatusOr<BlockPlace> DataWriter::Add(const BlockId& id, const char* data) {
  if (pack_ == nullptr) STILL_RETURN_IF_ERROR(BeginPack());
  if (group_ == nullptr) {
    group_ = std::make_unique<Group>();
    group_->pack = pack_;
    group_->number = pack_->groups++;
    pack_->pending.fetch_add(1);
    throttle_.TakeNow();
    absl::MutexLock lock(&mutex_);
    ++groups_under_way_;
  }
  const BlockPlace place = {.pack = pack_->writer->number(), .block = static_cast<uint32_t>(pack_->blocks.size())};
  std::memcpy(group_->data.get() + group_->size, data, kBlockSize);
  group_->size += kBlockSize;
  pack_->blocks.push_back(id);
  if (group_->size == kGroupSize) {
    EndGroup();
    if (pack_->blocks.size() >= kPackTargetBlocks || pack_->writer->bytes() >= kPackTarget) EndPack();
  }
  return place;
}

void DataWriter::EndGroup() {
  if (group_ == nullptr) return;
  // A std::function must be copyable, so the group is shared with itself.
  std::shared_ptr<Group> group(std::move(group_));
  pool_.SubmitUrgent([this, group](Scratch& scratch) { CompressGroup(*group, scratch); });
}

void DataWriter::CompressGroup(Group& group, Scratch& scratch) {
  OpenData& pack = *group.pack;
  if (status().ok()) {
    scratch.codec.set_compression(options_.compression);
    const FrameSeal seal = {.keys = packs_.keys(), .object = pack.writer->object(), .position = group.number};
    scratch.io.clear();
    scratch.codec.Encode(FrameKind::kGroup, seal, true, {group.data.get(), group.size}, scratch.io);
    absl::Status status = pack.writer->AddFrame(group.number, scratch.io);
    if (!status.ok()) Fail(status);
    absl::MutexLock lock(&mutex_);
    bytes_stored_ += scratch.io.size();
  }
  GroupDone(pack, scratch);
  throttle_.Give();
  absl::MutexLock lock(&mutex_);
  --groups_under_way_;
}

void DataWriter::GroupDone(OpenData& pack, Scratch& scratch) {
  if (pack.pending.fetch_sub(1) != 1 || !status().ok()) return;
  auto ended = pack.writer->End(std::move(pack.blocks), {}, scratch.codec);
  if (!ended.ok()) return Fail(ended.status());
  absl::MutexLock lock(&mutex_);
  ended_.push_back(*std::move(ended));
}

void DataWriter::EndPack() {
  if (pack_ == nullptr) return;
  std::shared_ptr<OpenData> pack = std::move(pack_);
  pack_ = nullptr;
  {
    absl::MutexLock lock(&mutex_);
    ++groups_under_way_;
  }
  throttle_.TakeNow();
  pool_.SubmitUrgent([this, pack](Scratch& scratch) {
    GroupDone(*pack, scratch);
    throttle_.Give();
    absl::MutexLock lock(&mutex_);
    --groups_under_way_;
  });
}

absl::Status DataWriter::Flush() {
  EndGroup();
  EndPack();
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &DataWriter::AllPublished));
  return status_;
}

void DataWriter::PublishLoop() {
  while (true) {
    std::vector<PackWriter::Ended> ended;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &DataWriter::SomethingToPublish));
      if (ending_ || !status_.ok()) {
        ended_.clear();
        if (ending_) return;
        continue;
      }
      ended.swap(ended_);
    }
    std::vector<std::unique_ptr<ObjectWriter>> objects;
    objects.reserve(ended.size());
    for (PackWriter::Ended& pack : ended) objects.push_back(std::move(pack.object));
    absl::Status status = packs_.objects().Publish(std::move(objects));
    for (const PackWriter::Ended& pack : ended) {
      if (status.ok()) status = options_.on_published(pack.summary);
    }
    absl::MutexLock lock(&mutex_);
    if (!status.ok() && status_.ok()) status_ = status;
    unpublished_ -= static_cast<int>(ended.size());
  }
}

}  // namespace still::store
