// RepositoryKeys: everything that is derived from a repository's random master key, and the sealing of frames with it.
// docs/format/keys.md is the contract.
//
//   std::string stored(plain.size() + RepositoryKeys::kSealedExtra, 0);
//   keys.Seal(SealedKind::kPack, associated, plain, absl::MakeSpan(stored));
//   STILL_RETURN_IF_ERROR(keys.Open(SealedKind::kPack, associated, stored, absl::MakeSpan(plain)));
//
// Every frame is sealed with AES-256-GCM under a key of its own, derived with a random salt that is stored in front of
// it. So there is no counter to lose and no nonce to repeat, whatever a caller does, and no practical limit to the
// number of frames. What binds a frame to its object and place is the caller's associated data.
//
// Immutable and thread-safe once made. Keys lie in locked memory and are wiped with the object.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "base/status.h"
#include "store/crypto/aead.h"
#include "store/crypto/secret.h"

namespace still {

// What is sealed. Each kind has a key of its own: nothing can ever be taken for something of another kind.
enum class SealedKind {
  kPack,      // Frames and footers of packs.
  kManifest,  // Snapshots.
  kState,     // Everything else: notes of prune and repair, descriptions of key slots.
};

class RepositoryKeys {
 public:
  static constexpr size_t kSaltBytes = 24;
  static constexpr size_t kSealedExtra = kSaltBytes + kTagBytes;  // A sealed frame is that much longer.

  // A new master key, from the kernel's randomness.
  static RepositoryKeys Generate();
  // `master` must have 32 bytes.
  static RepositoryKeys FromMaster(SecretBytes master);

  // Fills `out`, which must have plain.size() + kSealedExtra and must not overlap `plain`. `associated` is
  // authenticated but not stored: the same bytes must be given to Open().
  void Seal(SealedKind kind, absl::string_view associated, absl::string_view plain, absl::Span<char> out) const;
  // Fills `out`, which must have sealed.size() - kSealedExtra and must not overlap `sealed`. DATA_LOSS when these are
  // not the bytes sealed with this kind and associated data; `out` is zeroes then.
  absl::Status Open(SealedKind kind, absl::string_view associated, absl::string_view sealed,
                    absl::Span<char> out) const;

  // The same with strings, for whole small objects; `name`, the object's, is the associated data and told in errors.
  std::string SealWhole(SealedKind kind, absl::string_view name, absl::string_view plain) const;
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
