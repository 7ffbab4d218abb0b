// Sessions whose disks come from the repository.
#include "tools/still/lazy_disks.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "base/file.h"
#include "gmock/gmock.h"
#include "session/control/session_registry.h"
#include "tools/still/context.h"

namespace still::cli {
namespace {

using stillpoint::session::v1::DescribeResponse;
using ::testing::HasSubstr;

TEST(DiskStateShown, ADiskThatHoldsTheGuestIsHeldLazyOrNot) {
  DescribeResponse description;
  description.set_state(DescribeResponse::RUNNING);
  EXPECT_EQ(LazyDiskState(description), std::nullopt);
  description.set_state(DescribeResponse::PAUSED);
  EXPECT_EQ(LazyDiskState(description), std::nullopt) << "paused, but not by a disk";
  description.set_disk_trouble("the guest is held: disk vda cannot be written: No space left on device");
  EXPECT_EQ(LazyDiskState(description), "held");
  description.add_lazy_disks()->set_size(100);
  EXPECT_EQ(LazyDiskState(description), "held");
  description.set_state(DescribeResponse::RUNNING);
  EXPECT_EQ(LazyDiskState(description), "lazy") << "it has gone on, and is still told what was wrong";
}

// A session's control service, whose disk is complete at the second look after it was asked for.
class LazySession final : public sessionpb::SessionControl::Service {
 public:
  LazySession(const session::SessionRegistry& sessions, const std::string& name) {
    absl::StatusOr<session::SessionPlace> place = sessions.Create(name);
    EXPECT_TRUE(place.ok()) << place.status();
    EXPECT_TRUE(WriteFileAtomically(JoinPath(place->directory, "session.json"), "{}").ok());
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + JoinPath(place->directory, "control.sock"), grpc::InsecureServerCredentials());
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    EXPECT_NE(server_, nullptr);
  }
  ~LazySession() override { server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(5)); }

  grpc::Status Hydrate(grpc::ServerContext*, const sessionpb::HydrateRequest* request,
                       sessionpb::HydrateResponse*) override {
    if (broken) return {grpc::StatusCode::UNAVAILABLE, "its disk server has ended"};
    rate = request->bytes_per_second();
    asked = true;
    return grpc::Status::OK;
  }
  grpc::Status Describe(grpc::ServerContext*, const sessionpb::DescribeRequest*, DescribeResponse* response) override {
    if (asked && ++looks > 1) return grpc::Status::OK;
    sessionpb::LazyDisk& disk = *response->add_lazy_disks();
    disk.set_size(100);
    disk.set_hydrated(50);
    return grpc::Status::OK;
  }

  std::atomic<bool> broken = false;
  std::atomic<bool> asked = false;
  std::atomic<uint64_t> rate = 0;
  std::atomic<int> looks = 0;

 private:
  std::unique_ptr<grpc::Server> server_;
};

class HydrateTest : public ::testing::Test {
 protected:
  void SetUp() override {
    state_ = JoinPath(::testing::TempDir(), "still-hydrate-XXXXXX");
    ASSERT_NE(::mkdtemp(state_.data()), nullptr);
    const session::SessionRegistry sessions(state_);
    for (auto [session, name] :
         {std::pair(&web_1_, "web-1"), std::pair(&web_2_, "web-2"), std::pair(&database_, "database")}) {
      *session = std::make_unique<LazySession>(sessions, name);
    }
  }
  void TearDown() override {
    web_1_.reset();
    web_2_.reset();
    database_.reset();
    EXPECT_TRUE(RemoveTree(state_).ok());
  }
  // What it prints, as JSON, and how it ends.
  nlohmann::json Hydrate(const std::string& words) {
    CLI::App app;
    Context context;
    context.AddOptions(app);
    AddHydrateCommand(app, context);
    app.parse("--json --state " + state_ + " hydrate " + words);
    ::testing::internal::CaptureStdout();
    status_ = context.RunChosen(app);
    return nlohmann::json::parse(::testing::internal::GetCapturedStdout(), nullptr, /*allow_exceptions=*/false);
  }

  std::string state_;
  std::unique_ptr<LazySession> web_1_;
  std::unique_ptr<LazySession> web_2_;
  std::unique_ptr<LazySession> database_;
  absl::Status status_;
};

TEST_F(HydrateTest, OneSessionByTheBeginningOfItsNameIsCompleted) {
  EXPECT_EQ(Hydrate("data --rate 5M"), nlohmann::json({{"session", "database"}, {"complete", true}}));
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_EQ(database_->rate, 5u << 20);
  EXPECT_EQ(database_->looks, 2) << "it was waited for";
  EXPECT_FALSE(web_1_->asked);
}

TEST_F(HydrateTest, SeveralByNameAndByPatternAreCompletedAlsoWhenOneFails) {
  web_1_->broken = true;
  const nlohmann::json done = Hydrate("database 'web-*'");
  EXPECT_EQ(done, nlohmann::json({{{"session", "database"}, {"complete", true}},  //
                                  {{"session", "web-2"}, {"complete", true}}}));
  EXPECT_THAT(std::string(status_.message()), HasSubstr("web-1: "));
  EXPECT_THAT(std::string(status_.message()), HasSubstr("its disk server has ended"));
  EXPECT_EQ(web_2_->looks, 2);
}

TEST_F(HydrateTest, WhatIsOnlyBegunIsNotWaitedFor) {
  EXPECT_EQ(Hydrate("'web-?' --no-wait").size(), 2u);
  EXPECT_TRUE(status_.ok()) << status_;
  EXPECT_TRUE(web_1_->asked && web_2_->asked);
  EXPECT_EQ(web_1_->looks + web_2_->looks, 0);
}

TEST_F(HydrateTest, APatternThatFitsNoneIsAnError) {
  (void)Hydrate("'mail-*'");
  EXPECT_TRUE(absl::IsNotFound(status_)) << status_;
}

}  // namespace
}  // namespace still::cli
