#include "store/verify/check_pack.h"

#include <array>
#include <string>

#include "absl/strings/str_cat.h"

namespace still::store {
namespace {

uint64_t CheckGroup(RepositoryState& state, const OpenPack& pack, uint32_t frame, Damage& damage, Scratch& scratch) {
  auto bytes = state.packs.ReadFrame(pack, frame, scratch);
  if (!bytes.ok()) damage.AddProblem(bytes.status());
  const uint32_t blocks = pack.footer.BlocksIn(frame);
  std::array<BlockId, kBlocksPerGroup> ids;
  if (bytes.ok()) scratch.hasher.Blocks((*bytes)->data.get(), absl::MakeSpan(ids).first(blocks));
  for (uint32_t i = 0; i < blocks; ++i) {
    const auto block = static_cast<uint32_t>(frame * kBlocksPerGroup + i);
    if (bytes.ok() && ids[i] == pack.footer.blocks[block]) continue;
    damage.AddBlock(pack.name, block);
    if (bytes.ok()) {
      damage.AddProblem(absl::StrCat(pack.object, ": block ", block, " is not what its id says"));
    }
  }
  return bytes.ok() ? blocks : 0;
}

void CheckNodeFrame(RepositoryState& state, const OpenPack& pack, uint32_t frame, Damage& damage, Scratch& scratch) {
  // What the nodes say is checked by those who use them; one that nobody uses may say what it likes.
  auto bytes = state.packs.ReadFrame(pack, frame, scratch);
  if (bytes.ok()) return;
  damage.AddProblem(bytes.status());
  damage.AddPack(pack.name);
}

}  // namespace

uint64_t CheckPack(RepositoryState& state, const PackName& name, bool read_data, Damage& damage, Scratch& scratch) {
  auto pack = state.packs.Load(state.packs.Add(name), scratch);
  if (absl::IsNotFound(pack.status())) return 0;
  if (!pack.ok()) {
    damage.AddProblem(pack.status());
    damage.AddPack(name);
    return 0;
  }
  // Tree packs are small, and without them nothing can be found.
  if (!read_data && (*pack)->footer.kind == PackKind::kData) return 0;
  uint64_t blocks = 0;
  for (uint32_t frame = 0; frame < (*pack)->footer.frames.size(); ++frame) {
    if ((*pack)->footer.kind == PackKind::kData) {
      blocks += CheckGroup(state, **pack, frame, damage, scratch);
    } else {
      CheckNodeFrame(state, **pack, frame, damage, scratch);
    }
  }
  return blocks;
}

}  // namespace still::store
