// bench-lookup: what it costs to find blocks among a hundred million, on input in image order.
//
// The packs' footers are made up as they are asked for (their making is not counted), so that the benchmark needs no
// gigabytes of disk. The input is what an image looks like that was stored before: runs of blocks from one pack, with
// new blocks in between. Exit code 1 when a promise of benchmarks/BUDGETS.md is broken.
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "store/pack/block_index.h"

namespace still::store {
namespace {

constexpr uint32_t kBlocksPerPack = 16384;
constexpr uint32_t kRun = 2000;
constexpr int kLookups = 4'000'000;
constexpr double kMaxMicroseconds = 2;
constexpr double kMaxMib = 64;

// The machine is shared: wall time would measure the others.
double CpuSeconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

// What the process has in memory (proc(5), statm).
double ResidentMib() {
  std::ifstream statm("/proc/self/statm");
  uint64_t size = 0;
  uint64_t resident = 0;
  statm >> size >> resident;
  return static_cast<double>(resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE))) / (1 << 20);
}

uint64_t Mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

BlockId IdOf(uint64_t number) {
  BlockId id;
  const uint64_t words[] = {Mix(2 * number), Mix(2 * number + 1)};
  std::memcpy(id.bytes.data(), words, sizeof(words));
  return id;
}

// Packs whose name is their number and whose blocks' ids follow from it.
class SyntheticPacks final : public ObjectStore {
 public:
  static PackName NameOf(uint64_t pack) {
    PackName name;
    std::memcpy(name.bytes.data(), &pack, sizeof(pack));
    return name;
  }
  double spent() const { return spent_; }  // CPU seconds.

  const ObjectStoreCapabilities& capabilities() const override { return capabilities_; }
  absl::StatusOr<uint64_t> Size(absl::string_view name) override {
    Make(name);
    return bytes_.size();
  }
  absl::Status GetRange(absl::string_view name, uint64_t offset, absl::Span<char> out) override {
    Make(name);
    STILL_CHECK(offset + out.size() <= bytes_.size());
    std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<ObjectWriter>> NewWriter(absl::string_view, PutOptions) override { return ReadOnly(); }
  using ObjectStore::Publish;
  absl::Status Publish(std::vector<std::unique_ptr<ObjectWriter>>) override { return ReadOnly(); }
  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view) override { return ReadOnly(); }
  absl::Status Settle(absl::Span<const std::string>) override { return absl::OkStatus(); }
  using ObjectStore::Delete;
  absl::Status Delete(absl::Span<const std::string>) override { return ReadOnly(); }
  absl::StatusOr<SweptLeftovers> SweepLeftovers() override { return ReadOnly(); }
  absl::StatusOr<uint64_t> AvailableBytes() override { return ReadOnly(); }

 private:
  static absl::Status ReadOnly() { return absl::PermissionDeniedError("synthetic packs are only read"); }

  void Make(absl::string_view name) {
    if (name == made_) return;
    const double begin = CpuSeconds();
    uint64_t pack;
    std::memcpy(&pack, PackNameOf(name)->bytes.data(), sizeof(pack));
    PackFooter footer;
    footer.frames.assign(kBlocksPerPack / kBlocksPerGroup, {.offset = 0, .size = kFrameHeaderSize});
    footer.blocks.resize(kBlocksPerPack);
    for (uint32_t i = 0; i < kBlocksPerPack; ++i) footer.blocks[i] = IdOf(pack * kBlocksPerPack + i);
    bytes_.assign(kFrameHeaderSize, '\0');
    const uint64_t offset = bytes_.size();
    codec_.Encode(FrameKind::kFooter, {.object = name, .position = kFooterPosition}, false, EncodeFooter(footer),
                  bytes_);
    bytes_ += EncodeTrailer({.footer_offset = offset, .footer_size = bytes_.size() - offset});
    made_ = std::string(name);
    spent_ += CpuSeconds() - begin;
  }

  const ObjectStoreCapabilities capabilities_;
  FrameCodec codec_;
  std::string made_;
  std::string bytes_;
  double spent_ = 0;
};

int Main(uint64_t total_blocks) {
  const uint64_t packs = total_blocks / kBlocksPerPack;
  const std::string key(32, 'k');
  SyntheticPacks objects;
  PackSet set(objects, nullptr);
  Scratch scratch{absl::string_view(key)};
  const double resident_before = ResidentMib();
  BlockIndex index(set);
  const uint64_t modulus = BlockIndex::ChooseModulus(total_blocks);
  std::vector<uint64_t> hooks;
  for (uint64_t pack = 0; pack < packs; ++pack) {
    hooks.clear();
    for (uint32_t i = 0; i < kBlocksPerPack; ++i) {
      const uint64_t prefix = IdOf(pack * kBlocksPerPack + i).prefix();
      if (IsHook(prefix)) hooks.push_back(prefix);
    }
    index.AddHooks(set.Add(SyntheticPacks::NameOf(pack)), hooks, modulus);
  }
  std::mt19937_64 random(1);
  uint64_t found = 0;
  uint64_t stored = 0;
  uint64_t at = 0;
  const double begin = CpuSeconds();
  const double made_before = objects.spent();
  for (int i = 0; i < kLookups; ++i) {
    if (i % kRun == 0) at = random() % (packs * kBlocksPerPack - kRun);
    const bool is_new = i % 16 == 7;
    stored += is_new ? 0 : 1;
    found +=
        index.Find(IdOf(is_new ? (uint64_t{1} << 40) + static_cast<uint64_t>(i) : at + i % kRun), scratch).has_value();
  }
  const double microseconds = 1e6 * (CpuSeconds() - begin - (objects.spent() - made_before)) / kLookups;
  const double resident = ResidentMib() - resident_before;
  std::printf(
      "%llu blocks in %llu packs, sample 1 of %llu: %.2f us a lookup, %.1f MiB resident (%.1f counted), %llu "
      "tables loaded, %.1f %% found\n",
      static_cast<unsigned long long>(total_blocks), static_cast<unsigned long long>(packs),
      static_cast<unsigned long long>(modulus), microseconds, resident,
      static_cast<double>(index.footprint()) / (1 << 20), static_cast<unsigned long long>(index.packs_loaded()),
      100.0 * static_cast<double>(found) / static_cast<double>(stored));
  return microseconds <= kMaxMicroseconds && resident <= kMaxMib ? 0 : 1;
}

}  // namespace
}  // namespace still::store

int main(int argc, char** argv) {
  return still::store::Main(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100'000'000);
}
