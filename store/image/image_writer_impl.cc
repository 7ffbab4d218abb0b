#include "store/image/image_writer_impl.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "store/image/stream_size.h"

namespace still::store {
namespace {

constexpr size_t kBatchBlocks = 64;
// A batch without data (zero runs, kept runs) is handed over at this many runs.
constexpr size_t kBatchRuns = 256;

uint64_t BlocksFor(uint64_t bytes) { return (bytes + kBlockSize - 1) / kBlockSize; }

}  // namespace

struct ImageWriterImpl::Batch {
  uint64_t sequence = 0;
  std::vector<Run> runs;
  // Blocks of the data runs, one after the other.
  size_t blocks = 0;
  std::unique_ptr<char[]> data;
  std::array<BlockId, kBatchBlocks> ids;
  // To be read by the worker: one data run of this file.
  int fd = -1;
  uint64_t file_offset = 0;
  size_t file_bytes = 0;
};

ImageWriterImpl::ImageWriterImpl(ImageWriterContext context, const ImageOptions& options)
    : context_(std::move(context)),
      is_stream_(options.size == kSizeOfStream),
      size_(is_stream_ ? kMaxStreamSize : options.size),
      leaves_(TreeShape(size_).leaves),
      kept_leaves_(leaves_) {
  if (!options.parent_root.empty()) {
    parent_ = std::make_unique<TreeReader>(context_.nodes, NodeId::FromBytes(options.parent_root), options.parent_size);
  }
}

ImageWriterImpl::~ImageWriterImpl() { WaitForBatches(); }

absl::Status ImageWriterImpl::CheckRange(uint64_t offset, uint64_t length) const {
  STILL_CHECK(!finished_);
  if (is_stream_ && (offset != stream_end_ || offset % kBlockSize != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("write at ", offset, " of a stream that has come to ", stream_end_));
  }
  if (is_stream_ && length > size_ - offset) return absl::ResourceExhaustedError("the stream is longer than 64 TiB");
  const bool ends_it = is_stream_ || offset + length == size_;  // Its last block may be a shorter one.
  if (offset % kBlockSize != 0 || offset > size_ || length > size_ - offset || (length % kBlockSize != 0 && !ends_it)) {
    return absl::InvalidArgumentError(
        absl::StrCat("write of ", length, " bytes at ", offset, ": not whole blocks of an image of ", size_, " bytes"));
  }
  absl::MutexLock lock(&mutex_);
  return status_;
}

void ImageWriterImpl::EnsureBatch() {
  if (batch_ != nullptr) return;
  context_.throttle.Take();
  batch_ = std::make_shared<Batch>();
  batch_->sequence = sequence_++;
}

std::unique_ptr<char[]> ImageWriterImpl::TakeBuffer() {
  absl::MutexLock lock(&mutex_);
  if (spare_.empty()) return std::make_unique_for_overwrite<char[]>(kBatchBlocks * kBlockSize);
  std::unique_ptr<char[]> buffer = std::move(spare_.back());
  spare_.pop_back();
  return buffer;
}

void ImageWriterImpl::SubmitBatch() {
  if (batch_ == nullptr) return;
  {
    absl::MutexLock lock(&mutex_);
    ++submitted_;
  }
  context_.pool.Submit([this, batch = std::exchange(batch_, nullptr)](Scratch& scratch) { HashBatch(batch, scratch); });
}

void ImageWriterImpl::AddRun(Run run) {
  EnsureBatch();
  std::vector<Run>& runs = batch_->runs;
  if (!runs.empty() && runs.back().kind == run.kind &&
      runs.back().first_block + runs.back().blocks == run.first_block) {
    runs.back().blocks += run.blocks;
  } else {
    runs.push_back(run);
  }
  if (runs.size() >= kBatchRuns) SubmitBatch();
}

void ImageWriterImpl::AppendBlock(uint64_t block, const char* data, size_t size) {
  EnsureBatch();
  if (batch_->data == nullptr) batch_->data = TakeBuffer();
  char* to = batch_->data.get() + batch_->blocks * kBlockSize;
  std::memcpy(to, data, size);
  std::memset(to + size, 0, kBlockSize - size);
  const bool is_last = ++batch_->blocks == kBatchBlocks;
  AddRun({.kind = RunKind::kData, .first_block = block, .blocks = 1});
  if (is_last) SubmitBatch();
}

absl::Status ImageWriterImpl::Write(uint64_t offset, absl::string_view data) {
  STILL_RETURN_IF_ERROR(CheckRange(offset, data.size()));
  uint64_t block = offset / kBlockSize;
  for (size_t at = 0; at < data.size(); at += kBlockSize, ++block) {
    const size_t size = std::min(kBlockSize, data.size() - at);
    if (IsZero(data.data() + at, size)) {
      AddRun({.kind = RunKind::kZero, .first_block = block, .blocks = 1});
    } else {
      AppendBlock(block, data.data() + at, size);
    }
  }
  stream_end_ = offset + data.size();
  absl::MutexLock lock(&mutex_);
  stats_.bytes_written += data.size();
  return absl::OkStatus();
}

absl::Status ImageWriterImpl::WriteZeros(uint64_t offset, uint64_t length) {
  STILL_RETURN_IF_ERROR(CheckRange(offset, length));
  if (length == 0) return absl::OkStatus();
  AddRun({.kind = RunKind::kZero, .first_block = offset / kBlockSize, .blocks = BlocksFor(length)});
  return absl::OkStatus();
}

absl::Status ImageWriterImpl::KeepParent(uint64_t offset, uint64_t length) {
  STILL_RETURN_IF_ERROR(CheckRange(offset, length));
  if (parent_ == nullptr) return absl::InvalidArgumentError("an image without a parent has nothing to keep");
  if (length == 0) return absl::OkStatus();
  AddRun({.kind = RunKind::kKeep, .first_block = offset / kBlockSize, .blocks = BlocksFor(length)});
  return absl::OkStatus();
}

absl::Status ImageWriterImpl::WriteFromFile(int fd, uint64_t file_offset, uint64_t offset, uint64_t length) {
  STILL_RETURN_IF_ERROR(CheckRange(offset, length));
  const off_t file_end = ::lseek(fd, 0, SEEK_END);
  if (file_end < 0) return ErrnoStatus(errno, "seek in image file");
  if (static_cast<uint64_t>(file_end) < file_offset + length) {
    return absl::OutOfRangeError(absl::StrCat("image file: ends at ", file_end, ", before ", file_offset + length));
  }
  uint64_t at = 0;
  while (at < length) {
    // Where the file system knows no holes, all of the file is one extent.
    const off_t data = ::lseek(fd, static_cast<off_t>(file_offset + at), SEEK_DATA);
    uint64_t data_begin = at;
    uint64_t data_end = length;
    if (data < 0 && errno == ENXIO) {
      data_begin = length;  // Nothing but a hole.
    } else if (data >= 0) {
      data_begin =
          std::clamp<uint64_t>((static_cast<uint64_t>(data) - file_offset) / kBlockSize * kBlockSize, at, length);
      const off_t hole = ::lseek(fd, data, SEEK_HOLE);
      if (hole >= 0) {
        const uint64_t blocks = BlocksFor(static_cast<uint64_t>(hole) - file_offset);
        data_end = std::clamp<uint64_t>(blocks * kBlockSize, std::min(data_begin + kBlockSize, length), length);
      }
    }
    if (data_begin > at) {
      const uint64_t blocks = BlocksFor(data_begin - at);
      AddRun({.kind = RunKind::kZero, .first_block = (offset + at) / kBlockSize, .blocks = blocks});
    }
    if (data_end > data_begin) {
      STILL_RETURN_IF_ERROR(
          WriteFileExtent(fd, file_offset + data_begin, (offset + data_begin) / kBlockSize, data_end - data_begin));
    }
    at = std::max(data_begin, data_end);
    if (data_begin == length) break;
  }
  absl::MutexLock lock(&mutex_);
  stats_.bytes_written += length;
  return absl::OkStatus();
}

absl::Status ImageWriterImpl::WriteFileExtent(int fd, uint64_t file_offset, uint64_t block, uint64_t bytes) {
  while (bytes > 0) {
    {
      absl::MutexLock lock(&mutex_);
      if (!status_.ok()) return status_;
    }
    SubmitBatch();  // A batch is read from a file or filled by the caller, never both.
    EnsureBatch();
    const uint64_t size = std::min<uint64_t>(bytes, kBatchBlocks * kBlockSize);
    batch_->fd = fd;
    batch_->file_offset = file_offset;
    batch_->file_bytes = size;
    batch_->blocks = BlocksFor(size);
    batch_->runs = {{.kind = RunKind::kData, .first_block = block, .blocks = batch_->blocks}};
    SubmitBatch();
    file_offset += size;
    block += BlocksFor(size);
    bytes -= size;
  }
  return absl::OkStatus();
}

absl::Status ImageWriterImpl::ReadAndHash(Batch& batch, Scratch& scratch) {
  if (batch.fd >= 0) {
    batch.data = TakeBuffer();
    absl::Status status = PReadExactly(batch.fd, batch.data.get(), batch.file_bytes, batch.file_offset, "image file");
    STILL_RETURN_IF_ERROR(status);
    std::memset(batch.data.get() + batch.file_bytes, 0, batch.blocks * kBlockSize - batch.file_bytes);
  }
  scratch.hasher.Blocks(batch.data.get(), absl::MakeSpan(batch.ids).first(batch.blocks));
  return absl::OkStatus();
}

void ImageWriterImpl::HashBatch(const std::shared_ptr<Batch>& batch, Scratch& scratch) {
  absl::Status status = ReadAndHash(*batch, scratch);
  if (!status.ok()) {
    absl::MutexLock lock(&mutex_);
    if (status_.ok()) status_ = std::move(status);
  }
  ApplyInOrder(batch, scratch);
}

void ImageWriterImpl::ApplyInOrder(const std::shared_ptr<Batch>& batch, Scratch& scratch) {
  absl::ReleasableMutexLock lock(&mutex_);
  ready_[batch->sequence] = batch;
  if (applying_) return;  // Whoever applies takes it when its turn comes.
  applying_ = true;
  while (!ready_.empty() && ready_.begin()->first == next_) {
    std::shared_ptr<Batch> current = std::move(ready_.begin()->second);
    ready_.erase(ready_.begin());
    absl::Status status = status_;
    mutex_.Unlock();
    if (status.ok()) status = Apply(*current, scratch);
    std::unique_ptr<char[]> buffer = std::move(current->data);
    current.reset();
    context_.throttle.Give();
    mutex_.Lock();
    if (buffer != nullptr) spare_.push_back(std::move(buffer));
    if (status_.ok()) status_ = std::move(status);
    ++next_;
  }
  applying_ = false;
}

absl::Status ImageWriterImpl::Apply(Batch& batch, Scratch& scratch) {
  size_t first_in_batch = 0;
  for (const Run& run : batch.runs) {
    if (run.kind == RunKind::kData) {
      STILL_RETURN_IF_ERROR(ApplyData(batch, run, first_in_batch, scratch));
      first_in_batch += run.blocks;
    } else {
      STILL_RETURN_IF_ERROR(ApplyMark(run));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<StagedLeaf*> ImageWriterImpl::Stage(uint64_t leaf) {
  const bool was_kept = kept_leaves_[leaf];
  STILL_ASSIGN_OR_RETURN(StagedLeaf * staged, stage_.Get(leaf));
  if (was_kept) {
    staged->places.fill({.pack = kParentPack});
    kept_leaves_[leaf] = false;
  }
  return staged;
}

const PlacedBlocks* ImageWriterImpl::ParentLeaf(uint64_t leaf, Scratch& scratch) {
  if (parent_ == nullptr) return nullptr;
  if (parent_leaf_number_ == leaf) return &parent_leaf_;
  auto read = [&]() -> absl::StatusOr<PlacedBlocks> {
    STILL_ASSIGN_OR_RETURN(NodeId id, parent_->LeafAt(leaf, scratch));
    return parent_->ReadLeaf(id, scratch);
  };
  auto blocks = read();
  if (!blocks.ok()) {
    // For comparing, the parent is only a hint.
    LogWarning("parent image not readable", {{"leaf", leaf}, {"error", blocks.status().ToString()}});
  }
  parent_leaf_ = blocks.ok() ? *blocks : PlacedBlocks{};
  parent_leaf_number_ = leaf;
  return &parent_leaf_;
}

absl::Status ImageWriterImpl::ApplyData(Batch& batch, const Run& run, size_t first_in_batch, Scratch& scratch) {
  ImageStats stats;
  std::array<BlockToPlace, kBatchBlocks> blocks;
  std::array<uint32_t, kBatchBlocks> position;  // In the leaf.
  for (uint64_t done = 0; done < run.blocks;) {
    const uint64_t leaf = (run.first_block + done) / kBlocksPerLeaf;
    const auto begin = static_cast<uint32_t>((run.first_block + done) % kBlocksPerLeaf);
    const auto end = static_cast<uint32_t>(std::min<uint64_t>(kBlocksPerLeaf, begin + run.blocks - done));
    const PlacedBlocks* parent = ParentLeaf(leaf, scratch);
    size_t count = 0;
    STILL_ASSIGN_OR_RETURN(StagedLeaf * staged, Stage(leaf));
    for (uint32_t i = begin; i < end; ++i, ++done) {
      const size_t in_batch = first_in_batch + done;
      staged->places[i] = {};
      staged->ids[i] = batch.ids[in_batch];
      if (batch.ids[in_batch].is_zero()) {
        stats.zero_bytes += kBlockSize;
        continue;
      }
      blocks[count] = {.id = batch.ids[in_batch], .data = batch.data.get() + in_batch * kBlockSize};
      if (parent != nullptr) blocks[count].parent = (*parent)[i];
      position[count++] = i;
    }
    STILL_RETURN_IF_ERROR(context_.blocks.Place(absl::MakeSpan(blocks).first(count), scratch));
    for (size_t i = 0; i < count; ++i) {
      staged->places[position[i]] = blocks[i].place;
      switch (blocks[i].outcome) {
        case BlockOutcome::kKept:
          stats.kept_bytes += kBlockSize;
          break;
        case BlockOutcome::kDuplicate:
          stats.duplicate_bytes += kBlockSize;
          break;
        case BlockOutcome::kNew:
          stats.new_bytes += kBlockSize;
          break;
      }
    }
  }
  absl::MutexLock lock(&mutex_);
  stats_.zero_bytes += stats.zero_bytes;
  stats_.kept_bytes += stats.kept_bytes;
  stats_.duplicate_bytes += stats.duplicate_bytes;
  stats_.new_bytes += stats.new_bytes;
  return absl::OkStatus();
}

absl::Status ImageWriterImpl::ApplyMark(const Run& run) {
  for (uint64_t done = 0; done < run.blocks;) {
    const uint64_t leaf = (run.first_block + done) / kBlocksPerLeaf;
    const auto begin = static_cast<uint32_t>((run.first_block + done) % kBlocksPerLeaf);
    const auto end = static_cast<uint32_t>(std::min<uint64_t>(kBlocksPerLeaf, begin + run.blocks - done));
    STILL_RETURN_IF_ERROR(MarkInLeaf(run.kind, leaf, begin, end));
    done += end - begin;
  }
  absl::MutexLock lock(&mutex_);
  (run.kind == RunKind::kZero ? stats_.zero_bytes : stats_.kept_bytes) += run.blocks * kBlockSize;
  return absl::OkStatus();
}

absl::Status ImageWriterImpl::MarkInLeaf(RunKind kind, uint64_t leaf, uint32_t begin, uint32_t end) {
  const bool keep = kind == RunKind::kKeep;
  // The last leaf of an image may be whole with fewer blocks. It is taken over as a whole only from a parent that has
  // nothing beyond our end.
  const uint64_t leaf_end_block = std::min(BlocksFor(size_), (leaf + 1) * kBlocksPerLeaf);
  const bool is_whole = begin == 0 && leaf * kBlocksPerLeaf + end == leaf_end_block;
  const bool same_end = end == kBlocksPerLeaf || (parent_ != nullptr && parent_->image_size() <= size_);
  if (is_whole && (!keep || same_end)) {
    stage_.Drop(leaf);
    kept_leaves_[leaf] = keep;
    return absl::OkStatus();
  }
  // A leaf that is not staged, nor kept, is zero already.
  if (!keep && !kept_leaves_[leaf] && !stage_.Contains(leaf)) return absl::OkStatus();
  STILL_ASSIGN_OR_RETURN(StagedLeaf * staged, Stage(leaf));
  for (uint32_t i = begin; i < end; ++i) {
    staged->places[i] = keep ? BlockPlace{.pack = kParentPack} : BlockPlace{};
    staged->ids[i] = {};
  }
  return absl::OkStatus();
}

ImageStats ImageWriterImpl::stats() const {
  absl::MutexLock lock(&mutex_);
  return stats_;
}

void ImageWriterImpl::WaitForBatches() {
  if (batch_ != nullptr) SubmitBatch();
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &ImageWriterImpl::NothingUnderWay));
}

}  // namespace still::store
