#include "snapshot/spilling_pipe.h"

#include <atomic>
#include <thread>

#include "gtest/gtest.h"

namespace still::snapshot {
namespace {

SpillingPipe::Options Small() {
  return {.memory_limit = 1000, .spill_limit = 10'000, .spill_directory = ::testing::TempDir()};
}

std::string Piece(int number) { return std::string(100, static_cast<char>('a' + number % 26)); }

TEST(SpillingPipe, KeepsTheOrderThroughMemoryAndFile) {
  SpillingPipe pipe(Small());
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(pipe.Write(Piece(i)).ok());
  EXPECT_GT(pipe.spilled_bytes(), 0u);
  pipe.Close(absl::OkStatus());
  for (int i = 0; i < 50; ++i) {
    auto piece = pipe.Read();
    ASSERT_TRUE(piece.ok()) << piece.status();
    EXPECT_EQ(*piece, Piece(i));
  }
  auto end = pipe.Read();
  ASSERT_TRUE(end.ok());
  EXPECT_EQ(*end, "");
}

TEST(SpillingPipe, BeyondItsLimitsItBreaksInsteadOfWaiting) {
  SpillingPipe pipe(Small());
  absl::Status status;
  int written = 0;
  while ((status = pipe.Write(Piece(written))).ok()) ++written;
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(written, 110);
  for (int i = 0; i < written; ++i) ASSERT_TRUE(pipe.Read().ok());
  EXPECT_EQ(pipe.Read().status().code(), absl::StatusCode::kResourceExhausted) << "the reader takes it for complete";
}

TEST(SpillingPipe, AnErrorOfTheWriterComesAfterWhatItWrote) {
  SpillingPipe pipe(Small());
  ASSERT_TRUE(pipe.Write("data").ok());
  pipe.Close(absl::DataLossError("cut"));
  EXPECT_TRUE(pipe.Read().ok());
  EXPECT_EQ(pipe.Read().status().code(), absl::StatusCode::kDataLoss);
}

TEST(SpillingPipe, AbandonedItTakesEverythingAndKeepsNothing) {
  SpillingPipe pipe(Small());
  pipe.Abandon();
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(pipe.Write(Piece(i)).ok());
  EXPECT_EQ(pipe.spilled_bytes(), 0u);
}

TEST(SpillingPipe, HeldItGivesNothingUntilItIsLetGo) {
  SpillingPipe::Options options = Small();
  options.hold_limit = 300;
  SpillingPipe pipe(options);
  ASSERT_TRUE(pipe.Write(Piece(0)).ok());
  std::atomic<bool> let_go = false;
  bool early = false;
  std::thread reader([&] {
    early = !pipe.Read().ok();
    early |= !let_go;
  });
  let_go = true;
  pipe.LetGo();
  reader.join();
  EXPECT_FALSE(early);
}

TEST(SpillingPipe, TheHoldEndsWhenMuchWaitsAndWithTheEnd) {
  SpillingPipe::Options options = Small();
  options.hold_limit = 300;
  SpillingPipe full(options);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(full.Write(Piece(i)).ok());
  EXPECT_TRUE(full.Read().ok());
  SpillingPipe closed(options);
  ASSERT_TRUE(closed.Write(Piece(0)).ok());
  closed.Close(absl::OkStatus());
  EXPECT_TRUE(closed.Read().ok());
}

}  // namespace
}  // namespace still::snapshot
