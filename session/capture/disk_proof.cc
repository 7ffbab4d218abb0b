#include "session/capture/disk_proof.h"

#include "absl/algorithm/container.h"
#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "session/capture/report_words.h"

namespace still::session {
namespace {

using manifestpb::Consistency;

// The manifest keeps this many uses of each disk.
constexpr int kMaxUsesKept = 64;

bool IsCovered(const guestpb::DiskUse& use) {
  switch (use.state()) {
    case guestpb::DiskUse::FROZEN:
    case guestpb::DiskUse::READ_ONLY:
    case guestpb::DiskUse::CLEAN:
    case guestpb::DiskUse::VOLATILE:
      return true;
    default:  // Also what a newer agent says.
      return false;
  }
}

// "vfat on /boot/efi (vda1) cannot freeze, and ..."
std::string ReasonOf(const guestpb::DiskUse& use) {
  std::string what;
  switch (use.kind()) {
    case guestpb::DiskUse::FILE_SYSTEM:
      what = absl::StrCat(use.fs_type(), " on ", use.name(), " (", use.device(), ")");
      break;
    case guestpb::DiskUse::OPENED:
      return absl::StrCat(use.name(), " ", use.detail(), ": ", use.device());
    case guestpb::DiskUse::UNKNOWN:
      return absl::StrCat(use.device(), ": ", use.detail());
    default:
      what = use.device();
  }
  return absl::StrCat(what, " ", use.detail().empty() ? "is not covered" : use.detail());
}

void KeepUse(const guestpb::DiskUse& use, Consistency::DiskProof& proof) {
  Consistency::Use& kept = *proof.add_uses();
  kept.set_device(use.device());
  kept.set_kind(PlainWords(guestpb::DiskUse::Kind_Name(use.kind())));
  kept.set_state(PlainWords(guestpb::DiskUse::State_Name(use.state())));
  kept.set_name(use.name());
  kept.set_fs_type(use.fs_type());
  kept.set_detail(use.detail());
}

// The disks of the guest that may be this one: the one in its place, or with its serial number. Where it has neither, all
// of them.
std::vector<const guestpb::Disk*> Candidates(const manifestpb::Disk& captured, const guestpb::QuiesceResponse& report) {
  std::vector<const guestpb::Disk*> candidates;
  for (const guestpb::Disk& disk : report.disks()) {
    bool may_be = captured.pci_address().empty() ? captured.serial().empty() || disk.serial() == captured.serial()
                                                 : disk.pci_address() == captured.pci_address();
    if (may_be) candidates.push_back(&disk);
  }
  return candidates;
}

// Covered only as long as nothing writes to it, which the agent tells at the thaw. What nothing uses is not among the uses: a
// partition or a volume beside those that are may be such a part. A use of the whole disk leaves no room for any.
bool IsProvisional(const guestpb::Disk& disk) {
  if (disk.read_only()) return false;
  return disk.uses().empty() || absl::c_any_of(disk.uses(), [&disk](const guestpb::DiskUse& use) {
           return use.state() == guestpb::DiskUse::CLEAN || use.state() == guestpb::DiskUse::READ_ONLY ||
                  use.device() != disk.name();
         });
}

// Calls `of` with each disk of the capture that needs a proof and has one, and what it may be in the guest.
void ForEachCovered(
    const google::protobuf::RepeatedPtrField<manifestpb::Disk>& captured, const guestpb::QuiesceResponse& report,
    Consistency& consistency,
    absl::FunctionRef<void(const std::vector<const guestpb::Disk*>& candidates, Consistency::DiskProof& proof)> of) {
  for (int i = 0; i < consistency.disks_size() && i < captured.size(); ++i) {
    Consistency::DiskProof& proof = *consistency.mutable_disks(i);
    if (proof.covered() && !captured.Get(i).read_only()) of(Candidates(captured.Get(i), report), proof);
  }
}

std::string WhyNone(const guestpb::QuiesceResponse& report) {
  if (!report.disks().empty() || !report.disks_unknown().empty()) return "the guest's agent does not show this disk";
  return "the guest's agent is too old to tell what writes to it; install this version's (still agent install)";
}

Consistency::DiskProof Prove(const manifestpb::Disk& captured, const guestpb::QuiesceResponse& report) {
  Consistency::DiskProof proof;
  proof.set_name(captured.name());
  proof.set_covered(true);
  if (captured.read_only()) return proof;
  // Of several none is known to be it: all must be covered.
  const std::vector<const guestpb::Disk*> candidates = Candidates(captured, report);
  std::string reason = candidates.empty() ? WhyNone(report) : "";
  for (const guestpb::Disk* disk : candidates) {
    if (disk->read_only()) continue;
    for (const guestpb::DiskUse& use : disk->uses()) {
      if (reason.empty() && !IsCovered(use)) reason = ReasonOf(use);
      if (proof.uses_size() < kMaxUsesKept) KeepUse(use, proof);
    }
  }
  if (reason.empty()) reason = report.disks_unknown();
  proof.set_covered(reason.empty());
  proof.set_reason(reason);
  return proof;
}

}  // namespace

std::vector<Consistency::DiskProof> ProveDisks(const google::protobuf::RepeatedPtrField<manifestpb::Disk>& captured,
                                               const guestpb::QuiesceResponse& report) {
  std::vector<Consistency::DiskProof> proofs;
  for (const manifestpb::Disk& disk : captured) proofs.push_back(Prove(disk, report));
  return proofs;
}

void NoteWritten(const google::protobuf::RepeatedPtrField<std::string>& written,
                 const google::protobuf::RepeatedPtrField<manifestpb::Disk>& captured,
                 const guestpb::QuiesceResponse& report, Consistency& consistency) {
  ForEachCovered(captured, report, consistency, [&](const auto& candidates, Consistency::DiskProof& proof) {
    bool hit = absl::c_any_of(
        candidates, [&](const guestpb::Disk* disk) { return absl::c_find(written, disk->name()) != written.end(); });
    if (!hit) return;
    proof.set_covered(false);
    proof.set_reason("it was written to between the freeze and the thaw, past the file systems that were frozen");
  });
}

void NoteUntold(const google::protobuf::RepeatedPtrField<manifestpb::Disk>& captured,
                const guestpb::QuiesceResponse& report, Consistency& consistency) {
  ForEachCovered(captured, report, consistency, [](const auto& candidates, Consistency::DiskProof& proof) {
    if (absl::c_none_of(candidates, [](const guestpb::Disk* disk) { return IsProvisional(*disk); })) return;
    proof.set_covered(false);
    proof.set_reason("the guest was reset before it told whether what was clean or unused has stayed so");
  });
}

}  // namespace still::session
