#include "store/crypto/key_ring.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/random.h"

namespace still {
namespace {

constexpr absl::string_view kFolder = "keys/";
constexpr size_t kIdLength = 16;
constexpr size_t kMaxKeyFileBytes = 64 << 10;

std::string ObjectName(absl::string_view id) { return absl::StrCat(kFolder, id); }

bool ValidId(absl::string_view id) {
  if (id.size() != kIdLength) return false;
  for (char c : id) {
    if (!absl::ascii_isdigit(c) && (c < 'a' || c > 'f')) return false;
  }
  return true;
}

absl::StatusOr<std::vector<std::string>> SlotIds(ObjectStore& store) {
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> objects, store.List(kFolder));
  std::vector<std::string> ids;
  for (const ObjectInfo& object : objects) {
    std::string id = object.name.substr(kFolder.size());
    if (ValidId(id)) ids.push_back(std::move(id));
  }
  return ids;
}

absl::StatusOr<std::string> ReadSlot(ObjectStore& store, absl::string_view id) {
  absl::StatusOr<std::string> slot = store.Get(ObjectName(id), kMaxKeySlotBytes);
  if (absl::IsResourceExhausted(slot.status())) return absl::DataLossError(slot.status().message());
  return slot;
}

std::string HostName() {
  char name[256] = {};
  if (::gethostname(name, sizeof name - 1) != 0) return "";
  return name;
}

absl::StatusOr<std::string> PutSlot(ObjectStore& store, const RepositoryKeys& keys, const KeySecret& secret,
                                    const NewKeyOptions& options) {
  Clock& clock = options.clock != nullptr ? *options.clock : Clock::Real();
  std::string id = absl::StrCat(absl::Hex(RandomU64(), absl::kZeroPad16));
  KeyDescription description{.label = options.label, .host = HostName(), .created = clock.Now()};
  STILL_ASSIGN_OR_RETURN(std::string slot,
                         EncodeKeySlot(ObjectName(id), secret.kind, secret.bytes, options.cost, description, keys));
  STILL_RETURN_IF_ERROR(store.Put(ObjectName(id), slot));
  return id;
}

}  // namespace

absl::StatusOr<KeySecret> KeySecret::Passphrase(absl::string_view passphrase) {
  if (passphrase.empty()) return absl::InvalidArgumentError("the passphrase is empty");
  return KeySecret{.kind = KeyKind::kPassphrase, .bytes = SecretBytes::Copy(passphrase)};
}

absl::StatusOr<KeySecret> KeySecret::KeyFile(const std::string& path) {
  STILL_ASSIGN_OR_RETURN(OwnedFd fd, OpenFile(path, O_RDONLY));
  // Straight into locked memory: the file's bytes never lie anywhere else of ours.
  SecretBytes content(kMaxKeyFileBytes + 1);
  size_t size = 0;
  while (size < content.size()) {
    ssize_t got = ::read(fd.get(), content.bytes() + size, content.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size == 0) return absl::InvalidArgumentError(absl::StrCat("key file ", path, ": is empty"));
  if (size > kMaxKeyFileBytes) return absl::InvalidArgumentError(absl::StrCat("key file ", path, ": more than 64 KiB"));
  return KeySecret{.kind = KeyKind::kKeyFile, .bytes = SecretBytes::Copy(content.view().substr(0, size))};
}

absl::StatusOr<RepositoryKeys> CreateKeyRing(ObjectStore& store, const KeySecret& secret,
                                             const NewKeyOptions& options) {
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> ids, SlotIds(store));
  if (!ids.empty()) return absl::AlreadyExistsError("create keys: the repository has key slots already");
  RepositoryKeys keys = RepositoryKeys::Generate();
  STILL_RETURN_IF_ERROR(PutSlot(store, keys, secret, options).status());
  return keys;
}

absl::StatusOr<OpenedKeyRing> OpenKeyRing(ObjectStore& store, const KeySecret& secret) {
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> ids, SlotIds(store));
  if (ids.empty()) return absl::NotFoundError("open keys: the repository has no key slots");
  // Whoever can write to the storage must not keep us deriving for ever.
  if (ids.size() > kMaxKeySlots) ids.resize(kMaxKeySlots);
  absl::Status unreadable;
  size_t fitting_kind = 0;
  for (const std::string& id : ids) {
    absl::StatusOr<std::string> slot = ReadSlot(store, id);
    if (absl::IsNotFound(slot.status())) continue;  // Revoked since the listing.
    absl::StatusOr<KeySlotHeader> header = slot.ok() ? ParseKeySlotHeader(*slot) : slot.status();
    if (!header.ok()) {
      unreadable = FirstError(std::move(unreadable), Annotate(header.status(), ObjectName(id)));
      continue;
    }
    if (header->kind != secret.kind) continue;
    ++fitting_kind;
    absl::StatusOr<RepositoryKeys> keys = OpenKeySlot(ObjectName(id), *slot, secret.bytes);
    if (keys.ok()) return OpenedKeyRing{.keys = *std::move(keys), .slot_id = id};
    if (!absl::IsPermissionDenied(keys.status())) return Annotate(keys.status(), ObjectName(id));
  }
  if (!unreadable.ok()) return Annotate(unreadable, "no key slot fits, and one cannot be read");
  absl::string_view what = secret.kind == KeyKind::kPassphrase ? "passphrase" : "key file";
  if (fitting_kind == 0) {
    return absl::PermissionDeniedError(absl::StrCat("this repository does not open with a ", what));
  }
  return absl::PermissionDeniedError(absl::StrCat("wrong ", what));
}

