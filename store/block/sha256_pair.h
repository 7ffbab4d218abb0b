// SHA-256 of two messages at once.
//
// A round of SHA-256 needs the result of the round before, so the processor's SHA instructions spend half of their time
// waiting; the rounds of a second message fit into the gaps. Two blocks take 1.1 times as long as one.
//
// Why not a library: Debian's libipsec-mb 1.3 is as fast only with AVX-512 and sixteen blocks in hand (2.8 GB/s here); with
// four of them, which is what a mostly empty chunk leaves, it reaches 0.8, and OpenSSL alone 1.7.
//
// Only for x86-64 processors that have those instructions; identity.cc has OpenSSL do it everywhere else, and the tests
// hold the two against each other.
#pragma once

#include <array>
#include <cstddef>

namespace still::store {

using Sha256Digest = std::array<unsigned char, 32>;

// Whether this processor can. Asked once, then remembered.
bool CanHashPairs();

// The digests of prefix ‖ first and of prefix ‖ second. `prefix` has 64 bytes, the messages `size`, a multiple of 64.
// Only where CanHashPairs().
std::array<Sha256Digest, 2> HashPair(const char* prefix, const char* first, const char* second, size_t size);

}  // namespace still::store
