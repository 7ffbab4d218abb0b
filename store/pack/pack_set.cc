#include "store/pack/pack_set.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace still::store {
namespace {

// 128 packs of 10,000 blocks. With a sparse index's hooks it stays under the 64 MiB that finding duplicates may take.
constexpr size_t kFooterCacheBytes = 20 * 1024 * 1024;
// Read from the end at once: trailer, and in most packs the whole footer.
constexpr uint64_t kTailRead = 64 * 1024;

}  // namespace

PackSet::PackSet(ObjectStore& objects, const RepositoryKeys* keys) : objects_(objects), keys_(keys) {}

PackNumber PackSet::Add(const PackName& name) {
  absl::MutexLock lock(&mutex_);
  auto [at, is_new] = numbers_.try_emplace(name, static_cast<PackNumber>(names_.size()));
  if (is_new) names_.push_back(name);
  return at->second;
}

std::optional<PackNumber> PackSet::Find(const PackName& name) const {
  absl::MutexLock lock(&mutex_);
  auto at = numbers_.find(name);
  if (at == numbers_.end()) return std::nullopt;
  return at->second;
}

PackName PackSet::NameOf(PackNumber number) const {
  absl::MutexLock lock(&mutex_);
  STILL_CHECK(number < names_.size());
  return names_[number];
}

absl::StatusOr<std::shared_ptr<const OpenPack>> PackSet::Open(PackNumber number, Scratch& scratch) {
  {
    absl::MutexLock lock(&mutex_);
    if (auto at = footers_.find(number); at != footers_.end()) {
      recency_.splice(recency_.begin(), recency_, at->second.recency);
      return at->second.pack;
    }
  }
  // Two threads may read the same footer at the same time; that costs less than making them wait for each other.
  STILL_ASSIGN_OR_RETURN(std::shared_ptr<const OpenPack> pack, Load(number, scratch));
  absl::MutexLock lock(&mutex_);
  if (!footers_.contains(number)) {
    recency_.push_front(number);
    footers_[number] = {.pack = pack, .recency = recency_.begin()};
    footers_bytes_ += pack->footer.footprint();
  }
  while (footers_bytes_ > kFooterCacheBytes && recency_.size() > 1) {
    auto oldest = footers_.find(recency_.back());
    footers_bytes_ -= oldest->second.pack->footer.footprint();
    footers_.erase(oldest);
    recency_.pop_back();
  }
  return pack;
}

absl::StatusOr<std::shared_ptr<const OpenPack>> PackSet::Load(PackNumber number, Scratch& scratch) const {
  auto pack = std::make_shared<OpenPack>();
  pack->number = number;
  pack->name = NameOf(number);
  pack->object = PackObject(pack->name);
  STILL_RETURN_IF_ERROR(LoadFooter(*pack, pack->object, scratch));
  return pack;
}

absl::StatusOr<std::shared_ptr<const OpenPack>> PackSet::LoadFromCopy(const PackName& name, const std::string& copy,
                                                                      Scratch& scratch) const {
  auto pack = std::make_shared<OpenPack>();
  pack->name = name;
  pack->object = PackObject(name);
  STILL_RETURN_IF_ERROR(LoadFooter(*pack, copy, scratch));
  return pack;
}

absl::Status PackSet::LoadFooter(OpenPack& pack, const std::string& object, Scratch& scratch) const {
  STILL_ASSIGN_OR_RETURN(pack.size, objects_.Size(object));
  return Annotate(ReadFooter(pack, object, scratch), object);
}

absl::Status PackSet::ReadFooter(OpenPack& pack, const std::string& object, Scratch& scratch) const {
  if (pack.size < kPackTrailerSize + kFrameHeaderSize || pack.size > kMaxPackSize) {
    return absl::DataLossError(absl::StrCat("pack: impossible size of ", pack.size, " bytes"));
  }
  // One read gives the trailer and, in most packs, all of the footer.
  const uint64_t tail_size = std::min(pack.size, kTailRead);
  std::string tail(tail_size, '\0');
  STILL_RETURN_IF_ERROR(objects_.GetRange(object, pack.size - tail_size, absl::MakeSpan(tail)));
  absl::string_view trailer_bytes = absl::string_view(tail).substr(tail_size - kPackTrailerSize);
  STILL_ASSIGN_OR_RETURN(PackTrailer trailer, ParseTrailer(trailer_bytes, pack.size));
  if (trailer.footer_size > MaxPlainSize(FrameKind::kFooter)) return absl::DataLossError("pack: footer is too large");
  const uint64_t wanted = trailer.footer_size + kPackTrailerSize;
  if (wanted > tail_size) {
    tail.assign(wanted, '\0');
    STILL_RETURN_IF_ERROR(objects_.GetRange(object, trailer.footer_offset, absl::MakeSpan(tail)));
  }
  absl::string_view frame = absl::string_view(tail).substr(tail.size() - wanted, trailer.footer_size);
  const FrameSeal seal = {.keys = keys_, .object = pack.object, .position = kFooterPosition};
  STILL_ASSIGN_OR_RETURN(std::string payload, scratch.codec.Decode(FrameKind::kFooter, seal, frame));
  STILL_ASSIGN_OR_RETURN(pack.footer, ParseFooter(payload, trailer.footer_offset));
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const FrameBytes>> PackSet::ReadFrame(const OpenPack& pack, uint32_t frame,
                                                                     Scratch& scratch) const {
  STILL_CHECK(frame < pack.footer.frames.size());
  const PackFrame place = pack.footer.frames[frame];
  const bool is_data = pack.footer.kind == PackKind::kData;
  const FrameKind kind = is_data ? FrameKind::kGroup : FrameKind::kNodes;
  const FrameSeal seal = {.keys = keys_, .object = pack.object, .position = frame};
  if (place.size > kFrameHeaderSize + MaxPlainSize(kind) + RepositoryKeys::kSealedExtra) {
    return absl::DataLossError(absl::StrCat(pack.object, ": frame ", frame, " has an impossible size"));
  }
  if (scratch.io.size() < place.size) scratch.io.resize(place.size);
  STILL_RETURN_IF_ERROR(objects_.GetRange(pack.object, place.offset, absl::MakeSpan(scratch.io).first(place.size)));
  absl::string_view stored(scratch.io.data(), place.size);
  auto decode = [&]() -> absl::StatusOr<std::shared_ptr<const FrameBytes>> {
    STILL_ASSIGN_OR_RETURN(FrameHeader header, ParseHeaderOfFrame(kind, stored));
    if (is_data && header.plain_size != pack.footer.BlocksIn(frame) * kBlockSize) {
      return absl::DataLossError("frame: does not hold the blocks that the footer says");
    }
    auto bytes = std::make_shared<FrameBytes>(header.plain_size);
    STILL_RETURN_IF_ERROR(scratch.codec.Decode(kind, seal, stored, absl::MakeSpan(bytes->data.get(), bytes->size)));
    return bytes;
  };
  auto bytes = decode();
  if (!bytes.ok()) return Annotate(bytes.status(), absl::StrCat(pack.object, ": frame ", frame));
  return bytes;
}

void PackSet::Drop(PackNumber number) {
  absl::MutexLock lock(&mutex_);
  auto at = footers_.find(number);
  if (at == footers_.end()) return;
  footers_bytes_ -= at->second.pack->footer.footprint();
  recency_.erase(at->second.recency);
  footers_.erase(at);
}

}  // namespace still::store
