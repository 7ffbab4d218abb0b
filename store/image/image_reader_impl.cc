#include "store/image/image_reader_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/file.h"

namespace still::store {
namespace {

constexpr size_t kCachedLeaves = 256;  // 2 KiB each.

const std::shared_ptr<const PlacedBlocks>& ZeroLeaf() {
  static const auto& leaf = *new std::shared_ptr<const PlacedBlocks>(std::make_shared<const PlacedBlocks>());
  return leaf;
}

absl::Status WriteVector(int fd, absl::Span<iovec> pieces, uint64_t offset) {
  while (!pieces.empty()) {
    const ssize_t written = ::pwritev(fd, pieces.data(), static_cast<int>(pieces.size()), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, "write restored image");
    offset += static_cast<uint64_t>(written);
    auto rest = static_cast<size_t>(written);
    while (!pieces.empty() && rest >= pieces.front().iov_len) {
      rest -= pieces.front().iov_len;
      pieces.remove_prefix(1);
    }
    if (rest > 0) {
      pieces.front().iov_base = static_cast<char*>(pieces.front().iov_base) + rest;
      pieces.front().iov_len -= rest;
    }
  }
  return absl::OkStatus();
}

absl::Status ClearRange(int fd, uint64_t offset, uint64_t length) {
  if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(length)) == 0) {
    return absl::OkStatus();
  }
  if (errno != EOPNOTSUPP && errno != ENOSYS && errno != ENODEV) return ErrnoStatus(errno, "clear restored image");
  static constexpr char kZeros[64 * 1024] = {};
  for (uint64_t done = 0; done < length;) {
    const size_t size = std::min<uint64_t>(length - done, sizeof(kZeros));
    STILL_RETURN_IF_ERROR(PWriteAll(fd, kZeros, size, offset + done, "restored image"));
    done += size;
  }
  return absl::OkStatus();
}

}  // namespace

ImageReaderImpl::ImageReaderImpl(WorkerPool& pool, NodeStore& nodes, const NodeId& root, uint64_t size,
                                 std::string what, std::shared_ptr<void> holds)
    : pool_(pool),
      nodes_(nodes),
      size_(size),
      what_(std::move(what)),
      holds_(std::move(holds)),
      tree_(nodes, root, size) {}

absl::Status ImageReaderImpl::Explain(const absl::Status& status, uint64_t leaf) const {
  if (status.ok()) return status;
  return Annotate(status,
                  absl::StrCat(what_, ", bytes ", leaf * kLeafSpan, " to ", std::min(size_, (leaf + 1) * kLeafSpan)));
}

absl::StatusOr<std::shared_ptr<const PlacedBlocks>> ImageReaderImpl::GetLeaf(uint64_t leaf, Scratch& scratch) {
  NodeId id;
  {
    absl::MutexLock lock(&mutex_);
    if (auto at = leaves_.find(leaf); at != leaves_.end()) {
      recency_.splice(recency_.begin(), recency_, at->second.recency);
      return at->second.blocks;
    }
    STILL_ASSIGN_OR_RETURN(id, tree_.LeafAt(leaf, scratch));
  }
  // Most of a large disk: nothing to be remembered.
  if (id.is_zero()) return ZeroLeaf();
  auto blocks = std::make_shared<PlacedBlocks>();
  STILL_ASSIGN_OR_RETURN(*blocks, nodes_.ReadLeaf(id, scratch));
  absl::MutexLock lock(&mutex_);
  auto [at, is_new] = leaves_.try_emplace(leaf);
  if (!is_new) return at->second.blocks;  // Another thread was quicker.
  recency_.push_front(leaf);
  at->second = {.blocks = blocks, .recency = recency_.begin()};
  if (leaves_.size() > kCachedLeaves) {
    leaves_.erase(recency_.back());
    recency_.pop_back();
  }
  return blocks;
}

