#include "store/catalog/catalog.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/unix_socket.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "store/catalog/schema.h"
#include "store/sqlite/sqlite.h"

namespace still::store {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

CatalogPack Pack(char letter, int64_t created = 1) {
  return {.name = std::string(16, letter), .kind = 2, .size = 1000, .created_unix_ns = created, .hooks = "hooks"};
}
std::string NodeId(char letter) { return std::string(32, letter); }

CatalogSnapshot Snapshot(char letter, std::string name, int64_t point = 1) {
  return {.id = std::string(32, letter),
          .name = std::move(name),
          .session = "web",
          .session_id = "session-1",
          .point_unix_ns = point,
          .committed_unix_ns = point + 1,
          .kind = 2,
          .manifest = std::string("bytes\0of it", 11),
          .labels = {{"keep", "yes"}, {"'; DROP TABLE snapshot; --", "\""}},
          .images = {{.name = "ram", .role = 2, .size = 4096, .root = NodeId('r'), .bitmap = ""},
                     {.name = "vda", .role = 1, .size = 8192, .root = NodeId('v'), .bitmap = "bitmap-1"}}};
}

class CatalogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = JoinPath(::testing::TempDir(), "still-catalog-XXXXXX");
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    dir_ = pattern;
    path_ = JoinPath(dir_, "catalog.db");
  }
  void TearDown() override { EXPECT_TRUE(RemoveTree(dir_).ok()); }
  std::unique_ptr<Catalog> OpenOrDie(absl::Duration busy = absl::Seconds(30)) {
    absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open({.path = path_, .busy_timeout = busy});
    EXPECT_TRUE(catalog.ok()) << catalog.status();
    return catalog.ok() ? *std::move(catalog) : nullptr;
  }
  static absl::Status Change(Catalog& catalog, const std::function<absl::Status(CatalogTransaction&)>& body) {
    STILL_ASSIGN_OR_RETURN(CatalogTransaction change, catalog.Begin());
    STILL_RETURN_IF_ERROR(body(change));
    return change.Commit();
  }
  static absl::Status PutSnapshot(Catalog& catalog, const CatalogSnapshot& snapshot) {
    return Change(catalog, [&](CatalogTransaction& change) { return change.PutSnapshot(snapshot); });
  }
  std::string dir_;
  std::string path_;
};

TEST_F(CatalogTest, IsPrivate) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  ASSERT_TRUE(PutSnapshot(*catalog, Snapshot('a', "one")).ok());
  absl::StatusOr<std::vector<std::string>> names = ListDirectory(dir_);
  ASSERT_THAT(*names, SizeIs(3)) << "the file, its log and their shared memory";
  for (const std::string& name : *names) {
    struct stat status {};
    ASSERT_EQ(::stat(JoinPath(dir_, name).c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, 0600u) << name;
  }
}

TEST_F(CatalogTest, GivesBackSnapshotsAsTheyWerePut) {
  CatalogSnapshot put = Snapshot('a', "it's \"one\"; --");
  ASSERT_TRUE(PutSnapshot(*OpenOrDie(), put).ok());
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  absl::StatusOr<std::optional<CatalogSnapshot>> got = catalog->FindSnapshotByName(put.name);
  ASSERT_TRUE(got.ok() && got->has_value()) << got.status();
  EXPECT_EQ((*got)->id, put.id);
  EXPECT_EQ((*got)->manifest, put.manifest);
  EXPECT_EQ((*got)->labels, put.labels);
  EXPECT_EQ((*got)->point_unix_ns, put.point_unix_ns);
  EXPECT_EQ((*got)->committed_unix_ns, put.committed_unix_ns);
  EXPECT_EQ((*got)->kind, put.kind);
  ASSERT_THAT((*got)->images, SizeIs(2));
  EXPECT_EQ((*got)->images[1].name, "vda");
  EXPECT_EQ((*got)->images[1].root, NodeId('v'));
  EXPECT_EQ((*got)->images[1].size, 8192u);
  EXPECT_EQ((*got)->images[1].bitmap, "bitmap-1");
  EXPECT_EQ((**catalog->FindSnapshot(put.id)).name, put.name);
  EXPECT_FALSE(catalog->FindSnapshot("nothing")->has_value());
}

