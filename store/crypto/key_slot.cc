#include "store/crypto/key_slot.h"

#include <openssl/sha.h>
#include <sodium.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/random.h"
#include "store/crypto/aead.h"
#include "store/crypto/derive.h"

namespace still {
namespace {

// docs/format/keys.md, "Key slot": offsets in bytes.
constexpr absl::string_view kMagic = "STILLKEY";
constexpr uint64_t kVersion = 1;
constexpr uint64_t kArgon2id = 1;
constexpr size_t kVersionAt = 8;
constexpr size_t kKindAt = 10;
constexpr size_t kDerivationAt = 11;
constexpr size_t kPassesAt = 12;
constexpr size_t kMemoryAt = 16;
constexpr size_t kSaltAt = 20;
constexpr size_t kWrappedAt = 36;
constexpr size_t kCheckAt = 84;
constexpr size_t kLengthAt = 116;
constexpr size_t kDescriptionAt = 120;
constexpr size_t kHashBytes = SHA256_DIGEST_LENGTH;
// SHA-256 of the slot, created, two empty strings.
constexpr size_t kMinDescription = RepositoryKeys::kSealedExtra + kHashBytes + 10;
constexpr size_t kMinSlot = kDescriptionAt + kMinDescription + kHashBytes;
constexpr size_t kMaxText = 255;

static_assert(kWrappedAt - kSaltAt == crypto_pwhash_SALTBYTES);
static_assert(kCheckAt - kWrappedAt == kKeyBytes + kTagBytes);

void AppendInteger(std::string& out, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i)));
}

uint64_t ReadInteger(absl::string_view from, size_t offset, size_t bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= uint64_t{static_cast<unsigned char>(from[offset + i])} << (8 * i);
  return value;
}

std::string Sha256(absl::string_view data) {
  std::string hash(kHashBytes, '\0');
  SHA256(reinterpret_cast<const unsigned char*>(data.data()), data.size(),
         reinterpret_cast<unsigned char*>(hash.data()));
  return hash;
}

// What Argon2id makes of the secret.
class SecretKeys {
 public:
  static absl::StatusOr<SecretKeys> Derive(const SecretBytes& secret, KeyCost cost, absl::string_view salt) {
    SecretKeys keys;
    if (crypto_pwhash(keys.both_.bytes(), keys.both_.size(), secret.view().data(), secret.size(),
                      reinterpret_cast<const unsigned char*>(salt.data()), cost.passes, size_t{cost.memory_kib} * 1024,
                      crypto_pwhash_ALG_ARGON2ID13) != 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("derive a key from the secret: ", cost.memory_kib, " KiB of memory are not available"));
    }
    return keys;
  }
  std::string Check(absl::string_view slot_start) const {
    std::string check(crypto_auth_hmacsha256_BYTES, '\0');
    crypto_auth_hmacsha256(reinterpret_cast<unsigned char*>(check.data()),
                           reinterpret_cast<const unsigned char*>(slot_start.data()), slot_start.size(), both_.bytes());
    return check;
  }
  absl::string_view wrapping_key() const { return both_.view().substr(kKeyBytes); }

 private:
  SecretKeys() : both_(2 * kKeyBytes) {}
  SecretBytes both_;
};

bool CostInBounds(KeyCost cost) {
  return cost.passes >= 1 && cost.passes <= kMaxKeyPasses && cost.memory_kib >= kMinKeyMemoryKib &&
         cost.memory_kib <= kMaxKeyMemoryKib;
}

absl::Status Damaged(absl::string_view what) { return absl::DataLossError(absl::StrCat("key slot: ", what)); }

std::string EncodeDescription(const KeyDescription& description, absl::string_view slot_start) {
  std::string text = Sha256(slot_start);
  AppendInteger(text, static_cast<uint64_t>(absl::ToUnixSeconds(description.created)), 8);
  for (absl::string_view field : {absl::string_view(description.label), absl::string_view(description.host)}) {
    field = field.substr(0, kMaxText);
    AppendInteger(text, field.size(), 1);
    absl::StrAppend(&text, field);
  }
  return text;
}

}  // namespace

absl::StatusOr<std::string> EncodeKeySlot(absl::string_view name, KeyKind kind, const SecretBytes& secret, KeyCost cost,
                                          const KeyDescription& description, const RepositoryKeys& keys) {
  if (secret.size() == 0) return absl::InvalidArgumentError("the passphrase or key file is empty");
  if (!CostInBounds(cost)) return absl::InvalidArgumentError("the cost of the key derivation is out of bounds");
  if (description.label.size() > kMaxText)
    return absl::InvalidArgumentError("the key's label is longer than 255 bytes");

  std::string slot(kMagic);
  AppendInteger(slot, kVersion, 2);
  AppendInteger(slot, static_cast<uint64_t>(kind), 1);
  AppendInteger(slot, kArgon2id, 1);
  AppendInteger(slot, cost.passes, 4);
  AppendInteger(slot, cost.memory_kib, 4);
  std::string salt(crypto_pwhash_SALTBYTES, '\0');
  RandomBytes(salt.data(), salt.size());
  slot += salt;
  STILL_ASSIGN_OR_RETURN(SecretKeys secret_keys, SecretKeys::Derive(secret, cost, salt));

  std::string wrapped(kKeyBytes + kTagBytes, '\0');
  SealOnce(secret_keys.wrapping_key(), slot, keys.master(), absl::MakeSpan(wrapped));
  slot += wrapped;
  slot += secret_keys.Check(slot);
  std::string sealed = keys.SealWhole(SealedKind::kState, name, EncodeDescription(description, slot));
  AppendInteger(slot, sealed.size(), 4);
  slot += sealed;
  slot += Sha256(slot);
  return slot;
}

