// How much work is put into making what is stored smaller. A repository has one setting, which only those who write
// ask for: readers need to know nothing of it.
#pragma once

#include <cstdint>

namespace still::store {

// Measured with everything else the same on a root image (benchmarks/BUDGETS.md). Persisted: numbers are never reused.
enum class Compression : uint8_t {
  kDefault = 0,
  kFast = 1,   // 3 % more bytes for three quarters of the processor time.
  kSmall = 2,  // 7 % fewer bytes for four times the processor time.
};

}  // namespace still::store
