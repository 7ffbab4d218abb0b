#include "store/block/frame.h"

#define XXH_STATIC_LINKING_ONLY  // For a state on the stack.
#include <xxhash.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "store/block/bytes.h"
#include "store/block/x86_filter.h"

namespace still::store {
namespace {

constexpr char kMagic[] = "SPF1";
constexpr uint8_t kVersion = 1;
constexpr uint8_t kFilteredVersion = 2;
constexpr uint8_t kCompressed = 1;
constexpr uint8_t kEncrypted = 2;
constexpr uint8_t kFiltered = 4;
// A payload is code when the filter changes one address in so many bytes. With fewer, what it changes by accident in
// other data costs more than it gains (measured in groups of disk images and RAM).
constexpr size_t kBytesPerAddress = 128;
constexpr size_t kChecksumAt = 24;
constexpr size_t kMaxDataFrame = 256 * 1024 + 64;
constexpr size_t kMaxOtherFrame = 16 * 1024 * 1024;

absl::Status Damaged(absl::string_view what) { return absl::DataLossError(absl::StrCat("frame: ", what)); }

SealedKind SealedKindOf(FrameKind kind) {
  switch (kind) {
    case FrameKind::kGroup:
    case FrameKind::kNodes:
    case FrameKind::kFooter:
      return SealedKind::kPack;
    case FrameKind::kManifest:
      return SealedKind::kManifest;
    case FrameKind::kConfig:
    case FrameKind::kCondemned:
    case FrameKind::kHold:
    case FrameKind::kForgotten:
      return SealedKind::kState;
  }
  STILL_CHECK(false);
}

std::string AssociatedData(absl::string_view header, const FrameSeal& seal) {
  std::string data(header.substr(0, kChecksumAt));
  data.append(seal.object.data(), seal.object.size());
  return data;
}

uint64_t Checksum(absl::string_view frame) {
  // One state a thread: XXH3_createState would allocate for every frame. The state is aligned as xxhash wants it.
  alignas(64) thread_local XXH3_state_t state;
  XXH3_64bits_reset(&state);
  XXH3_64bits_update(&state, frame.data(), kChecksumAt);
  XXH3_64bits_update(&state, frame.data() + kFrameHeaderSize, frame.size() - kFrameHeaderSize);
  return XXH3_64bits_digest(&state);
}

bool ChecksumMatches(absl::string_view frame) {
  return Checksum(frame) == LoadInt<uint64_t>(frame.data() + kChecksumAt);
}

}  // namespace

size_t MaxPlainSize(FrameKind kind) {
  return kind == FrameKind::kGroup || kind == FrameKind::kNodes ? kMaxDataFrame : kMaxOtherFrame;
}

absl::StatusOr<FrameHeader> ParseFrameHeader(FrameKind kind, absl::string_view header) {
  if (header.size() < kFrameHeaderSize) return Damaged("shorter than its header");
  if (header.substr(0, 4) != kMagic) return Damaged("no magic number where a frame should begin");
  if (header[4] != static_cast<char>(kind)) {
    return Damaged(absl::StrCat("of kind ", static_cast<int>(header[4]), " instead of ", static_cast<int>(kind)));
  }
  if (static_cast<uint8_t>(header[5]) > (kind == FrameKind::kGroup ? kFilteredVersion : kVersion)) {
    return absl::FailedPreconditionError("frame: written by a newer version of this program; update it");
  }
  auto flags = static_cast<uint8_t>(header[6]);
  const bool filtered = header[5] == kFilteredVersion;
  const uint8_t always = filtered ? kCompressed | kFiltered : 0;
  const uint8_t allowed = always | kCompressed | kEncrypted;
  if (header[5] == 0 || (flags & always) != always || (flags & ~allowed) != 0 || header[7] != 0 ||
      LoadInt<uint32_t>(header.data() + 20) != 0) {
    return Damaged("impossible header");
  }
  FrameHeader parsed = {.kind = kind,
                        .compressed = (flags & kCompressed) != 0,
                        .encrypted = (flags & kEncrypted) != 0,
                        .filtered = filtered,
                        .stored_size = LoadInt<uint32_t>(header.data() + 8),
                        .plain_size = LoadInt<uint32_t>(header.data() + 12),
                        .position = LoadInt<uint32_t>(header.data() + 16)};
  const size_t extra = parsed.encrypted ? RepositoryKeys::kSealedExtra : 0;
  if (parsed.plain_size > MaxPlainSize(kind) || parsed.stored_size < extra ||
      parsed.stored_size > parsed.plain_size + extra ||
      (!parsed.compressed && parsed.stored_size != parsed.plain_size + extra)) {
    return Damaged("impossible size");
  }
  return parsed;
}

absl::StatusOr<FrameHeader> ParseHeaderOfFrame(FrameKind kind, absl::string_view frame) {
  auto header = ParseFrameHeader(kind, frame);
  if (absl::IsFailedPrecondition(header.status()) && !ChecksumMatches(frame)) return Damaged("checksum does not match");
  return header;
}

FrameCodec::FrameCodec(Compression compression) : compressor_(ZSTD_createCCtx()), decompressor_(ZSTD_createDCtx()) {
  STILL_CHECK(compressor_ != nullptr && decompressor_ != nullptr);
  ApplyCompression(compression);
}

FrameCodec::~FrameCodec() {
  ZSTD_freeCCtx(compressor_);
  ZSTD_freeDCtx(decompressor_);
}

void FrameCodec::set_compression(Compression compression) {
  if (compression != compression_) ApplyCompression(compression);
}

void FrameCodec::ApplyCompression(Compression compression) {
  compression_ = compression;
  auto set = [this](ZSTD_cParameter parameter, int value) {
    STILL_CHECK(ZSTD_isError(ZSTD_CCtx_setParameter(compressor_, parameter, value)) == 0);
  };
  STILL_CHECK(ZSTD_isError(ZSTD_CCtx_reset(compressor_, ZSTD_reset_session_and_parameters)) == 0);
  switch (compression) {
    case Compression::kDefault:
      // Level 3 with tables of 2^15 instead of 2^16, which stay in a core's own cache: 10 % less time for 0.3 % more.
      set(ZSTD_c_compressionLevel, 3);
      set(ZSTD_c_hashLog, 15);
      set(ZSTD_c_chainLog, 15);
      return;
    case Compression::kFast:
      // Level 1 looks for matches of 6 bytes in a table of 2^14. Disk images are made of binaries and text: with
      // shorter matches and twice the table, groups of them are 2.3 % smaller for 9 % more time.
      set(ZSTD_c_compressionLevel, 1);
      set(ZSTD_c_hashLog, 15);
      set(ZSTD_c_minMatch, 5);
      return;
    case Compression::kSmall:
      // The next levels gain little more in a group: 9 another 0.4 %, 12 another 1 % for five times the time.
      set(ZSTD_c_compressionLevel, 8);
      return;
  }
}

FrameCodec::Compressed FrameCodec::Compress(FrameKind kind, absl::string_view payload, char* to) {
  bool filtered = false;
  if (kind == FrameKind::kGroup) {
    filtered_.assign(payload.data(), payload.size());
    filtered = ApplyX86Filter(absl::MakeSpan(filtered_)) * kBytesPerAddress >= payload.size();
  }
  const char* from = filtered ? filtered_.data() : payload.data();
  // No room for more than one byte less: zstd then gives up where it would not pay.
  const size_t size = ZSTD_compress2(compressor_, to, payload.size() - 1, from, payload.size());
  if (ZSTD_isError(size)) return {};
  return {.bytes = {to, size}, .filtered = filtered};
}

void FrameCodec::Encode(FrameKind kind, FrameSeal seal, bool compress, absl::string_view payload, std::string& out) {
  STILL_CHECK(payload.size() <= MaxPlainSize(kind));
  const bool encrypt = seal.keys != nullptr;
  const size_t extra = encrypt ? RepositoryKeys::kSealedExtra : 0;
  const size_t begin = out.size();
  out.resize(begin + kFrameHeaderSize + payload.size() + extra);
  char* header = out.data() + begin;
  char* body = header + kFrameHeaderSize;
  Compressed compressed;
  if (compress && !payload.empty()) {
    if (encrypt) inner_.resize(std::max(inner_.size(), payload.size()));
    compressed = Compress(kind, payload, encrypt ? inner_.data() : body);
  }
  const bool is_compressed = !compressed.bytes.empty();
  const absl::string_view stored = is_compressed ? compressed.bytes : payload;
  const auto stored_size = static_cast<uint32_t>(stored.size() + extra);
  const auto plain_size = static_cast<uint32_t>(payload.size());
  std::memcpy(header, kMagic, 4);
  header[4] = static_cast<char>(kind);
  header[5] = static_cast<char>(compressed.filtered ? kFilteredVersion : kVersion);
  header[6] = static_cast<char>((is_compressed ? kCompressed : 0) | (encrypt ? kEncrypted : 0) |
                                (compressed.filtered ? kFiltered : 0));
  header[7] = 0;
  std::memcpy(header + 8, &stored_size, sizeof(stored_size));
  std::memcpy(header + 12, &plain_size, sizeof(plain_size));
  std::memcpy(header + 16, &seal.position, sizeof(seal.position));
  std::memset(header + 20, 0, 4);
  if (encrypt) {
    seal.keys->Seal(SealedKindOf(kind), AssociatedData({header, kChecksumAt}, seal), stored,
                    absl::MakeSpan(body, stored_size));
  } else if (!is_compressed) {
    stored.copy(body, stored.size());
  }
  out.resize(begin + kFrameHeaderSize + stored_size);
  const uint64_t checksum = Checksum({out.data() + begin, out.size() - begin});
  std::memcpy(out.data() + begin + kChecksumAt, &checksum, sizeof(checksum));
}

absl::Status FrameCodec::Decode(FrameKind kind, FrameSeal seal, absl::string_view frame, absl::Span<char> out) {
  STILL_ASSIGN_OR_RETURN(FrameHeader header, ParseHeaderOfFrame(kind, frame));
  if (frame.size() != kFrameHeaderSize + header.stored_size) return Damaged("not as long as its header says");
  if (header.position != seal.position) return Damaged("not where it belongs");
  if (out.size() != header.plain_size) return Damaged("not of the size that was expected");
  if (!ChecksumMatches(frame)) return Damaged("checksum does not match");
  if (header.encrypted != (seal.keys != nullptr)) {
    return Damaged(header.encrypted ? "encrypted in a repository without encryption" : "not encrypted");
  }
  absl::string_view stored = frame.substr(kFrameHeaderSize);
  if (header.encrypted) {
    const size_t size = stored.size() - RepositoryKeys::kSealedExtra;
    if (header.compressed) inner_.resize(std::max(inner_.size(), size));
    absl::Span<char> opened = header.compressed ? absl::MakeSpan(inner_).first(size) : out;
    STILL_RETURN_IF_ERROR(seal.keys->Open(SealedKindOf(kind), AssociatedData(frame, seal), stored, opened));
    if (!header.compressed) return absl::OkStatus();
    stored = {opened.data(), opened.size()};
  }
  if (!header.compressed) {
    stored.copy(out.data(), out.size());
    return absl::OkStatus();
  }
  STILL_RETURN_IF_ERROR(Decompress(stored, out));
  if (header.filtered) UndoX86Filter(out);
  return absl::OkStatus();
}

absl::StatusOr<std::string> FrameCodec::Decode(FrameKind kind, FrameSeal seal, absl::string_view frame) {
  STILL_ASSIGN_OR_RETURN(FrameHeader header, ParseHeaderOfFrame(kind, frame));
  // Not before it is known that the frame really is that long: a header alone must not make us allocate.
  if (frame.size() != kFrameHeaderSize + header.stored_size) return Damaged("not as long as its header says");
  std::string out(header.plain_size, '\0');
  STILL_RETURN_IF_ERROR(Decode(kind, seal, frame, absl::MakeSpan(out)));
  return out;
}

absl::Status FrameCodec::Decompress(absl::string_view stored, absl::Span<char> out) {
  size_t result = ZSTD_decompressDCtx(decompressor_, out.data(), out.size(), stored.data(), stored.size());
  if (ZSTD_isError(result) || result != out.size()) return Damaged("does not decompress to what was stored");
  return absl::OkStatus();
}

}  // namespace still::store
