// RepositoryKeys: everything that is derived from a repository's random master key. docs/format/keys.md is the
// contract.
//
//   ObjectCipher pack = keys.NewObject(SealedKind::kPack, "packs/3f...");   // writing: store pack.salt() in the clear
//   ObjectCipher pack = keys.ExistingObject(SealedKind::kPack, "packs/3f...", salt);
//
// Immutable and thread-safe once made. Held by whoever opened the repository, in locked memory, and wiped with it.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "base/status.h"
#include "store/crypto/cipher.h"
#include "store/crypto/secret.h"

namespace still {

// What is sealed. Each kind has a key of its own, so that no object can ever be taken for one of another kind.
enum class SealedKind {
  kPack,      // Frames, indexes and footers of packs.
  kManifest,  // Snapshots.
  kState,     // Other small objects of the repository: configuration, quarantine notes, labels of key slots.
};

class RepositoryKeys {
 public:
  // A new master key, from the kernel's randomness.
  static RepositoryKeys Generate();
  // `master` must have 32 bytes.
  static RepositoryKeys FromMaster(SecretBytes master);

  // For an object that is about to be written: draws a fresh salt. `name` is the object's name in the store.
  ObjectCipher NewObject(SealedKind kind, absl::string_view name) const;
  // For reading. DATA_LOSS when `salt` does not have ObjectCipher::kSaltBytes.
  absl::StatusOr<ObjectCipher> ExistingObject(SealedKind kind, absl::string_view name, absl::string_view salt) const;

  // A whole small object: salt, then one sealed frame at position 0.
  std::string SealWhole(SealedKind kind, absl::string_view name, absl::string_view plain) const;
  // DATA_LOSS when `sealed` is not what SealWhole() gave for this kind and name.
  absl::StatusOr<std::string> OpenWhole(SealedKind kind, absl::string_view name, absl::string_view sealed) const;

  // 32 bytes: keys the hash that names blocks and tree nodes, so that nobody without it can tell whether the
  // repository holds a given block.
  absl::string_view id_key() const { return id_key_.view(); }
  absl::string_view master() const { return master_.view(); }

 private:
  explicit RepositoryKeys(SecretBytes master);
  absl::string_view KindKey(SealedKind kind) const;

  SecretBytes master_;
  SecretBytes id_key_;
  SecretBytes pack_key_;
  SecretBytes manifest_key_;
  SecretBytes state_key_;
};

}  // namespace still
