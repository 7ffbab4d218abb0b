// A VM whose disks hold it or complete as each test says, and a disk server that does what it is told.
#include "session/vm_keeper.h"

#include <gmock/gmock.h>
#include <signal.h>

#include <utility>
#include <vector>

#include "tests/support/fake_vm.h"
#include "tests/unit/session-disks/disk_server_fixture.h"

namespace still::session {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr absl::Duration kLimit = absl::Seconds(30);

class LazyVm : public testing::FakeVm, public LazyDisks {
 public:
  LazyVm() : FakeVm({}) {}
  LazyDisks* lazy_disks() override { return this; }

  absl::StatusOr<std::vector<LazyDiskState>> Query() override {
    absl::MutexLock lock(&mutex_);
    return std::vector<LazyDiskState>{disk_};
  }
  absl::Status Hydrate(uint64_t bytes_per_second) override {
    absl::MutexLock lock(&mutex_);
    rates_.push_back(bytes_per_second);
    disk_.hydrating = server_has_it_;
    return absl::OkStatus();
  }
  absl::StatusOr<std::optional<Standstill>> FindStandstill() override {
    absl::MutexLock lock(&mutex_);
    if (!held_) return std::nullopt;
    return Standstill{.kind = Standstill::Kind::kHeld, .disk = "vda", .write = write_, .reason = "Input/output error"};
  }
  absl::Status Resume() override {
    absl::MutexLock lock(&mutex_);
    ++resumes_;
    held_ = !server_has_it_;  // The guest asks again, at once.
    return absl::OkStatus();
  }

  // The guest has read something that the server cannot give, or written a part of it; a hydration would end too.
  void Hold(bool write = false) {
    absl::MutexLock lock(&mutex_);
    held_ = true;
    write_ = write;
    server_has_it_ = false;
  }
  void EndHydration(bool complete) {
    absl::MutexLock lock(&mutex_);
    disk_.hydrating = false;
    disk_.complete = complete;
    server_has_it_ = complete;
  }
  void MendServer() {
    absl::MutexLock lock(&mutex_);
    server_has_it_ = true;
  }
  bool held() {
    absl::MutexLock lock(&mutex_);
    return held_;
  }
  int resumes() {
    absl::MutexLock lock(&mutex_);
    return resumes_;
  }
  std::vector<uint64_t> rates() {
    absl::MutexLock lock(&mutex_);
    return rates_;
  }

 private:
  absl::Mutex mutex_;
  LazyDiskState disk_ ABSL_GUARDED_BY(mutex_) = {.name = "vda", .size = 1 << 20};
  bool held_ ABSL_GUARDED_BY(mutex_) = false;
  bool write_ ABSL_GUARDED_BY(mutex_) = false;
  bool server_has_it_ ABSL_GUARDED_BY(mutex_) = true;
  int resumes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<uint64_t> rates_ ABSL_GUARDED_BY(mutex_);
};

class VmKeeperTest : public testing::DiskServerFixture {
 protected:
  void TearDown() override {
    keeper_.reset();  // It uses the directory until it has ended.
    DiskServerFixture::TearDown();
  }
  void Start() {
    auto server = DiskServer::Start(Options());
    ASSERT_TRUE(server.ok()) << server.status();
    keeper_ = std::make_unique<VmKeeper>(vm_, *std::move(server), "disk vda of snapshot s");
  }
  void CannotRead(bool on) {
    absl::Status done = on ? WriteFileAtomically(Path("unread"), "") : RemoveFile(Path("unread"));
    ASSERT_TRUE(done.ok()) << done;
  }
  bool Told(const ::testing::Matcher<const std::string&>& words) {
    return Within(kLimit, [&] { return words.Matches(keeper_->trouble()); });
  }