TEST_F(CatalogTest, NamesAreUniqueUnlessEmpty) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  ASSERT_TRUE(PutSnapshot(*catalog, Snapshot('a', "one")).ok());
  absl::Status taken = PutSnapshot(*catalog, Snapshot('b', "one"));
  EXPECT_EQ(taken.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(taken.message(), HasSubstr("one"));
  EXPECT_EQ(PutSnapshot(*catalog, Snapshot('a', "other")).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(PutSnapshot(*catalog, Snapshot('c', "")).ok());
  EXPECT_TRUE(PutSnapshot(*catalog, Snapshot('d', "")).ok());
  EXPECT_THAT(*catalog->ListSnapshots(), SizeIs(3));
}

TEST_F(CatalogTest, RemovingASnapshotTakesItsRowsAlong) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  ASSERT_TRUE(PutSnapshot(*catalog, Snapshot('a', "one", 5)).ok());
  ASSERT_TRUE(PutSnapshot(*catalog, Snapshot('b', "two", 3)).ok());
  EXPECT_EQ(catalog->ListSnapshots()->front().name, "two") << "the first commit first";
  EXPECT_EQ((**catalog->FindBase("session-1", "vda")).snapshot_id, std::string(32, 'a'));
  ASSERT_TRUE(Change(*catalog, [](auto& change) { return change.RemoveSnapshot(std::string(32, 'a')); }).ok());
  EXPECT_EQ((**catalog->FindBase("session-1", "vda")).snapshot_id, std::string(32, 'b'));
  EXPECT_FALSE(catalog->FindBase("session-1", "vdb")->has_value());
  EXPECT_FALSE(catalog->FindBase("session-2", "vda")->has_value());
  ASSERT_TRUE(PutSnapshot(*catalog, Snapshot('a', "one", 9)).ok()) << "nothing of the removed one is left";
  std::vector<CatalogSession> sessions = *catalog->ListSessions();
  ASSERT_THAT(sessions, SizeIs(1));
  EXPECT_EQ(sessions[0].snapshots, 2u);
  EXPECT_EQ(sessions[0].first_point_unix_ns, 3);
  EXPECT_EQ(sessions[0].last_point_unix_ns, 9);
}

TEST_F(CatalogTest, TheOrderIsThatOfCommitsWhateverTheClocksSaid) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  EXPECT_EQ(*catalog->NewestSequence(), 0);
  CatalogSnapshot old = Snapshot('a', "old", 50);
  CatalogSnapshot ahead = Snapshot('b', "ahead", 1000);
  CatalogSnapshot after = Snapshot('c', "after", 60);
  ahead.sequence = 1;
  after.sequence = 2;
  for (const CatalogSnapshot* one : {&after, &ahead, &old}) ASSERT_TRUE(PutSnapshot(*catalog, *one).ok());
  std::vector<CatalogSnapshot> all = *catalog->ListSnapshots();
  ASSERT_THAT(all, SizeIs(3));
  EXPECT_EQ(all[0].name, "old");
  EXPECT_EQ(all[1].name, "ahead");
  EXPECT_EQ(all[2].name, "after");
  EXPECT_EQ((**catalog->FindBase("session-1", "vda")).snapshot_id, after.id);
  EXPECT_EQ(*catalog->NewestSequence(), 2);
}

TEST_F(CatalogTest, FindsNodesInTheNewestPackFirst) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  const CatalogNode nodes[] = {{.id = NodeId('x'), .ordinal = 3}, {.id = NodeId('y'), .ordinal = 4}};
  ASSERT_TRUE(Change(*catalog, [&](auto& change) {
                STILL_RETURN_IF_ERROR(change.PutPack(Pack('b', 20), nodes));
                STILL_RETURN_IF_ERROR(change.PutPack(Pack('a', 20), absl::MakeSpan(nodes, 1)));
                return change.PutPack(Pack('c', 10), absl::MakeSpan(nodes, 1));
              }).ok());
  std::vector<NodePlace> places = *catalog->FindNode(NodeId('x'));
  ASSERT_THAT(places, SizeIs(3));
  EXPECT_EQ(places[0].pack, std::string(16, 'b'));
  EXPECT_EQ(places[0].ordinal, 3u);
  EXPECT_EQ(places[1].pack, std::string(16, 'a'));
  EXPECT_EQ(places[2].pack, std::string(16, 'c'));
  ASSERT_TRUE(Change(*catalog, [](auto& change) { return change.RemovePack(std::string(16, 'b')); }).ok());
  EXPECT_THAT(*catalog->FindNode(NodeId('x')), SizeIs(2));
  EXPECT_THAT(*catalog->FindNode(NodeId('y')), IsEmpty());
}

