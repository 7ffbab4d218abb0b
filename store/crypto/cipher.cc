#include "store/crypto/cipher.h"

#include <openssl/evp.h>
#include <sodium.h>

#include <atomic>
#include <limits>
#include <utility>

#include "base/check.h"
#include "store/crypto/derive.h"

namespace still {
namespace {

constexpr size_t kNonceBytes = 12;  // SP 800-38D, 8.2.1: 96 bits, here four zero bytes and the position.
// The limit of EVP's int lengths, below that of GCM (2^36 - 32).
constexpr size_t kMaxPlainBytes = std::numeric_limits<int>::max() - ObjectCipher::kTagBytes;

// An expanded key of one direction, reused while its thread stays with one cipher. OpenSSL wipes it when it is freed.
class ThreadContext {
 public:
  ThreadContext() : context_(EVP_CIPHER_CTX_new()) { STILL_CHECK(context_ != nullptr); }
  ThreadContext(const ThreadContext&) = delete;
  ThreadContext& operator=(const ThreadContext&) = delete;
  ~ThreadContext() { EVP_CIPHER_CTX_free(context_); }

  EVP_CIPHER_CTX* Prepare(uint64_t serial, const SecretBytes& key, const unsigned char* nonce, int encrypt) {
    // Fetched once: an implicit fetch for every frame would take a lock and cost more than sealing 4 KiB.
    static const EVP_CIPHER* cipher = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
    STILL_CHECK(cipher != nullptr);
    if (serial_ == serial) {
      STILL_CHECK(EVP_CipherInit_ex2(context_, nullptr, nullptr, nonce, encrypt, nullptr) == 1);
    } else {
      STILL_CHECK(EVP_CipherInit_ex2(context_, cipher, key.bytes(), nonce, encrypt, nullptr) == 1);
      serial_ = serial;
    }
    return context_;
  }

 private:
  EVP_CIPHER_CTX* context_;
  uint64_t serial_ = 0;
};

void PositionNonce(uint64_t position, unsigned char* nonce) {
  for (size_t i = 0; i < kNonceBytes; ++i) nonce[i] = i < 8 ? static_cast<unsigned char>(position >> (8 * i)) : 0;
}

const unsigned char* Bytes(absl::string_view text) { return reinterpret_cast<const unsigned char*>(text.data()); }

void Authenticate(EVP_CIPHER_CTX* context, absl::string_view associated) {
  int length = 0;
  if (associated.empty()) return;
  STILL_CHECK(associated.size() <= kMaxPlainBytes);
  STILL_CHECK(EVP_CipherUpdate(context, nullptr, &length, Bytes(associated), static_cast<int>(associated.size())) == 1);
}

uint64_t NextSerial() {
  static std::atomic<uint64_t> next{1};
  return next.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

ObjectCipher::ObjectCipher(SecretBytes key, std::string salt)
    : key_(std::move(key)), salt_(std::move(salt)), serial_(NextSerial()) {
  STILL_CHECK(key_.size() == kKeyBytes);
}

void ObjectCipher::Seal(uint64_t position, absl::string_view associated, absl::string_view plain,
                        absl::Span<char> out) const {
  STILL_CHECK(plain.size() <= kMaxPlainBytes && out.size() == plain.size() + kTagBytes);
  thread_local ThreadContext sealing;
  unsigned char nonce[kNonceBytes];
  PositionNonce(position, nonce);
  EVP_CIPHER_CTX* context = sealing.Prepare(serial_, key_, nonce, 1);
  Authenticate(context, associated);
  auto* to = reinterpret_cast<unsigned char*>(out.data());
  int length = 0;
  if (!plain.empty()) {
    STILL_CHECK(EVP_CipherUpdate(context, to, &length, Bytes(plain), static_cast<int>(plain.size())) == 1);
  }
  STILL_CHECK(static_cast<size_t>(length) == plain.size());
  int rest = 0;
  STILL_CHECK(EVP_CipherFinal_ex(context, to + length, &rest) == 1 && rest == 0);
  STILL_CHECK(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kTagBytes, to + length) == 1);
}

absl::Status ObjectCipher::Open(uint64_t position, absl::string_view associated, absl::string_view sealed,
                                absl::Span<char> out) const {
  if (sealed.size() < kTagBytes || sealed.size() - kTagBytes > kMaxPlainBytes) {
    return absl::DataLossError("open sealed frame: impossible length");
  }
  const size_t size = sealed.size() - kTagBytes;
  STILL_CHECK(out.size() == size);
  thread_local ThreadContext opening;
  unsigned char nonce[kNonceBytes];
  PositionNonce(position, nonce);
  EVP_CIPHER_CTX* context = opening.Prepare(serial_, key_, nonce, 0);
  Authenticate(context, associated);
  // A copy, because OpenSSL takes the tag through a pointer to non-const.
  unsigned char tag[kTagBytes];
  sealed.copy(reinterpret_cast<char*>(tag), kTagBytes, size);
  auto* to = reinterpret_cast<unsigned char*>(out.data());
  int length = 0;
  if (size > 0) {
    STILL_CHECK(EVP_CipherUpdate(context, to, &length, Bytes(sealed), static_cast<int>(size)) == 1);
  }
  STILL_CHECK(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kTagBytes, tag) == 1);
  int rest = 0;
  if (EVP_CipherFinal_ex(context, to + length, &rest) == 1) return absl::OkStatus();
  // What did not authenticate must not be seen, not even by accident.
  if (size > 0) sodium_memzero(out.data(), size);
  return absl::DataLossError("open sealed frame: not what was sealed here (damaged, moved or forged)");
}

}  // namespace still