  LazyVm vm_;
  std::unique_ptr<VmKeeper> keeper_;
};

TEST_F(VmKeeperTest, AHeldGuestGoesOnWhenTheReadCanBeAnsweredAndUntilThenItIsSaidWhich) {
  CannotRead(true);
  Start();
  EXPECT_EQ(keeper_->trouble(), "") << "the guest has noticed nothing";
  const pid_t first = Pid();
  vm_.Hold();
  EXPECT_TRUE(Told("the guest is held: disk vda of snapshot s cannot be read: bytes 1 to 2: gone"))
      << keeper_->trouble();
  EXPECT_TRUE(Within(kLimit, [&] { return vm_.resumes() >= 2; })) << "tried again, and again";
  EXPECT_TRUE(vm_.held());
  EXPECT_TRUE(Within(kLimit, [&] { return ::kill(Pid(), 0) != 0; })) << "between two tries others have the repository";
  EXPECT_NE(Pid(), first) << "a server that was started anew may find what the old one could not";
  EXPECT_THAT(vm_.rates(), IsEmpty()) << "nobody has asked for hydration";
  CannotRead(false);
  vm_.MendServer();
  EXPECT_TRUE(Within(kLimit, [&] { return !vm_.held(); }));
  EXPECT_TRUE(Told(IsEmpty())) << keeper_->trouble();
}

TEST_F(VmKeeperTest, WhenTheServerEndsTooBothAreToldAndTheGuestStaysHeld) {
  CannotRead(true);
  Start();
  vm_.Hold();
  ASSERT_TRUE(Told(HasSubstr("bytes 1 to 2: gone")));
  Fail(true);
  EXPECT_TRUE(
      Told("the guest is held: disk vda of snapshot s cannot be read: bytes 1 to 2: gone; "
           "the disk server ended: the repository is away"))
      << keeper_->trouble();
  const int resumes = vm_.resumes();
  const pid_t failed = Pid();
  EXPECT_TRUE(Within(kLimit, [&] { return Pid() != failed; })) << "it is tried again and again";
  EXPECT_EQ(vm_.resumes(), resumes) << "over a server that does not serve";
  vm_.MendServer();
  CannotRead(false);
  Fail(false);
  EXPECT_TRUE(Within(kLimit, [&] { return !vm_.held(); }));
  EXPECT_TRUE(Told(IsEmpty())) << keeper_->trouble();

  // What was forgotten is not told with the next trouble, of which the server has said nothing.
  Fail(true);
  vm_.Hold();
  EXPECT_TRUE(
      Told(AllOf(HasSubstr("disk vda of snapshot s cannot be read; the disk server ended: the repository is away"),
                 Not(HasSubstr("bytes 1 to 2")))))
      << keeper_->trouble();
}

// The first write into a block of the overlay needs the rest of the block from the server.
TEST_F(VmKeeperTest, AWriteThatNeedsWhatCannotBeReadIsToldAsSuch) {
  CannotRead(true);
  Start();
  vm_.Hold(/*write=*/true);
  EXPECT_TRUE(Told("the guest is held: disk vda of snapshot s cannot be read: bytes 1 to 2: gone"))
      << keeper_->trouble();
  CannotRead(false);
  vm_.MendServer();
  ASSERT_TRUE(Told(IsEmpty())) << keeper_->trouble();

  Fail(true);
  vm_.Hold(/*write=*/true);
  EXPECT_TRUE(
      Told("the guest is held: disk vda of snapshot s cannot be read; "
           "the disk server ended: the repository is away"))
      << keeper_->trouble();
}

TEST_F(VmKeeperTest, AWriteThatTheServerKnowsNothingOfIsTheDisksOwn) {
  Start();
  vm_.Hold(/*write=*/true);
  EXPECT_TRUE(Told("the guest is held: disk vda cannot be written: Input/output error")) << keeper_->trouble();
  const int resumes = vm_.resumes();
  EXPECT_TRUE(Within(kLimit, [&] { return vm_.resumes() > resumes; }));
  EXPECT_EQ(keeper_->trouble(), "the guest is held: disk vda cannot be written: Input/output error");
}

TEST_F(VmKeeperTest, HydrationThatFailsIsBegunAgainOverANewServerAndEndsTheServerWhenItIsDone) {
  Start();
  const pid_t first = Pid();
  keeper_->Hydrate(1000);
  ASSERT_TRUE(Within(kLimit, [&] { return vm_.rates().size() == 1; }));
  vm_.EndHydration(/*complete=*/false);
  EXPECT_TRUE(Told("hydration is held: disk vda of snapshot s cannot be read")) << keeper_->trouble();
  vm_.MendServer();
  EXPECT_TRUE(Told(IsEmpty())) << keeper_->trouble();
  EXPECT_THAT(vm_.rates(), AllOf(::testing::SizeIs(::testing::Ge(2)), Each(1000)));
  const pid_t last = Pid();
  EXPECT_NE(last, first);
  keeper_->Hydrate(0);
  EXPECT_TRUE(Within(kLimit, [&] { return vm_.rates().back() == 0; })) << "a rate of what runs already";
  vm_.EndHydration(/*complete=*/true);
  EXPECT_TRUE(Within(kLimit, [&] { return ::kill(last, 0) != 0; })) << "nothing needs the server any more";
  EXPECT_EQ(keeper_->trouble(), "");
}

TEST_F(VmKeeperTest, NothingIsHydratedWhileTheGuestIsHeld) {
  Start();
  vm_.Hold();
  keeper_->Hydrate(0);
  EXPECT_TRUE(Within(kLimit, [&] { return vm_.resumes() > 0; }));
  EXPECT_THAT(vm_.rates(), IsEmpty());
  vm_.MendServer();
  EXPECT_TRUE(Within(kLimit, [&] { return !vm_.rates().empty(); }));
}

TEST_F(VmKeeperTest, ItsEndEndsTheServerAlsoOfAHeldGuest) {
  Start();
  vm_.Hold();
  ASSERT_TRUE(Told(HasSubstr("the guest is held")));
  const pid_t server = Pid();
  keeper_.reset();
  EXPECT_TRUE(Within(kLimit, [&] { return ::kill(Pid(), 0) != 0 && ::kill(server, 0) != 0; }));
}

// A machine without lazily restored disks: its run state is as each test says.
class PlainVm : public testing::FakeVm {
 public:
  PlainVm() : FakeVm({}) {}
  absl::StatusOr<std::optional<Standstill>> FindStandstill() override {
    absl::MutexLock lock(&mutex_);
    return standstill_;
  }
  absl::Status Resume() override {
    absl::MutexLock lock(&mutex_);
    ++resumes_;
    if (!full_) standstill_.reset();
    return absl::OkStatus();
  }
  absl::Status Tidy() override {
    absl::MutexLock lock(&mutex_);
    ++tidied_;
    return absl::OkStatus();
  }