absl::StatusOr<ImageReaderImpl::Piece> ImageReaderImpl::GetPiece(const PlacedBlocks& blocks, uint32_t begin,
                                                                 uint32_t end, Scratch& scratch) {
  const BlockPlace first = blocks[begin];
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<const OpenPack> pack, nodes_.packs().Open(first.pack, scratch));
  if (first.block >= pack->footer.blocks.size()) {
    return absl::DataLossError(absl::StrCat(pack->object, ": does not have block ", first.block));
  }
  const auto frame = static_cast<uint32_t>(first.block / kBlocksPerGroup);
  const auto in_frame = static_cast<uint32_t>(first.block % kBlocksPerGroup);
  const uint32_t limit = std::min(end - begin, pack->footer.BlocksIn(frame) - in_frame);
  uint32_t count = 1;
  while (count < limit && blocks[begin + count] == BlockPlace{.pack = first.pack, .block = first.block + count}) {
    ++count;
  }
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<const FrameBytes> bytes, nodes_.cache().Get(*pack, frame, scratch));
  const char* data = bytes->data.get() + in_frame * kBlockSize;
  return Piece{.frame = std::move(bytes), .data = data, .blocks = count};
}

absl::Status ImageReaderImpl::ReadFromLeaf(uint64_t leaf, uint32_t begin_byte, absl::Span<char> out, Scratch& scratch) {
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<const PlacedBlocks> blocks, GetLeaf(leaf, scratch));
  const auto end_block = static_cast<uint32_t>((begin_byte + out.size() + kBlockSize - 1) / kBlockSize);
  uint32_t block = begin_byte / kBlockSize;
  size_t skip = begin_byte % kBlockSize;
  while (!out.empty()) {
    size_t bytes = std::min(out.size(), kBlockSize - skip);
    if ((*blocks)[block].is_zero()) {
      ::memset(out.data(), 0, bytes);
      ++block;
    } else {
      STILL_ASSIGN_OR_RETURN(Piece piece, GetPiece(*blocks, block, end_block, scratch));
      bytes = std::min(out.size(), piece.blocks * kBlockSize - skip);
      ::memcpy(out.data(), piece.data + skip, bytes);
      block += piece.blocks;
    }
    out.remove_prefix(bytes);
    skip = 0;
  }
  return absl::OkStatus();
}

