// Key slots come from untrusted storage. The input is parsed as it is, and once more with its checksum mended, so that
// the fuzzer gets past it; the repository's keys are fixed, so that mutations of sealed descriptions are met, too.
// Argon2id itself is not run: it would cost a second for each input, and nothing before it depends on it.
#include <openssl/sha.h>

#include <cstdint>
#include <string>

#include "base/check.h"
#include "store/crypto/key_slot.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* keys =
      new still::RepositoryKeys(still::RepositoryKeys::FromMaster(still::SecretBytes::Copy(std::string(32, '\x07'))));
  std::string slot(reinterpret_cast<const char*>(data), size);
  (void)still::ParseKeySlotHeader(slot);
  if (slot.size() > SHA256_DIGEST_LENGTH) {
    size_t hashed = slot.size() - SHA256_DIGEST_LENGTH;
    SHA256(data, hashed, reinterpret_cast<unsigned char*>(slot.data()) + hashed);
  }
  absl::StatusOr<still::KeySlotHeader> header = still::ParseKeySlotHeader(slot);
  if (!header.ok()) return 0;
  // What a reader accepts stays within the bounds it promises.
  STILL_CHECK(header->cost.memory_kib <= still::kMaxKeyMemoryKib && header->cost.passes <= still::kMaxKeyPasses);
  (void)still::DescribeKeySlot("keys/0123456789abcdef", slot, *keys);
  return 0;
}