absl::StatusOr<std::string> AddKey(ObjectStore& store, const RepositoryKeys& keys, const KeySecret& secret,
                                   const NewKeyOptions& options) {
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> ids, SlotIds(store));
  if (ids.size() >= kMaxKeySlots) {
    return absl::ResourceExhaustedError(absl::StrCat("add key: there are ", ids.size(), " already; revoke one first"));
  }
  return PutSlot(store, keys, secret, options);
}

absl::StatusOr<std::vector<KeySlotInfo>> ListKeys(ObjectStore& store, const RepositoryKeys& keys) {
  STILL_ASSIGN_OR_RETURN(std::vector<std::string> ids, SlotIds(store));
  std::vector<KeySlotInfo> slots;
  for (const std::string& id : ids) {
    absl::StatusOr<std::string> slot = ReadSlot(store, id);
    if (absl::IsNotFound(slot.status())) continue;  // Revoked since the listing.
    KeySlotInfo info{.id = id};
    absl::StatusOr<KeySlotHeader> header = slot.ok() ? ParseKeySlotHeader(*slot) : slot.status();
    absl::StatusOr<KeyDescription> description =
        header.ok() ? DescribeKeySlot(ObjectName(id), *slot, keys) : header.status();
    info.status = description.status();
    if (description.ok()) {
      info.kind = header->kind;
      info.cost = header->cost;
      info.description = *std::move(description);
    }
    slots.push_back(std::move(info));
  }
  return slots;
}

absl::Status RevokeKey(ObjectStore& store, const RepositoryKeys& keys, absl::string_view slot_id) {
  STILL_ASSIGN_OR_RETURN(std::vector<KeySlotInfo> slots, ListKeys(store, keys));
  bool found = false;
  int others = 0;
  for (const KeySlotInfo& slot : slots) {
    if (slot.id == slot_id) found = true;
    if (slot.id != slot_id && slot.status.ok()) ++others;
  }
  if (!found) return absl::NotFoundError(absl::StrCat("revoke key: there is no slot \"", slot_id, "\""));
  if (others == 0) {
    return absl::FailedPreconditionError("revoke key: it is the last one, and nothing could be read without it");
  }
  STILL_ASSIGN_OR_RETURN(std::string slot, ReadSlot(store, slot_id));
  STILL_RETURN_IF_ERROR(store.Delete(ObjectName(slot_id)));
  // Somebody may have revoked the others in the same moment, each of us counting on the other's: then both put theirs
  // back, so that at least one way in remains.
  STILL_ASSIGN_OR_RETURN(slots, ListKeys(store, keys));
  for (const KeySlotInfo& left : slots) {
    if (left.status.ok()) return absl::OkStatus();
  }
  return FirstError(absl::FailedPreconditionError("revoke key: the others were revoked at the same time"),
                    store.Put(ObjectName(slot_id), slot, {.mode = PutMode::kReplace}));
}

absl::StatusOr<std::string> ChangeKey(ObjectStore& store, const RepositoryKeys& keys, absl::string_view slot_id,
                                      const KeySecret& secret, const NewKeyOptions& options) {
  // Before anything is added for a slot that is not there.
  STILL_RETURN_IF_ERROR(Annotate(ReadSlot(store, slot_id).status(), "change key"));
  STILL_ASSIGN_OR_RETURN(std::string added, AddKey(store, keys, secret, options));
  absl::Status revoked = RevokeKey(store, keys, slot_id);
  if (revoked.ok()) return added;
  // A deletion that failed may have happened all the same, and then the new slot is the only way in.
  absl::StatusOr<std::vector<KeySlotInfo>> slots = ListKeys(store, keys);
  const bool old_is_there = slots.ok() && std::any_of(slots->begin(), slots->end(), [&](const KeySlotInfo& slot) {
                              return slot.id == slot_id && slot.status.ok();
                            });
  if (!old_is_there) return Annotate(revoked, absl::StrCat("key ", added, " was added, but ", slot_id, " may be left"));
  // The change did not happen: the new secret must not be a way in that nobody knows of.
  return FirstError(std::move(revoked), store.Delete(ObjectName(added)));
}

}  // namespace still
