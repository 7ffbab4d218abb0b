#include "store/block/x86_filter.h"

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace still::store {
namespace {

// No instruction is looked for in the last bytes, so that each has its operand, and 17 bytes can be loaded from it on.
constexpr size_t kTail = 16;
constexpr size_t kOperandSize = 4;

// Opcodes, as masks over the bits that matter: E8 is call, E9 jmp; 89, 8B and 8D (and 8F, which is rare) are mov and
// lea, and their operand is a distance if the byte after them says "relative to the instruction" (mod 00, rm 101).
constexpr uint8_t kBranchMask = 0xfe;
constexpr uint8_t kBranch = 0xe8;
constexpr uint8_t kMoveMask = 0xf9;
constexpr uint8_t kMove = 0x89;
constexpr uint8_t kModRmMask = 0xc7;
constexpr uint8_t kRelative = 0x05;

bool IsBranch(const char* at) { return (static_cast<uint8_t>(*at) & kBranchMask) == kBranch; }

#if defined(__SSE2__)
__m128i Matches(__m128i bytes, uint8_t mask, uint8_t value) {
  return _mm_cmpeq_epi8(_mm_and_si128(bytes, _mm_set1_epi8(static_cast<char>(mask))),
                        _mm_set1_epi8(static_cast<char>(value)));
}

size_t NextInstruction(const char* data, size_t at, size_t end) {
  for (; at < end; at += sizeof(__m128i)) {
    __m128i bytes;
    __m128i following;
    std::memcpy(&bytes, data + at, sizeof(bytes));
    std::memcpy(&following, data + at + 1, sizeof(following));
    const __m128i moves = _mm_and_si128(Matches(bytes, kMoveMask, kMove), Matches(following, kModRmMask, kRelative));
    const int found = _mm_movemask_epi8(_mm_or_si128(Matches(bytes, kBranchMask, kBranch), moves));
    if (found != 0) return at + static_cast<size_t>(__builtin_ctz(static_cast<unsigned>(found)));
  }
  return end;
}
#else
size_t NextInstruction(const char* data, size_t at, size_t end) {
  for (; at < end; ++at) {
    if (IsBranch(data + at)) return at;
    if ((static_cast<uint8_t>(data[at]) & kMoveMask) == kMove &&
        (static_cast<uint8_t>(data[at + 1]) & kModRmMask) == kRelative) {
      return at;
    }
  }
  return end;
}
#endif

// Adds `change` to the operand if it is a distance that code really has: less than 16 MiB either way. It stays one
// (25 bits with their sign), which is how the inverse knows it.
bool Shift(char* operand, uint32_t change) {
  const auto top = static_cast<uint8_t>(operand[kOperandSize - 1]);
  if (top != 0x00 && top != 0xff) return false;
  uint32_t value;
  std::memcpy(&value, operand, sizeof(value));
  value = (value + change) & 0x01ffffff;
  if ((value & 0x01000000) != 0) value |= 0xfe000000;
  std::memcpy(operand, &value, sizeof(value));
  return true;
}

// After an instruction goes on behind its operand, whether it was changed or not: what decides is then never changed
// by an earlier one, and the inverse decides alike.
template <bool kUndo>
size_t Convert(absl::Span<char> data) {
  if (data.size() <= kTail) return 0;
  const size_t end = data.size() - kTail;
  size_t changed = 0;
  for (size_t at = NextInstruction(data.data(), 0, end); at < end; at = NextInstruction(data.data(), at, end)) {
    at += IsBranch(data.data() + at) ? 1 : 2;
    const auto next = static_cast<uint32_t>(at + kOperandSize);
    if (Shift(data.data() + at, kUndo ? -next : next)) ++changed;
    at += kOperandSize;
  }
  return changed;
}

}  // namespace

size_t ApplyX86Filter(absl::Span<char> data) { return Convert<false>(data); }

void UndoX86Filter(absl::Span<char> data) { Convert<true>(data); }

}  // namespace still::store
