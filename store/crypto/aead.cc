#include "store/crypto/aead.h"

#include <openssl/evp.h>
#include <sodium.h>

#include <limits>

#include "base/check.h"
#include "store/crypto/derive.h"

namespace still {
namespace {

constexpr unsigned char kNonce[12] = {};
// The limit of EVP's int lengths, below that of GCM (2^36 - 32).
constexpr size_t kMaxBytes = std::numeric_limits<int>::max() - kTagBytes;

// One OpenSSL context for each thread: making one costs more than sealing 4 KiB. Holds the last expanded key of its
// thread, which is good for one frame; OpenSSL wipes it when the thread ends.
class ThreadContext {
 public:
  ThreadContext() : context_(EVP_CIPHER_CTX_new()) { STILL_CHECK(context_ != nullptr); }
  ThreadContext(const ThreadContext&) = delete;
  ThreadContext& operator=(const ThreadContext&) = delete;
  ~ThreadContext() { EVP_CIPHER_CTX_free(context_); }

  // Returns the context, ready for the text, with `associated` taken in.
  EVP_CIPHER_CTX* Begin(absl::string_view key, absl::string_view associated, int encrypt) {
    // Fetched once: an implicit fetch for each frame takes a global lock.
    static const EVP_CIPHER* cipher = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
    STILL_CHECK(cipher != nullptr && key.size() == kKeyBytes && associated.size() <= kMaxBytes);
    // The cipher itself is set once; later calls only bring a key.
    const EVP_CIPHER* unset = cipher_set_ ? nullptr : cipher;
    STILL_CHECK(EVP_CipherInit_ex2(context_, unset, UnsignedBytes(key), kNonce, encrypt, nullptr) == 1);
    cipher_set_ = true;
    int length = 0;
    if (!associated.empty()) {
      STILL_CHECK(EVP_CipherUpdate(context_, nullptr, &length, UnsignedBytes(associated),
                                   static_cast<int>(associated.size())) == 1);
    }
    return context_;
  }

 private:
  EVP_CIPHER_CTX* context_;
  bool cipher_set_ = false;
};

// Encrypts or decrypts all of `text` to `out`.
void Transform(EVP_CIPHER_CTX* context, absl::string_view text, unsigned char* out) {
  if (text.empty()) return;
  int length = 0;
  STILL_CHECK(EVP_CipherUpdate(context, out, &length, UnsignedBytes(text), static_cast<int>(text.size())) == 1);
  STILL_CHECK(static_cast<size_t>(length) == text.size());  // GCM is a stream: nothing is held back.
}

}  // namespace

void SealOnce(absl::string_view key, absl::string_view associated, absl::string_view plain, absl::Span<char> out) {
  STILL_CHECK(plain.size() <= kMaxBytes && out.size() == plain.size() + kTagBytes);
  thread_local ThreadContext sealing;
  EVP_CIPHER_CTX* context = sealing.Begin(key, associated, 1);
  auto* to = reinterpret_cast<unsigned char*>(out.data());
  Transform(context, plain, to);
  int rest = 0;
  unsigned char* tag = to + plain.size();
  STILL_CHECK(EVP_CipherFinal_ex(context, tag, &rest) == 1 && rest == 0);
  STILL_CHECK(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kTagBytes, tag) == 1);
}

absl::Status OpenOnce(absl::string_view key, absl::string_view associated, absl::string_view sealed,
                      absl::Span<char> out) {
  if (sealed.size() < kTagBytes || sealed.size() - kTagBytes > kMaxBytes) {
    return absl::DataLossError("open sealed bytes: impossible length");
  }
  const size_t size = sealed.size() - kTagBytes;
  STILL_CHECK(out.size() == size);
  thread_local ThreadContext opening;
  EVP_CIPHER_CTX* context = opening.Begin(key, associated, 0);
  // A copy, because OpenSSL takes the tag through a pointer to non-const, and `out` may lie over `sealed`.
  unsigned char tag[kTagBytes];
  sealed.copy(reinterpret_cast<char*>(tag), kTagBytes, size);
  Transform(context, sealed.substr(0, size), reinterpret_cast<unsigned char*>(out.data()));
  STILL_CHECK(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kTagBytes, tag) == 1);
  unsigned char none[kTagBytes];
  int rest = 0;
  if (EVP_CipherFinal_ex(context, none, &rest) == 1) return absl::OkStatus();
  // What did not authenticate must not be seen, not even by accident.
  if (size > 0) sodium_memzero(out.data(), size);
  return absl::DataLossError("open sealed bytes: damaged, moved or forged");
}

}  // namespace still
