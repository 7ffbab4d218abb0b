#include "store/crypto/repository_keys.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/random.h"
#include "store/crypto/derive.h"

namespace still {
namespace {

// Persisted: docs/format/keys.md. The trailing digit is the version of the derivation.
constexpr absl::string_view kIdInfo = "stillpoint ids 1";
constexpr absl::string_view kPackInfo = "stillpoint packs 1";
constexpr absl::string_view kManifestInfo = "stillpoint manifests 1";
constexpr absl::string_view kStateInfo = "stillpoint state 1";
constexpr absl::string_view kObjectInfo = "stillpoint object 1 ";  // Followed by the object's name.

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

ObjectCipher RepositoryKeys::NewObject(SealedKind kind, absl::string_view name) const {
  std::string salt(ObjectCipher::kSaltBytes, '\0');
  RandomBytes(salt.data(), salt.size());
  SecretBytes key = DeriveKey(KindKey(kind), salt, absl::StrCat(kObjectInfo, name));
  return ObjectCipher(std::move(key), std::move(salt));
}

absl::StatusOr<ObjectCipher> RepositoryKeys::ExistingObject(SealedKind kind, absl::string_view name,
                                                            absl::string_view salt) const {
  if (salt.size() != ObjectCipher::kSaltBytes) {
    return absl::DataLossError(absl::StrCat("object ", name, ": salt of ", salt.size(), " bytes"));
  }
  return ObjectCipher(DeriveKey(KindKey(kind), salt, absl::StrCat(kObjectInfo, name)), std::string(salt));
}

std::string RepositoryKeys::SealWhole(SealedKind kind, absl::string_view name, absl::string_view plain) const {
  ObjectCipher cipher = NewObject(kind, name);
  std::string sealed(cipher.salt());
  sealed.resize(ObjectCipher::kSaltBytes + plain.size() + ObjectCipher::kTagBytes);
  cipher.Seal(0, "", plain, absl::MakeSpan(sealed).subspan(ObjectCipher::kSaltBytes));
  return sealed;
}

absl::StatusOr<std::string> RepositoryKeys::OpenWhole(SealedKind kind, absl::string_view name,
                                                      absl::string_view sealed) const {
  if (sealed.size() < ObjectCipher::kSaltBytes + ObjectCipher::kTagBytes) {
    return absl::DataLossError(absl::StrCat("object ", name, ": too short to be sealed"));
  }
  STILL_ASSIGN_OR_RETURN(ObjectCipher cipher, ExistingObject(kind, name, sealed.substr(0, ObjectCipher::kSaltBytes)));
  absl::string_view frame = sealed.substr(ObjectCipher::kSaltBytes);
  std::string plain(frame.size() - ObjectCipher::kTagBytes, '\0');
  STILL_RETURN_IF_ERROR(Annotate(cipher.Open(0, "", frame, absl::MakeSpan(plain)), absl::StrCat("object ", name)));
  return plain;
}

}  // namespace still
