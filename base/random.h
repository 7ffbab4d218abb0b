// Randomness from the kernel (getrandom). Logic that must be repeatable in tests takes its seed or ids as arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace still {

// Fills `size` bytes; cannot fail on the kernels we support (getrandom(2) with flags 0 after boot).
void RandomBytes(void* out, size_t size);
uint64_t RandomU64();
// A random (version 4) UUID in the usual text form, 36 lower-case characters.
std::string RandomUuid();

}  // namespace still
