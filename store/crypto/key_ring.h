// The key ring: the objects keys/<id> of a repository, each of which opens it with one passphrase or key file.
//
//   STILL_ASSIGN_OR_RETURN(KeySecret secret, KeySecret::Passphrase("..."));
//   STILL_ASSIGN_OR_RETURN(RepositoryKeys keys, CreateKeyRing(store, secret, {.label = "me"}));
//   STILL_ASSIGN_OR_RETURN(OpenedKeyRing ring, OpenKeyRing(store, secret));
//
// Adding and revoking are each one object put or deleted, so two hosts can do it at the same time, and a crash leaves
// the earlier set of slots or the new one. Changing a secret is adding, then revoking. Every call that derives a key
// takes about a second and the memory of KeyCost. Thread-safe.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "base/status.h"
#include "store/crypto/key_slot.h"
#include "store/crypto/repository_keys.h"
#include "store/object/object_store.h"

namespace still {

struct KeySecret {
  KeyKind kind = KeyKind::kPassphrase;
  SecretBytes bytes;

  // INVALID_ARGUMENT when it is empty.
  static absl::StatusOr<KeySecret> Passphrase(absl::string_view passphrase);
  // The whole content, every byte of it: 1 byte to 64 KiB. INVALID_ARGUMENT otherwise, or as ReadFile().
  static absl::StatusOr<KeySecret> KeyFile(const std::string& path);
};

struct NewKeyOptions {
  std::string label;
  KeyCost cost;
  Clock* clock = nullptr;  // nullptr: the machine's.
};

struct OpenedKeyRing {
  RepositoryKeys keys;
  std::string slot_id;  // The slot that fitted.
};

struct KeySlotInfo {
  std::string id;       // 16 hex digits.
  absl::Status status;  // DATA_LOSS: damaged or tampered with; then only `id` is set.
  KeyKind kind = KeyKind::kPassphrase;
  KeyCost cost;
  KeyDescription description;
};

// A new master key with its first slot. ALREADY_EXISTS when there are slots.
absl::StatusOr<RepositoryKeys> CreateKeyRing(ObjectStore& store, const KeySecret& secret, const NewKeyOptions& options);

// PERMISSION_DENIED: the secret fits no slot. DATA_LOSS: it fits none, but a slot is damaged and it might have been
// its; or the slot it fits was tampered with. NOT_FOUND: there are no slots. FAILED_PRECONDITION: only newer ones.
absl::StatusOr<OpenedKeyRing> OpenKeyRing(ObjectStore& store, const KeySecret& secret);

// Gives the new slot's id. RESOURCE_EXHAUSTED when there are kMaxKeySlots already.
absl::StatusOr<std::string> AddKey(ObjectStore& store, const RepositoryKeys& keys, const KeySecret& secret,
                                   const NewKeyOptions& options);
// Sorted by id; slots are authenticated with `keys`.
absl::StatusOr<std::vector<KeySlotInfo>> ListKeys(ObjectStore& store, const RepositoryKeys& keys);
// NOT_FOUND; FAILED_PRECONDITION when no other whole slot would be left. What revoking cannot do: docs/format/keys.md.
absl::Status RevokeKey(ObjectStore& store, const RepositoryKeys& keys, absl::string_view slot_id);
// Adds `secret`, then revokes `slot_id`: a crash in between leaves both. Gives the new slot's id.
absl::StatusOr<std::string> ChangeKey(ObjectStore& store, const RepositoryKeys& keys, absl::string_view slot_id,
                                      const KeySecret& secret, const NewKeyOptions& options);

inline constexpr size_t kMaxKeySlots = 64;

}  // namespace still