TEST_F(CatalogTest, PacksAreCondemnedAndPardoned) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  absl::Time when = absl::FromUnixNanos(123456789);
  CatalogPack pack = Pack('a', 7);
  pack.blocks = 5;
  pack.overhead = 99;
  ASSERT_TRUE(Change(*catalog, [&](auto& change) {
                STILL_RETURN_IF_ERROR(change.PutPack(pack, {}));
                return change.SetCondemned(pack.name, when);
              }).ok());
  CatalogPack got = **catalog->FindPack(pack.name);
  EXPECT_EQ(got.condemned, when);
  EXPECT_EQ(got.hooks, "hooks");
  EXPECT_EQ(got.blocks, 5u);
  EXPECT_EQ(got.overhead, 99u);
  EXPECT_EQ(got.size, 1000u);
  EXPECT_EQ(got.kind, 2);
  ASSERT_TRUE(Change(*catalog, [&](auto& change) { return change.SetCondemned(pack.name, std::nullopt); }).ok());
  std::vector<CatalogPack> listed;
  ASSERT_TRUE(catalog->ForEachPack(false, [&](const CatalogPack& each) { listed.push_back(each); }).ok());
  ASSERT_THAT(listed, SizeIs(1));
  EXPECT_FALSE(listed[0].condemned.has_value());
  EXPECT_EQ(listed[0].hooks, "");
  EXPECT_EQ(Change(*catalog, [&](auto& change) { return change.SetCondemned("absent", when); }).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(CatalogTest, WhatIsNotCommittedIsUndoneAndNotSeen) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  {
    absl::StatusOr<CatalogTransaction> change = catalog->Begin();
    ASSERT_TRUE(change.ok());
    ASSERT_TRUE(change->PutSnapshot(Snapshot('a', "one")).ok());
    EXPECT_THAT(*catalog->ListSnapshots(), IsEmpty()) << "reads see what was committed";
  }
  EXPECT_THAT(*catalog->ListSnapshots(), IsEmpty());
  EXPECT_TRUE(PutSnapshot(*catalog, Snapshot('a', "one")).ok());
}

TEST_F(CatalogTest, ASecondWriterWaitsOrGivesUp) {
  std::unique_ptr<Catalog> first = OpenOrDie();
  std::unique_ptr<Catalog> second = OpenOrDie(absl::Milliseconds(20));
  absl::StatusOr<CatalogTransaction> held = first->Begin();
  ASSERT_TRUE(held.ok());
  absl::Status busy = PutSnapshot(*second, Snapshot('b', "two"));
  EXPECT_EQ(busy.code(), absl::StatusCode::kUnavailable) << busy;
  EXPECT_THAT(*second->ListSnapshots(), IsEmpty()) << "readers never wait for a writer";

  std::unique_ptr<Catalog> patient = OpenOrDie();
  std::thread waiting([&] { EXPECT_TRUE(PutSnapshot(*patient, Snapshot('c', "three")).ok()); });
  EXPECT_TRUE(held->PutSnapshot(Snapshot('a', "one")).ok());
  EXPECT_TRUE(held->Commit().ok());
  { CatalogTransaction ended = *std::move(held); }
  waiting.join();
  EXPECT_THAT(*first->ListSnapshots(), SizeIs(2));
}

