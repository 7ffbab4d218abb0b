#include "store/gc/scan_pack.h"

#include <string>

#include "base/log.h"

namespace still::store {
namespace {

using Wanted = std::function<bool(uint32_t position)>;
using Visit = std::function<absl::Status(uint32_t position, absl::string_view payload)>;

absl::Status ScanByFooter(RepositoryState& state, const OpenPack& pack, const ScanOptions& options,
                          const Wanted& wanted, const Visit& visit, Scratch& scratch) {
  const FrameKind kind = pack.footer.kind == PackKind::kData ? FrameKind::kGroup : FrameKind::kNodes;
  if (kind != options.frames) return absl::OkStatus();
  for (uint32_t frame = 0; frame < pack.footer.frames.size(); ++frame) {
    if (!wanted(frame)) continue;
    auto bytes = state.packs.ReadFrame(pack, frame, scratch);
    if (!bytes.ok() && options.skip_damage) {
      LogWarning("frame left behind", {{"error", bytes.status().ToString()}});
      continue;
    }
    if (!bytes.ok()) return bytes.status();
    STILL_RETURN_IF_ERROR(visit(frame, (*bytes)->view()));
  }
  return absl::OkStatus();
}

// Without a footer: a frame begins where the one before it ends. Where that cannot be read, at the next magic number.
absl::Status ScanByFrames(RepositoryState& state, const std::string& object, const ScanOptions& options,
                          const Wanted& wanted, const Visit& visit, Scratch& scratch) {
  STILL_ASSIGN_OR_RETURN(std::string pack, state.objects->Get(object, kMaxPackSize));
  absl::string_view rest = pack;
  while (rest.size() >= kFrameHeaderSize) {
    auto header = ParseFrameHeader(options.frames, rest);
    if (header.ok() && kFrameHeaderSize + header->stored_size <= rest.size()) {
      absl::string_view frame = rest.substr(0, kFrameHeaderSize + header->stored_size);
      const FrameSeal seal = {.keys = state.sealing_keys(), .object = object, .position = header->position};
      auto payload = scratch.codec.Decode(options.frames, seal, frame);
      if (payload.ok()) {
        if (wanted(header->position)) STILL_RETURN_IF_ERROR(visit(header->position, *payload));
        rest.remove_prefix(frame.size());
        continue;
      }
    }
    const size_t next = rest.find("SPF1", 1);
    if (next == absl::string_view::npos) break;
    rest.remove_prefix(next);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ScanPack(RepositoryState& state, const PackName& name, const ScanOptions& options, const Wanted& wanted,
                      const Visit& visit, Scratch& scratch) {
  auto pack = state.packs.Load(state.packs.Add(name), scratch);
  if (pack.ok()) return ScanByFooter(state, **pack, options, wanted, visit, scratch);
  if (!options.skip_damage) return pack.status();
  if (absl::IsNotFound(pack.status())) return absl::OkStatus();
  return ScanByFrames(state, PackObject(name), options, wanted, visit, scratch);
}

}  // namespace still::store
