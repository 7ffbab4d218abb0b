// Frames: the envelope around everything that is stored (docs/format/repository.md, "Frame"): header, checksum,
// compression, encryption. Knows nothing of what it carries.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/status.h"
#include "store/block/compression.h"
#include "store/crypto/repository_keys.h"

typedef struct ZSTD_CCtx_s ZSTD_CCtx;
typedef struct ZSTD_DCtx_s ZSTD_DCtx;

namespace still::store {

enum class FrameKind : uint8_t {
  kConfig = 1,
  kGroup = 2,
  kNodes = 3,
  kFooter = 4,
  kManifest = 5,
  kCondemned = 8,
  kHold = 9,
  kForgotten = 10
};

inline constexpr size_t kFrameHeaderSize = 32;
// Of a footer in its pack; see FrameSeal.
inline constexpr uint32_t kFooterPosition = 0xffffffff;

// Where a frame belongs: part of its header, and with encryption what it opens with.
struct FrameSeal {
  const RepositoryKeys* keys = nullptr;  // nullptr in a repository without encryption.
  absl::string_view object;              // Its name; borrowed for the call.
  uint32_t position = 0;                 // In the object.
};

struct FrameHeader {
  FrameKind kind;
  bool compressed = false;
  bool encrypted = false;
  bool filtered = false;
  uint32_t stored_size = 0;  // Bytes after the header.
  uint32_t plain_size = 0;
  uint32_t position = 0;
};

// Largest plain size of a kind.
size_t MaxPlainSize(FrameKind kind);
// Checks everything that can be checked without the payload. DATA_LOSS; FAILED_PRECONDITION for a newer version.
absl::StatusOr<FrameHeader> ParseFrameHeader(FrameKind kind, absl::string_view header);
// The same of a whole frame. A newer version is believed if the checksum matches: else a bit flipped, and it is DATA_LOSS.
absl::StatusOr<FrameHeader> ParseHeaderOfFrame(FrameKind kind, absl::string_view frame);

// Encodes and decodes frames. Not thread-safe: one per thread, because it owns the compression contexts.
class FrameCodec {
 public:
  explicit FrameCodec(Compression compression = Compression::kDefault);
  ~FrameCodec();
  FrameCodec(const FrameCodec&) = delete;
  FrameCodec& operator=(const FrameCodec&) = delete;

  void set_compression(Compression compression);

  // Appends the frame to `out`. `compress`: only kept if it makes the payload smaller.
  void Encode(FrameKind kind, FrameSeal seal, bool compress, absl::string_view payload, std::string& out);
  // `frame` is exactly one frame. Fills `out`, which must have the header's plain_size bytes. DATA_LOSS if anything at
  // all is wrong with it, FAILED_PRECONDITION if a newer version wrote it; then `out` must not be used.
  absl::Status Decode(FrameKind kind, FrameSeal seal, absl::string_view frame, absl::Span<char> out);
  absl::StatusOr<std::string> Decode(FrameKind kind, FrameSeal seal, absl::string_view frame);

 private:
  // What is stored instead of a payload; `bytes` is empty if that would not be smaller.
  struct Compressed {
    absl::string_view bytes;
    bool filtered = false;
  };

  void ApplyCompression(Compression compression);
  // Into `to`, which has room for the payload.
  Compressed Compress(FrameKind kind, absl::string_view payload, char* to);
  absl::Status Decompress(absl::string_view stored, absl::Span<char> out);

  Compression compression_;
  ZSTD_CCtx* compressor_;
  ZSTD_DCtx* decompressor_;
  std::string inner_;     // Compressed but not encrypted: on the way in or out.
  std::string filtered_;  // Filtered but not compressed.
};

}  // namespace still::store