TEST_F(CatalogTest, ThreadsShareOneCatalog) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  std::atomic<int> put{0};
  std::vector<std::thread> threads;
  for (char letter : {'a', 'b', 'c', 'd'}) {
    threads.emplace_back([&, letter] {
      for (int i = 0; i < 5; ++i) {
        CatalogSnapshot snapshot = Snapshot(letter, absl::StrCat(std::string(1, letter), i));
        snapshot.id[0] = static_cast<char>('0' + i);
        if (PutSnapshot(*catalog, snapshot).ok() && catalog->FindSnapshot(snapshot.id)->has_value()) ++put;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(put, 20);
}

// Each process puts its own snapshots and then is killed in the middle of a change.
TEST_F(CatalogTest, ProcessesShareTheFileAndAKilledOneLeavesNothingHalf) {
  { OpenOrDie(); }
  for (char letter : {'a', 'b'}) {
    absl::StatusOr<SocketPair> pair = MakeSocketPair();
    ASSERT_TRUE(pair.ok());
    pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      absl::StatusOr<std::unique_ptr<Catalog>> catalog = Catalog::Open({.path = path_});
      if (!catalog.ok() || !PutSnapshot(**catalog, Snapshot(letter, std::string(1, letter))).ok()) ::_exit(1);
      absl::StatusOr<CatalogTransaction> change = (*catalog)->Begin();
      if (!change.ok() || !change->PutSnapshot(Snapshot('f', "unfinished")).ok()) ::_exit(1);
      if (::write(pair->second.get(), "x", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char ready;
    EXPECT_TRUE(WaitReadable(pair->first.get(), absl::Seconds(30), "child").ok());
    EXPECT_EQ(::read(pair->first.get(), &ready, 1), 1);
    ::kill(child, SIGKILL);
    ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  }
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  std::vector<CatalogSnapshot> snapshots = *catalog->ListSnapshots();
  ASSERT_THAT(snapshots, SizeIs(2));
  EXPECT_TRUE(catalog->Check().ok());
}

TEST_F(CatalogTest, ADamagedFileIsNamedWithTheCommandThatMendsIt) {
  ASSERT_TRUE(WriteFileAtomically(path_, std::string(8192, 'x')).ok());
  absl::Status status = Catalog::Open({.path = path_}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(status.message(), HasSubstr("still repair catalog"));
}

TEST_F(CatalogTest, DamagedPagesAreFoundByCheck) {
  {
    std::unique_ptr<Catalog> catalog = OpenOrDie();
    for (char letter = 'a'; letter < 'z'; ++letter) {
      ASSERT_TRUE(PutSnapshot(*catalog, Snapshot(letter, std::string(1, letter))).ok());
    }
  }
  int64_t root;
  {
    absl::StatusOr<Database> db = Database::Open(path_, kCatalogKind, absl::Seconds(10));
    ASSERT_TRUE(db.ok()) << db.status();
    root = *db->QueryInt("SELECT rootpage FROM sqlite_master WHERE name = 'snapshot'");
  }
  {
    // Not a page of the schema: the file opens.
    absl::StatusOr<OwnedFd> fd = OpenFile(path_, O_WRONLY);
    ASSERT_TRUE(fd.ok());
    ASSERT_TRUE(PWriteAll(fd->get(), "damage", 6, static_cast<uint64_t>(root - 1) * 4096, path_).ok());
  }
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  ASSERT_NE(catalog, nullptr);
  EXPECT_EQ(catalog->Check().code(), absl::StatusCode::kDataLoss);
  absl::Status reading = catalog->ListSnapshots().status();
  EXPECT_EQ(reading.code(), absl::StatusCode::kDataLoss) << reading;
  EXPECT_THAT(reading.message(), HasSubstr("still repair catalog"));
}

TEST_F(CatalogTest, AnImpossibleVersionIsDamage) {
  OpenOrDie();
  {
    absl::StatusOr<Database> db = Database::Open(path_, kCatalogKind, absl::Seconds(10));
    ASSERT_TRUE(db.ok()) << db.status();
    ASSERT_TRUE(db->Execute("PRAGMA user_version = -3").ok());
  }
  const absl::Status status = Catalog::Open({.path = path_}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_THAT(status.message(), HasSubstr("still repair catalog"));
}

TEST_F(CatalogTest, ADamagedNameOfAPackIsAnErrorAndNoReasonToDie) {
  {
    std::unique_ptr<Catalog> catalog = OpenOrDie();
    const std::vector<CatalogNode> nodes = {{.id = NodeId('n'), .ordinal = 1}};
    ASSERT_TRUE(Change(*catalog, [&](CatalogTransaction& change) { return change.PutPack(Pack('a'), nodes); }).ok());
  }
  {
    absl::StatusOr<Database> db = Database::Open(path_, kCatalogKind, absl::Seconds(10));
    ASSERT_TRUE(db.ok()) << db.status();
    ASSERT_TRUE(db->Execute("PRAGMA ignore_check_constraints = ON; UPDATE pack SET name = x'6161'").ok());
  }
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  const absl::Status listing = catalog->ForEachPack(false, [](const CatalogPack&) { ADD_FAILURE(); });
  EXPECT_EQ(listing.code(), absl::StatusCode::kDataLoss) << listing;
  EXPECT_THAT(listing.message(), HasSubstr("still repair catalog"));
  EXPECT_EQ(catalog->FindNode(NodeId('n')).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(catalog->Check().code(), absl::StatusCode::kDataLoss);
}

TEST_F(CatalogTest, RebuildReplacesEverything) {
  for (bool damaged : {false, true}) {
    SCOPED_TRACE(damaged);
    ASSERT_TRUE(RemoveTree(dir_).ok() && MakeDirectories(dir_).ok());
    {
      std::unique_ptr<Catalog> catalog = OpenOrDie();
      ASSERT_TRUE(PutSnapshot(*catalog, Snapshot('a', "lost")).ok());
    }
    if (damaged) {
      ASSERT_TRUE(WriteFileAtomically(path_, "no database at all, but long enough to be one").ok());
    }
    absl::StatusOr<std::unique_ptr<Catalog>> rebuilt =
        Catalog::Rebuild({.path = path_}, [](CatalogTransaction& change) {
          STILL_RETURN_IF_ERROR(change.PutPack(Pack('p'), {}));
          return change.PutSnapshot(Snapshot('b', "found"));
        });
    ASSERT_TRUE(rebuilt.ok()) << rebuilt.status();
    std::vector<CatalogSnapshot> snapshots = *(*rebuilt)->ListSnapshots();
    ASSERT_THAT(snapshots, SizeIs(1));
    EXPECT_EQ(snapshots[0].name, "found");
    EXPECT_EQ(PathExists(path_ + ".damaged"), damaged) << "what was damaged is set aside, not destroyed";
  }
}

TEST_F(CatalogTest, ARebuildThatFailsLeavesTheOldRows) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  ASSERT_TRUE(PutSnapshot(*catalog, Snapshot('a', "old")).ok());
  absl::Status status = Catalog::Rebuild({.path = path_}, [](CatalogTransaction&) {
                          return absl::DataLossError("a pack cannot be read");
                        }).status();
  EXPECT_EQ(status.message(), "a pack cannot be read");
  EXPECT_THAT(*catalog->ListSnapshots(), SizeIs(1));
}

TEST_F(CatalogTest, AnOpenCatalogNoticesThatItsFileWasReplaced) {
  std::unique_ptr<Catalog> catalog = OpenOrDie();
  ASSERT_TRUE(RemoveFile(path_).ok());
  EXPECT_EQ(PutSnapshot(*catalog, Snapshot('a', "one")).code(), absl::StatusCode::kFailedPrecondition);
}

// The environment of a test, put back at its end.
class ScopedEnvironment {
 public:
  ScopedEnvironment(const char* name, const char* value) : name_(name) {
    if (const char* old = ::getenv(name); old != nullptr) old_ = old;
    EXPECT_EQ(value == nullptr ? ::unsetenv(name) : ::setenv(name, value, 1), 0);
  }
  ~ScopedEnvironment() { EXPECT_EQ(old_.has_value() ? ::setenv(name_, old_->c_str(), 1) : ::unsetenv(name_), 0); }

 private:
  const char* const name_;
  std::optional<std::string> old_;
};

TEST(CatalogPathTest, AnEncryptedRepositoryKeepsItsCatalogInTheCache) {
  EXPECT_EQ(*CatalogPath("/srv/r", "0123", false), "/srv/r/catalog.db");
  std::string cache = JoinPath(::testing::TempDir(), absl::StrCat("still-cache-", ::getpid()));
  ScopedEnvironment own("STILL_CACHE_DIR", cache.c_str());
  EXPECT_EQ(*CatalogPath("/srv/r", "0123", true), JoinPath(cache, "0123.db"));
  EXPECT_THAT(KnownCatalogs("/srv/r", "0123", true), SizeIs(0));
  ASSERT_TRUE(WriteFileAtomically(JoinPath(cache, "0123.db"), "").ok());
  EXPECT_THAT(KnownCatalogs("/srv/r", "0123", true), SizeIs(1));
  EXPECT_TRUE(RemoveTree(cache).ok());
}

TEST(CatalogPathTest, WhoHasNoHomeInTheEnvironmentHasAPlaceAllTheSame) {
  // As systemd starts a service.
  ScopedEnvironment own("STILL_CACHE_DIR", nullptr);
  ScopedEnvironment xdg("XDG_CACHE_HOME", nullptr);
  ScopedEnvironment home("HOME", nullptr);
  absl::StatusOr<std::string> path = CatalogPath("/srv/r", "0123", true);
  ASSERT_TRUE(path.ok()) << path.status();
  if (::geteuid() == 0) {
    EXPECT_EQ(*path, "/var/cache/stillpoint/0123.db");
  }
  (void)::rmdir(path->substr(0, path->rfind('/')).c_str());  // Unless somebody uses it.
}

}  // namespace
}  // namespace still::store
