#include "store/notes.h"

#include <memory>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/names.h"
#include "store/block/bytes.h"
#include "store/maintenance.h"

namespace still::store {
namespace {

namespace manifest = ::stillpoint::manifest::v1;

constexpr uint64_t kMaxNoteObject = 4096;
constexpr size_t kNotesAtOnce = 128;  // Each is a file descriptor until it is published.

std::string EncodeNote(const RepositoryState& state, FrameKind kind, const std::string& name,
                       absl::string_view payload) {
  std::string object;
  FrameCodec().Encode(kind, {.keys = state.sealing_keys(), .object = name}, false, payload, object);
  return object;
}

absl::Status PutNote(RepositoryState& state, FrameKind kind, const std::string& name, absl::string_view payload) {
  return state.objects->Put(name, EncodeNote(state, kind, name, payload), {.mode = PutMode::kReplace});
}

absl::StatusOr<std::string> ReadNote(const RepositoryState& state, FrameKind kind, const std::string& name) {
  auto object = state.objects->Get(name, kMaxNoteObject);
  if (absl::IsResourceExhausted(object.status())) {
    return absl::DataLossError(absl::StrCat(name, ": larger than any note"));
  }
  if (!object.ok()) return object.status();
  auto payload = FrameCodec().Decode(kind, {.keys = state.sealing_keys(), .object = name}, *object);
  if (!payload.ok()) return Annotate(payload.status(), name);
  return payload;
}

std::string EncodeTime(absl::Time when) {
  std::string payload;
  AppendInt<int64_t>(payload, absl::ToUnixNanos(when));
  return payload;
}

absl::StatusOr<absl::Time> ReadTime(const RepositoryState& state, FrameKind kind, const std::string& object) {
  STILL_ASSIGN_OR_RETURN(std::string payload, ReadNote(state, kind, object));
  if (payload.size() != sizeof(int64_t)) return absl::DataLossError(absl::StrCat(object, ": impossible size"));
  return absl::FromUnixNanos(LoadInt<int64_t>(payload.data()));
}

}  // namespace

std::string CondemnedObject(const PackName& pack) {
  return absl::StrCat(kCondemnedPrefix, absl::BytesToHexString(pack.view()));
}

absl::Status Condemn(RepositoryState& state, const PackName& pack, absl::Time when) {
  STILL_RETURN_IF_ERROR(PutNote(state, FrameKind::kCondemned, CondemnedObject(pack), EncodeTime(when)));
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, state.catalog().Begin());
  STILL_RETURN_IF_ERROR(change.SetCondemned(pack.view(), when));
  return change.Commit();
}

absl::Status Acquit(RepositoryState& state, const PackName& pack) {
  STILL_RETURN_IF_ERROR(state.objects->Delete(CondemnedObject(pack)));
  STILL_ASSIGN_OR_RETURN(CatalogTransaction change, state.catalog().Begin());
  STILL_RETURN_IF_ERROR(change.SetCondemned(pack.view(), std::nullopt));
  return change.Commit();
}

absl::StatusOr<absl::Time> ReadCondemned(const RepositoryState& state, const std::string& object) {
  return ReadTime(state, FrameKind::kCondemned, object);
}

std::string ForgottenObject(absl::string_view snapshot_id) { return absl::StrCat(kForgottenPrefix, snapshot_id); }

absl::Status PutForgotten(RepositoryState& state, const std::vector<std::string>& snapshot_ids, absl::Time when) {
  std::vector<std::unique_ptr<ObjectWriter>> notes;
  for (const std::string& id : snapshot_ids) {
    const std::string name = ForgottenObject(id);
    STILL_ASSIGN_OR_RETURN(std::unique_ptr<ObjectWriter> note,
                           state.objects->NewWriter(name, {.mode = PutMode::kReplace}));
    STILL_RETURN_IF_ERROR(note->Append(EncodeNote(state, FrameKind::kForgotten, name, EncodeTime(when))));
    notes.push_back(std::move(note));
    if (notes.size() < kNotesAtOnce) continue;
    STILL_RETURN_IF_ERROR(state.objects->Publish(std::move(notes)));
    notes.clear();
  }
  return state.objects->Publish(std::move(notes));
}

// One that cannot be read does not count: with encryption, whoever has only the storage could else delete a snapshot in silence.
absl::StatusOr<bool> IsForgotten(const RepositoryState& state, absl::string_view snapshot_id) {
  const absl::Status read = ReadForgotten(state, ForgottenObject(snapshot_id)).status();
  if (absl::IsNotFound(read) || absl::IsDataLoss(read)) return false;
  STILL_RETURN_IF_ERROR(read);
  return true;
}

absl::StatusOr<absl::Time> ReadForgotten(const RepositoryState& state, const std::string& object) {
  return ReadTime(state, FrameKind::kForgotten, object);
}

std::string HoldObject(absl::string_view snapshot_id) { return absl::StrCat(kHoldPrefix, snapshot_id); }

absl::Status PutHold(RepositoryState& state, absl::string_view snapshot_id, const Hold& hold) {
  STILL_RETURN_IF_ERROR(CheckText("hold: reason", hold.reason));
  if (hold.reason.size() > kMaxHoldReason) {
    return absl::InvalidArgumentError(absl::StrCat("hold: the reason is longer than ", kMaxHoldReason, " bytes"));
  }
  return PutNote(state, FrameKind::kHold, HoldObject(snapshot_id), absl::StrCat(hold.held ? "\1" : "\2", hold.reason));
}

absl::StatusOr<Hold> ReadHold(const RepositoryState& state, absl::string_view snapshot_id) {
  const std::string name = HoldObject(snapshot_id);
  STILL_ASSIGN_OR_RETURN(std::string payload, ReadNote(state, FrameKind::kHold, name));
  if (payload.empty() || payload.size() > kMaxHoldReason + 1 || (payload[0] != 1 && payload[0] != 2)) {
    return absl::DataLossError(absl::StrCat(name, ": impossible content"));
  }
  return Hold{.held = payload[0] == 1, .reason = payload.substr(1)};
}

absl::Status ApplyHold(const RepositoryState& state, manifest::Snapshot& snapshot) {
  auto hold = ReadHold(state, snapshot.id());
  if (absl::IsNotFound(hold.status())) return absl::OkStatus();
  if (absl::IsDataLoss(hold.status())) hold = Hold{.held = true, .reason = "its note is damaged"};
  if (!hold.ok()) return hold.status();
  const std::string label(kHoldLabel);
  if (hold->held) {
    (*snapshot.mutable_labels())[label] = EscapeName(hold->reason);  // An older version took any bytes.
  } else {
    snapshot.mutable_labels()->erase(label);
  }
  return absl::OkStatus();
}

absl::Status ApplyHolds(const RepositoryState& state, std::vector<manifest::Snapshot>& snapshots) {
  STILL_ASSIGN_OR_RETURN(std::vector<ObjectInfo> notes, state.objects->List(kHoldPrefix));
  if (notes.empty()) return absl::OkStatus();
  absl::flat_hash_set<std::string> noted;
  for (const ObjectInfo& note : notes) noted.insert(note.name);
  for (manifest::Snapshot& snapshot : snapshots) {
    if (noted.contains(HoldObject(snapshot.id()))) STILL_RETURN_IF_ERROR(ApplyHold(state, snapshot));
  }
  return absl::OkStatus();
}

}  // namespace still::store
