#include "store/crypto/repository_keys.h"

#include <sodium.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/random.h"
#include "store/crypto/derive.h"

namespace still {
namespace {

// Persisted: docs/format/keys.md. The last digit is the version of the derivation.
constexpr absl::string_view kIdInfo = "stillpoint ids 1";
constexpr absl::string_view kPackInfo = "stillpoint packs 1";
constexpr absl::string_view kManifestInfo = "stillpoint manifests 1";
constexpr absl::string_view kStateInfo = "stillpoint state 1";
constexpr absl::string_view kFrameInfo = "stillpoint frame 1";

// The key of one frame, on the stack for as long as it is used: this runs for every frame, and a SecretBytes would cost
// more than the derivation.
class FrameKey {
 public:
  FrameKey(absl::string_view kind_key, absl::string_view salt) {
    static_assert(sizeof bytes_ == crypto_auth_hmacsha256_BYTES && sizeof bytes_ == kKeyBytes);
    crypto_auth_hmacsha256_state state;
    crypto_auth_hmacsha256_init(&state, Bytes(kind_key), kind_key.size());
    crypto_auth_hmacsha256_update(&state, Bytes(kFrameInfo), kFrameInfo.size());
    crypto_auth_hmacsha256_update(&state, Bytes(salt), salt.size());
    crypto_auth_hmacsha256_final(&state, bytes_);
    sodium_memzero(&state, sizeof state);
  }
  FrameKey(const FrameKey&) = delete;
  FrameKey& operator=(const FrameKey&) = delete;
  ~FrameKey() { sodium_memzero(bytes_, sizeof bytes_); }
  absl::string_view view() const { return {reinterpret_cast<const char*>(bytes_), sizeof bytes_}; }

 private:
  static const unsigned char* Bytes(absl::string_view text) {
    return reinterpret_cast<const unsigned char*>(text.data());
  }
  unsigned char bytes_[32];
};

}  // namespace

RepositoryKeys RepositoryKeys::Generate() { return RepositoryKeys(SecretBytes::Random(kKeyBytes)); }

RepositoryKeys RepositoryKeys::FromMaster(SecretBytes master) { return RepositoryKeys(std::move(master)); }

RepositoryKeys::RepositoryKeys(SecretBytes master)
    : master_(std::move(master)),
      id_key_(DeriveKey(master_.view(), "", kIdInfo)),
      pack_key_(DeriveKey(master_.view(), "", kPackInfo)),
      manifest_key_(DeriveKey(master_.view(), "", kManifestInfo)),
      state_key_(DeriveKey(master_.view(), "", kStateInfo)) {
  STILL_CHECK(master_.size() == kKeyBytes);
}

absl::string_view RepositoryKeys::KindKey(SealedKind kind) const {
  switch (kind) {
    case SealedKind::kPack:
      return pack_key_.view();
    case SealedKind::kManifest:
      return manifest_key_.view();
    case SealedKind::kState:
      return state_key_.view();
  }
  STILL_CHECK(false);
}

void RepositoryKeys::Seal(SealedKind kind, absl::string_view associated, absl::string_view plain,
                          absl::Span<char> out) const {
  STILL_CHECK(out.size() == plain.size() + kSealedExtra);
  RandomBytes(out.data(), kSaltBytes);
  FrameKey key(KindKey(kind), absl::string_view(out.data(), kSaltBytes));
  SealOnce(key.view(), associated, plain, out.subspan(kSaltBytes));
}

absl::Status RepositoryKeys::Open(SealedKind kind, absl::string_view associated, absl::string_view sealed,
                                  absl::Span<char> out) const {
  if (sealed.size() < kSealedExtra) return absl::DataLossError("open sealed bytes: too short");
  STILL_CHECK(out.size() == sealed.size() - kSealedExtra);
  FrameKey key(KindKey(kind), sealed.substr(0, kSaltBytes));
  return OpenOnce(key.view(), associated, sealed.substr(kSaltBytes), out);
}

std::string RepositoryKeys::SealWhole(SealedKind kind, absl::string_view name, absl::string_view plain) const {
  std::string sealed(plain.size() + kSealedExtra, '\0');
  Seal(kind, name, plain, absl::MakeSpan(sealed));
  return sealed;
}

absl::StatusOr<std::string> RepositoryKeys::OpenWhole(SealedKind kind, absl::string_view name,
                                                      absl::string_view sealed) const {
  if (sealed.size() < kSealedExtra) {
    return absl::DataLossError(absl::StrCat("object ", name, ": too short to be sealed"));
  }
  std::string plain(sealed.size() - kSealedExtra, '\0');
  STILL_RETURN_IF_ERROR(Annotate(Open(kind, name, sealed, absl::MakeSpan(plain)), absl::StrCat("object ", name)));
  return plain;
}

}  // namespace still