absl::StatusOr<KeySlotHeader> ParseKeySlotHeader(absl::string_view slot) {
  if (slot.size() < kMinSlot || slot.size() > kMaxKeySlotBytes) return Damaged("impossible length");
  if (slot.substr(0, kMagic.size()) != kMagic) return Damaged("not a key slot");
  uint64_t version = ReadInteger(slot, kVersionAt, 2);
  if (version > kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("key slot: version ", version, " needs a newer stillpoint"));
  }
  absl::string_view hashed = slot.substr(0, slot.size() - kHashBytes);
  if (Sha256(hashed) != slot.substr(hashed.size())) return Damaged("damaged (its checksum does not match)");
  uint64_t kind = ReadInteger(slot, kKindAt, 1);
  KeySlotHeader header{.kind = static_cast<KeyKind>(kind),
                       .cost = {.passes = static_cast<uint32_t>(ReadInteger(slot, kPassesAt, 4)),
                                .memory_kib = static_cast<uint32_t>(ReadInteger(slot, kMemoryAt, 4))}};
  if (version != kVersion || ReadInteger(slot, kDerivationAt, 1) != kArgon2id || kind < 1 || kind > 2 ||
      !CostInBounds(header.cost) || ReadInteger(slot, kLengthAt, 4) != hashed.size() - kDescriptionAt) {
    return Damaged("a field is out of bounds");
  }
  return header;
}

absl::StatusOr<RepositoryKeys> OpenKeySlot(absl::string_view name, absl::string_view slot, const SecretBytes& secret) {
  STILL_ASSIGN_OR_RETURN(KeySlotHeader header, ParseKeySlotHeader(slot));
  STILL_ASSIGN_OR_RETURN(SecretKeys secret_keys,
                         SecretKeys::Derive(secret, header.cost, slot.substr(kSaltAt, kWrappedAt - kSaltAt)));
  if (!EqualInConstantTime(secret_keys.Check(slot.substr(0, kCheckAt)), slot.substr(kCheckAt, kHashBytes))) {
    return absl::PermissionDeniedError("not the passphrase or key file of this slot");
  }
  SecretBytes master(kKeyBytes);
  STILL_RETURN_IF_ERROR(Annotate(OpenOnce(secret_keys.wrapping_key(), slot.substr(0, kWrappedAt),
                                          slot.substr(kWrappedAt, kCheckAt - kWrappedAt), master.span()),
                                 "key slot"));
  RepositoryKeys keys = RepositoryKeys::FromMaster(std::move(master));
  // The description proves that the rest of the slot was written by somebody who had the master key, too.
  STILL_RETURN_IF_ERROR(DescribeKeySlot(name, slot, keys).status());
  return keys;
}

absl::StatusOr<KeyDescription> DescribeKeySlot(absl::string_view name, absl::string_view slot,
                                               const RepositoryKeys& keys) {
  STILL_RETURN_IF_ERROR(ParseKeySlotHeader(slot).status());
  absl::string_view sealed = slot.substr(kDescriptionAt, slot.size() - kHashBytes - kDescriptionAt);
  STILL_ASSIGN_OR_RETURN(std::string text, keys.OpenWhole(SealedKind::kState, name, sealed));
  absl::string_view rest = text;
  // Authenticated from here on: written by us, or by somebody with the master key.
  if (rest.size() < kHashBytes + 10 || rest.substr(0, kHashBytes) != Sha256(slot.substr(0, kLengthAt))) {
    return Damaged("its description belongs to another slot");
  }
  KeyDescription description;
  description.created = absl::FromUnixSeconds(static_cast<int64_t>(ReadInteger(rest, kHashBytes, 8)));
  rest.remove_prefix(kHashBytes + 8);
  for (std::string* field : {&description.label, &description.host}) {
    if (rest.empty()) return Damaged("its description is cut off");
    size_t length = ReadInteger(rest, 0, 1);
    rest.remove_prefix(1);
    if (rest.size() < length) return Damaged("its description is cut off");
    *field = std::string(rest.substr(0, length));
    rest.remove_prefix(length);
  }
  if (!rest.empty()) return Damaged("its description is too long");
  return description;
}

}  // namespace still