absl::Status ImageReaderImpl::Read(uint64_t offset, absl::Span<char> out) {
  if (offset > size_ || out.size() > size_ - offset) {
    return absl::OutOfRangeError(absl::StrCat(what_, ": ", out.size(), " bytes at ", offset, " of ", size_));
  }
  std::shared_ptr<Scratch> scratch = pool_.Borrow();
  while (!out.empty()) {
    const uint64_t leaf = offset / kLeafSpan;
    const auto begin = static_cast<uint32_t>(offset % kLeafSpan);
    const size_t size = std::min<uint64_t>(out.size(), kLeafSpan - begin);
    STILL_RETURN_IF_ERROR(Explain(ReadFromLeaf(leaf, begin, out.first(size), *scratch), leaf));
    out.remove_prefix(size);
    offset += size;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ImageExtent>> ImageReaderImpl::Extents(uint64_t offset, uint64_t length) {
  if (offset > size_ || length > size_ - offset) {
    return absl::OutOfRangeError(absl::StrCat(what_, ": ", length, " bytes at ", offset, " of ", size_));
  }
  std::vector<ImageExtent> extents;
  std::shared_ptr<Scratch> scratch = pool_.Borrow();
  const uint64_t end = offset + length;
  for (uint64_t at = offset; at < end;) {
    const uint64_t leaf = at / kLeafSpan;
    auto blocks = GetLeaf(leaf, *scratch);
    if (!blocks.ok()) return Explain(blocks.status(), leaf);
    for (uint64_t leaf_end = std::min(end, (leaf + 1) * kLeafSpan); at < leaf_end;) {
      const bool all_zero = *blocks == ZeroLeaf();
      const uint64_t next = all_zero ? leaf_end : std::min(leaf_end, (at / kBlockSize + 1) * kBlockSize);
      const bool zero = all_zero || (**blocks)[at % kLeafSpan / kBlockSize].is_zero();
      if (extents.empty() || extents.back().zero != zero) extents.push_back({.offset = at, .length = 0, .zero = zero});
      extents.back().length += next - at;
      at = next;
    }
  }
  return extents;
}

absl::Status ImageReaderImpl::RestoreBlocks(int fd, const PlacedBlocks& blocks, uint64_t leaf, uint32_t begin,
                                            uint32_t end, Scratch& scratch) {
  std::vector<Piece> pieces;  // Keeps the frames until they are written.
  std::vector<iovec> vector;
  const uint64_t offset = leaf * kLeafSpan + begin * kBlockSize;
  uint64_t left = size_ - offset;  // The image may end within its last block.
  for (uint32_t block = begin; block < end;) {
    STILL_ASSIGN_OR_RETURN(Piece piece, GetPiece(blocks, block, end, scratch));
    const uint64_t bytes = std::min<uint64_t>(left, piece.blocks * kBlockSize);
    vector.push_back({.iov_base = const_cast<char*>(piece.data), .iov_len = bytes});
    left -= bytes;
    block += piece.blocks;
    pieces.push_back(std::move(piece));
  }
  return WriteVector(fd, absl::MakeSpan(vector), offset);
}

absl::Status ImageReaderImpl::RestoreLeaf(int fd, bool target_is_zero, uint64_t leaf, Scratch& scratch) {
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<const PlacedBlocks> blocks, GetLeaf(leaf, scratch));
  if (target_is_zero && blocks == ZeroLeaf()) return absl::OkStatus();
  const auto leaf_blocks = static_cast<uint32_t>(
      std::min<uint64_t>(kBlocksPerLeaf, (size_ - leaf * kLeafSpan + kBlockSize - 1) / kBlockSize));
  for (uint32_t begin = 0; begin < leaf_blocks;) {
    const bool zero = (*blocks)[begin].is_zero();
    uint32_t end = begin + 1;
    while (end < leaf_blocks && (*blocks)[end].is_zero() == zero) ++end;
    if (!zero) {
      STILL_RETURN_IF_ERROR(RestoreBlocks(fd, *blocks, leaf, begin, end, scratch));
    } else if (!target_is_zero) {
      const uint64_t offset = leaf * kLeafSpan + begin * kBlockSize;
      const uint64_t bytes = std::min(size_ - offset, uint64_t{end - begin} * kBlockSize);
      STILL_RETURN_IF_ERROR(ClearRange(fd, offset, bytes));
    }
    begin = end;
  }
  return absl::OkStatus();
}

absl::Status ImageReaderImpl::RestoreTo(int fd, const RestoreOptions& options) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) return ErrnoStatus(errno, "stat restored image");
  if (S_ISREG(status.st_mode) && static_cast<uint64_t>(status.st_size) < size_ &&
      ::ftruncate(fd, static_cast<off_t>(size_)) != 0) {
    return ErrnoStatus(errno, "extend restored image");
  }
  absl::Mutex progress_mutex;
  uint64_t done = 0;
  return pool_.ParallelFor(TreeShape(size_).leaves, [&](uint64_t leaf, Scratch& scratch) -> absl::Status {
    STILL_RETURN_IF_ERROR(Explain(RestoreLeaf(fd, options.target_is_zero, leaf, scratch), leaf));
    absl::MutexLock lock(&progress_mutex);
    done += std::min(kLeafSpan, size_ - leaf * kLeafSpan);
    if (options.progress && !options.progress(done)) return absl::CancelledError("restore: cancelled");
    return absl::OkStatus();
  });
}

}  // namespace still::store