  void Stand(Standstill standstill, bool full) {
    absl::MutexLock lock(&mutex_);
    standstill_ = std::move(standstill);
    full_ = full;
  }
  void MakeRoom() {
    absl::MutexLock lock(&mutex_);
    full_ = false;
  }
  bool stands() {
    absl::MutexLock lock(&mutex_);
    return standstill_.has_value();
  }
  int resumes() {
    absl::MutexLock lock(&mutex_);
    return resumes_;
  }
  int tidied() {
    absl::MutexLock lock(&mutex_);
    return tidied_;
  }

 private:
  absl::Mutex mutex_;
  std::optional<Standstill> standstill_ ABSL_GUARDED_BY(mutex_);
  bool full_ ABSL_GUARDED_BY(mutex_) = false;
  int resumes_ ABSL_GUARDED_BY(mutex_) = 0;
  int tidied_ ABSL_GUARDED_BY(mutex_) = 0;
};

class VmKeeperWithoutServer : public testing::DiskServerFixture {};

TEST_F(VmKeeperWithoutServer, ADiskWithoutSpaceHoldsTheGuestUntilThereIsRoom) {
  PlainVm vm;
  VmKeeper keeper(vm, nullptr, "");
  vm.Stand({.kind = Standstill::Kind::kHeld, .disk = "vdb", .write = true, .reason = "No space left on device"},
           /*full=*/true);
  EXPECT_TRUE(Within(kLimit, [&] { return vm.resumes() >= 2; })) << "tried again, and again";
  EXPECT_EQ(keeper.trouble(), "the guest is held: disk vdb cannot be written: No space left on device");
  EXPECT_TRUE(vm.stands());
  vm.MakeRoom();
  EXPECT_TRUE(Within(kLimit, [&] { return !vm.stands(); }));
  EXPECT_TRUE(Within(kLimit, [&] { return keeper.trouble().empty(); }));
  EXPECT_EQ(keeper.found_paused(), "");
}

TEST_F(VmKeeperWithoutServer, AMachineThatWasLeftPausedIsResumedAndItIsSaid) {
  PlainVm vm;
  VmKeeper keeper(vm, nullptr, "");
  vm.Stand({.kind = Standstill::Kind::kPaused, .reason = "run state \"paused\""}, /*full=*/false);
  const int looks = vm.tidied() + 8;  // Two seconds, had the machine all the time it wants.
  ASSERT_TRUE(Within(kLimit, [&] { return vm.tidied() >= looks; }));
  EXPECT_TRUE(vm.stands()) << "a restored machine is paused at first";
  EXPECT_EQ(keeper.found_paused(), "");
  keeper.Watch();
  EXPECT_TRUE(Within(kLimit, [&] { return !vm.stands(); }));
  EXPECT_TRUE(Within(kLimit, [&] { return !keeper.found_paused().empty(); }));
  EXPECT_THAT(keeper.found_paused(),
              HasSubstr("found paused without a snapshot under way (run state \"paused\") and goes on"));
  EXPECT_EQ(keeper.trouble(), "");
}

}  // namespace
}  // namespace still::session
