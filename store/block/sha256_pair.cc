#include "store/block/sha256_pair.h"

#include "base/check.h"

#if defined(__x86_64__)

#include <cpuid.h>
#include <immintrin.h>

#include <cstdint>
#include <cstring>

// The compiler may use these instructions here, and only here.
#define STILL_SHA_TARGET __attribute__((target("sha,sse4.1")))
#define STILL_SHA_INLINE STILL_SHA_TARGET __attribute__((always_inline)) inline

namespace still::store {
namespace {

constexpr size_t kShaBlock = 64;
constexpr int kLanes = 2;

// FIPS 180-4, section 4.2.2.
alignas(16) constexpr uint32_t kRoundConstants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// The state, split as the instructions want it, and the sixteen words of the schedule that come next.
struct Lane {
  __m128i abef;
  __m128i cdgh;
  __m128i words[4];
};

STILL_SHA_INLINE void LoadWords(Lane& lane, const char* data) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  for (int i = 0; i < 4; ++i) {
    __m128i words;
    std::memcpy(&words, data + 16 * i, sizeof(words));
    lane.words[i] = _mm_shuffle_epi8(words, big_endian);
  }
}

// Four rounds, and the four words of the schedule that are needed sixteen rounds later.
STILL_SHA_INLINE void FourRounds(Lane& lane, int four) {
  __m128i constants;
  std::memcpy(&constants, kRoundConstants + 4 * four, sizeof(constants));
  const __m128i message = _mm_add_epi32(lane.words[0], constants);
  lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, message);
  lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, _mm_shuffle_epi32(message, 0x0e));
  const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(lane.words[0], lane.words[1]),
                                    _mm_alignr_epi8(lane.words[3], lane.words[2], 4));
  const __m128i next = _mm_sha256msg2_epu32(sum, lane.words[3]);
  lane.words[0] = lane.words[1];
  lane.words[1] = lane.words[2];
  lane.words[2] = lane.words[3];
  lane.words[3] = next;
}

STILL_SHA_INLINE void Compress(Lane& first, Lane& second, const char* first_data, const char* second_data) {
  const Lane before[kLanes] = {first, second};
  LoadWords(first, first_data);
  LoadWords(second, second_data);
#pragma GCC unroll 16
  for (int four = 0; four < 16; ++four) {
    FourRounds(first, four);
    FourRounds(second, four);
  }
  first.abef = _mm_add_epi32(first.abef, before[0].abef);
  first.cdgh = _mm_add_epi32(first.cdgh, before[0].cdgh);
  second.abef = _mm_add_epi32(second.abef, before[1].abef);
  second.cdgh = _mm_add_epi32(second.cdgh, before[1].cdgh);
}

STILL_SHA_INLINE Sha256Digest DigestOf(const Lane& lane) {
  alignas(16) uint32_t abef[4];
  alignas(16) uint32_t cdgh[4];
  _mm_store_si128(reinterpret_cast<__m128i*>(abef), lane.abef);
  _mm_store_si128(reinterpret_cast<__m128i*>(cdgh), lane.cdgh);
  const uint32_t words[8] = {abef[3], abef[2], cdgh[3], cdgh[2], abef[1], abef[0], cdgh[1], cdgh[0]};
  Sha256Digest digest;
  for (size_t i = 0; i < 8; ++i) {
    const uint32_t word = __builtin_bswap32(words[i]);
    std::memcpy(digest.data() + 4 * i, &word, sizeof(word));
  }
  return digest;
}

STILL_SHA_TARGET std::array<Sha256Digest, 2> HashWithInstructions(const char* prefix, const char* first,
                                                                  const char* second, size_t size) {
  // Section 5.3.3, in the order f e b a and h g d c.
  Lane lane = {};
  lane.abef = _mm_set_epi32(0x6a09e667, static_cast<int>(0xbb67ae85), 0x510e527f, static_cast<int>(0x9b05688c));
  lane.cdgh = _mm_set_epi32(0x3c6ef372, static_cast<int>(0xa54ff53a), 0x1f83d9ab, 0x5be0cd19);
  Lane other = lane;
  Compress(lane, other, prefix, prefix);
  for (size_t at = 0; at < size; at += kShaBlock) Compress(lane, other, first + at, second + at);
  // Section 5.1.1: a one, zeros, and the length in bits, in a block of its own.
  char padding[kShaBlock] = {static_cast<char>(0x80)};
  const uint64_t bits = __builtin_bswap64((kShaBlock + size) * 8);
  std::memcpy(padding + kShaBlock - sizeof(bits), &bits, sizeof(bits));
  Compress(lane, other, padding, padding);
  return {DigestOf(lane), DigestOf(other)};
}

bool HasInstructions() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & bit_SSE4_1) == 0 || (ecx & bit_SSSE3) == 0) return false;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ebx & bit_SHA) != 0;
}

}  // namespace

bool CanHashPairs() {
  static const bool can = HasInstructions();
  return can;
}

std::array<Sha256Digest, 2> HashPair(const char* prefix, const char* first, const char* second, size_t size) {
  STILL_CHECK(CanHashPairs() && size % kShaBlock == 0);
  return HashWithInstructions(prefix, first, second, size);
}

}  // namespace still::store

#else

namespace still::store {

bool CanHashPairs() { return false; }

std::array<Sha256Digest, 2> HashPair(const char*, const char*, const char*, size_t) { STILL_CHECK(false); }

}  // namespace still::store

#endif
