// Cuts the power, kills the process, or fills the disk at change k of every operation on a repository, for every k.
//
// After it, whatever is listed must be byte-identical, what was committed before must be listed (unless it was just
// being forgotten), verification must be content, and everything must go on working: with the catalog, and without it.
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "tests/support/fault/simulated_disk.h"
#include "tests/unit/store/test_repository.h"

namespace still::store {
namespace {

constexpr size_t kImageBytes = 300 * 1024 + 77;

const std::map<std::string, std::string>& Contents() {
  static const auto* const contents = new std::map<std::string, std::string>{
      {"one", MakeImage(1, kImageBytes)},
      {"two", ChangeImage(MakeImage(1, kImageBytes), 2, 40)},
      {"three", MakeImage(3, kImageBytes)},
      {"after", MakeImage(4, kImageBytes)},
  };
  return *contents;
}

// A repository on a simulated disk, with the snapshots "one" and "two".
class Scene {
 public:
  explicit Scene(uint64_t seed, bool encrypted = false) : disk_(seed, "/disk") {
    if (encrypted) passphrases_ = {"first", "second", "third"};
  }

  SimulatedDisk& disk() { return disk_; }
  RepositoryOptions Options(const std::string& passphrase = "") {
    return {.path = "/disk",
            .credentials = {.passphrase = passphrase.empty() && !passphrases_.empty() ? passphrases_[0] : passphrase},
            .workers = 1,
            .key_cost = {.passes = 1, .memory_kib = kMinKeyMemoryKib},
            .catalog_path = JoinPath(directory_.path(), "catalog.db"),
            .file_system = &disk_};
  }
  void Prepare() {
    ASSERT_TRUE(Repository::Init(Options()).ok());
    repository_ = MustOpen(Options());
    for (const char* name : {"one", "two"}) ASSERT_TRUE(StoreImage(*repository_, name, Contents().at(name)).ok());
  }
  Repository& repository() { return *repository_; }
  // Which of the passphrases open it.
  std::vector<std::string> Opening() {
    std::vector<std::string> opening;
    for (const std::string& passphrase : passphrases_) {
      auto opened = Repository::Open(Options(passphrase));
      if (opened.ok()) opening.push_back(passphrase);
      EXPECT_TRUE(opened.ok() || absl::IsPermissionDenied(opened.status())) << opened.status();
    }
    return opening;
  }
  // The largest pack, by its file.
  std::string LargestPack() {
    std::string largest;
    uint64_t size = 0;
    const std::vector<std::string> folders = disk_.List("/disk/packs").value();
    for (const std::string& name : folders) {
      const std::string folder = JoinPath("/disk/packs", name);
      const std::vector<std::string> leaves = disk_.List(folder).value();
      for (const std::string& leaf : leaves) {
        const std::string path = JoinPath(folder, leaf);
        if (const uint64_t bytes = disk_.Stat(path)->size; bytes > size) {
          size = bytes;
          largest = path;
        }
      }
    }
    return largest;
  }
  std::string IdOf(const std::string& name) { return repository_->FindSnapshot(name)->id(); }
  void Close() { repository_.reset(); }
  // The leases of who died go with it: here that is our own process, which lives, so no lease can be found stale.
  void DropLeases() {
    auto names = disk_.List("/disk/locks");
    if (!names.ok()) return;
    for (const std::string& name : *names) {
      const std::string path = JoinPath("/disk/locks", name);
      auto info = disk_.Stat(path);
      ASSERT_TRUE(info.ok());
      if (!info->is_directory) {
        ASSERT_TRUE(disk_.Remove(path).ok());
        continue;
      }
      auto leaves = disk_.List(path);
      ASSERT_TRUE(leaves.ok());
      for (const std::string& leaf : *leaves) ASSERT_TRUE(disk_.Remove(JoinPath(path, leaf)).ok());
    }
  }
  void RemoveCatalog() {
    for (const char* suffix : {"", "-wal", "-shm"}) {
      ASSERT_TRUE(RemoveFile(JoinPath(directory_.path(), absl::StrCat("catalog.db", suffix))).ok());
    }
  }
  // Everything that must hold after a crash, also for what comes next. `may_miss`: was being forgotten.
  void CheckAll(const std::string& may_miss, const std::function<void(Scene&)>& first = nullptr) {
    if (passphrases_.empty()) {
      repository_ = MustOpen(Options());
    } else {
      const std::vector<std::string> opening = Opening();
      ASSERT_FALSE(opening.empty());
      repository_ = MustOpen(Options(opening[0]));
    }
    ASSERT_NE(repository_, nullptr);
    if (first) first(*this);
    for (const char* name : {"one", "two"}) {
      EXPECT_TRUE(name == may_miss || repository_->FindSnapshot(name).ok()) << name;
    }
    CheckListed();
    ASSERT_TRUE(StoreImage(*repository_, "after", Contents().at("after")).ok());
    auto pruned = repository_->Prune({.grace = absl::ZeroDuration(), .min_live_fraction = 1});
    ASSERT_TRUE(pruned.ok()) << pruned.status();
    CheckListed();
  }

 private:
  void CheckListed() {
    auto snapshots = repository_->ListSnapshots();
    ASSERT_TRUE(snapshots.ok()) << snapshots.status();
    for (const manifest::Snapshot& snapshot : *snapshots) {
      auto content = LoadImage(*repository_, snapshot.name());
      ASSERT_TRUE(content.ok()) << content.status();
      EXPECT_TRUE(*content == Contents().at(snapshot.name())) << snapshot.name();
    }
    auto report = repository_->Verify({.read_data_percent = 100});
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->ok()) << report->problems[0];
  }

  SimulatedDisk disk_;
  std::vector<std::string> passphrases_;
  TemporaryDirectory directory_{"/dev/shm"};
  std::unique_ptr<Repository> repository_;
};

struct Operation {
  const char* name;
  std::function<absl::Status(Scene&)> run;
  const char* may_miss = "";
  std::function<void(Scene&)> before = nullptr;
  std::function<void(Scene&)> after = nullptr;  // With the repository open again, before it is checked.
  bool encrypted = false;
};

void PrintTo(const Operation& operation, std::ostream* out) { *out << operation.name; }

class EveryChange : public ::testing::TestWithParam<Operation> {
 protected:
  // Runs the operation on a fresh scene with a fault at change k. False when it went through without meeting it.
  bool RunWithFault(int k, const std::function<void(SimulatedDisk&, int k)>& arm, Scene& scene, absl::Status& status) {
    scene.Prepare();
    if (GetParam().before) GetParam().before(scene);
    const int64_t before = scene.disk().changes();
    arm(scene.disk(), k);
    status = GetParam().run(scene);
    return scene.disk().changes() - before >= k;
  }
};

TEST_P(EveryChange, LosesNothingWhenThePowerGoes) {
  for (int k = 1;; ++k) {
    for (bool with_catalog : {true, false}) {
      SCOPED_TRACE(absl::StrCat("change ", k, with_catalog ? "" : ", without catalog"));
      Scene scene(static_cast<uint64_t>(k) * 2 + with_catalog, GetParam().encrypted);
      absl::Status status;
      const bool met = RunWithFault(
          k, [](SimulatedDisk& disk, int at) { disk.CutPowerAt(at); }, scene, status);
      if (!met) {
        EXPECT_TRUE(status.ok()) << status;
        EXPECT_GT(k, 2);
        return;
      }
      scene.Close();
      scene.disk().Reboot();
      scene.DropLeases();
      if (!with_catalog) scene.RemoveCatalog();
      scene.CheckAll(GetParam().may_miss, GetParam().after);
      if (HasFailure()) return;
    }
  }
}

TEST_P(EveryChange, LosesNothingWhenTheProcessDies) {
  for (int k = 1;; ++k) {
    SCOPED_TRACE(absl::StrCat("change ", k));
    Scene scene(static_cast<uint64_t>(k), GetParam().encrypted);
    absl::Status status;
    if (!RunWithFault(
            k, [](SimulatedDisk& disk, int at) { disk.CutPowerAt(at); }, scene, status))
      return;
    scene.Close();
    scene.disk().RestartProcess();
    scene.DropLeases();
    scene.CheckAll(GetParam().may_miss, GetParam().after);
    if (HasFailure()) return;
  }
}

TEST_P(EveryChange, LosesNothingWhenTheDiskIsFull) {
  for (int k = 1;; ++k) {
    SCOPED_TRACE(absl::StrCat("change ", k));
    Scene scene(static_cast<uint64_t>(k), GetParam().encrypted);
    absl::Status status;
    const bool met = RunWithFault(
        k,
        [](SimulatedDisk& disk, int at) { disk.FailAt(at, absl::ResourceExhaustedError("No space left on device")); },
        scene, status);
    if (!met) return;
    // Some failures are made good for; none is passed off as something else.
    EXPECT_TRUE(status.ok() || absl::IsResourceExhausted(status)) << status;
    // Where the fault met the giving up of a lease, that lease would hold for its term.
    scene.DropLeases();
    if (GetParam().after) GetParam().after(scene);
    // The repository that met it goes on, as soon as there is room.
    auto stored = StoreImage(scene.repository(), "three", Contents().at("three"));
    EXPECT_TRUE(stored.ok() || absl::IsAlreadyExists(stored.status())) << stored.status();
    scene.Close();
    scene.CheckAll(GetParam().may_miss, GetParam().after);
    if (HasFailure()) return;
  }
}

absl::Status Capture(Scene& scene) { return StoreImage(scene.repository(), "three", Contents().at("three")).status(); }

absl::Status IncrementalCapture(Scene& scene) {
  STILL_ASSIGN_OR_RETURN(manifest::Snapshot base, scene.repository().FindSnapshot("one"));
  return StoreImage(scene.repository(), "three", Contents().at("three"), &base.images(0)).status();
}

void ForgetTwo(Scene& scene) { ASSERT_TRUE(scene.repository().Forget({scene.IdOf("two")}).ok()); }

absl::Status Prune(Scene& scene) {
  return scene.repository().Prune({.grace = absl::ZeroDuration(), .min_live_fraction = 1}).status();
}

void HoldTwo(Scene& scene) { ASSERT_TRUE(scene.repository().HoldSnapshot(scene.IdOf("two"), "audit").ok()); }

// A pack without its footer: all of it can be saved.
void CutOffFooter(Scene& scene) {
  const std::string pack = scene.LargestPack();
  scene.disk().Truncate(pack, scene.disk().Stat(pack)->size - 40);
}

void RepairAgain(Scene& scene) {
  auto report = scene.repository().Repair({});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_TRUE(report->lost.empty());
}

void AddSecondKey(Scene& scene) { ASSERT_TRUE(scene.repository().AddKey({.passphrase = "second"}, "").ok()); }

// The id of the one that init made.
std::string FirstKey(Scene& scene) {
  const std::vector<KeySlotInfo> keys = scene.repository().ListKeys().value();
  for (const KeySlotInfo& key : keys) {
    if (key.description.label == "init") return key.id;
  }
  return "";
}

std::vector<Operation> KeyOperations() {
  return {{.name = "AddKey",
           .run = [](Scene& scene) { return scene.repository().AddKey({.passphrase = "second"}, "").status(); },
           .after = [](Scene& scene) { EXPECT_EQ(scene.Opening()[0], "first"); },
           .encrypted = true},
          {.name = "ChangeKey",
           .run =
               [](Scene& scene) {
                 return scene.repository().ChangeKey(FirstKey(scene), {.passphrase = "third"}, "").status();
               },
           .encrypted = true},
          {.name = "RemoveKey",
           .run = [](Scene& scene) { return scene.repository().RemoveKey(FirstKey(scene)); },
           .before = AddSecondKey,
           .after = [](Scene& scene) { EXPECT_EQ(scene.Opening().back(), "second"); },
           .encrypted = true}};
}

INSTANTIATE_TEST_SUITE_P(Keys, EveryChange, ::testing::ValuesIn(KeyOperations()),
                         [](const auto& info) { return std::string(info.param.name); });

INSTANTIATE_TEST_SUITE_P(
    Operations, EveryChange,
    ::testing::Values(
        Operation{.name = "Capture", .run = Capture},
        Operation{.name = "IncrementalCapture", .run = IncrementalCapture},
        Operation{.name = "Forget",
                  .run = [](Scene& scene) { return scene.repository().Forget({scene.IdOf("two")}); },
                  .may_miss = "two"},
        Operation{.name = "Prune", .run = Prune, .may_miss = "two", .before = ForgetTwo},
        Operation{.name = "Hold",
                  .run = [](Scene& scene) { return scene.repository().HoldSnapshot(scene.IdOf("two"), "audit"); }},
        Operation{.name = "Release",
                  .run = [](Scene& scene) { return scene.repository().ReleaseSnapshot(scene.IdOf("two")); },
                  .before = HoldTwo},
        Operation{.name = "Repair",
                  .run = [](Scene& scene) { return scene.repository().Repair({}).status(); },
                  .before = CutOffFooter,
                  .after = RepairAgain}),
    [](const auto& info) { return std::string(info.param.name); });

// Its writes go to the catalog, which is SQLite's to keep whole; of the objects it only syncs directories.
TEST(RebuildCatalogTest, AFailureAtAnyChangeLeavesTheOldCatalog) {
  Scene scene(1);
  scene.Prepare();
  for (int k = 1;; ++k) {
    SCOPED_TRACE(k);
    const int64_t before = scene.disk().changes();
    scene.disk().FailAt(k, absl::ResourceExhaustedError("No space left on device"));
    const absl::Status status = scene.repository().RebuildCatalog();
    EXPECT_EQ(scene.repository().ListSnapshots()->size(), 2);
    if (scene.disk().changes() - before < k) break;
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    ASSERT_LT(k, 100);
  }
  scene.disk().FailAt(0, absl::OkStatus());
  scene.Close();
  scene.CheckAll("");
}

TEST(InitTest, LeavesNoRepositoryOrAWholeOneWhenThePowerGoes) {
  for (int k = 1;; ++k) {
    SCOPED_TRACE(k);
    Scene scene(static_cast<uint64_t>(k));
    scene.disk().CutPowerAt(k);
    const absl::Status status = Repository::Init(scene.Options());
    if (!scene.disk().power_is_off()) {
      EXPECT_TRUE(status.ok()) << status;
      return;
    }
    scene.disk().Reboot();
    auto repository = Repository::Open(scene.Options());
    if (!repository.ok()) {
      EXPECT_EQ(repository.status().code(), absl::StatusCode::kFailedPrecondition) << repository.status();
      EXPECT_TRUE(Repository::Init(scene.Options()).ok());
      repository = Repository::Open(scene.Options());
    }
    ASSERT_TRUE(repository.ok()) << repository.status();
    EXPECT_TRUE(StoreImage(**repository, "one", Contents().at("one")).ok());
  }
}

}  // namespace
}  // namespace still::store
