#include "base/status.h"

#include <cerrno>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace still {
namespace {

using ::testing::HasSubstr;

TEST(ErrnoStatusTest, NamesTheOperationAndTheErrno) {
  absl::Status status = ErrnoStatus(ENOSPC, "write /repo/pack");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("write /repo/pack: No space left on device"));
}

TEST(AnnotateTest, KeepsCodeAndPayload) {
  absl::Status status = absl::DataLossError("frame 7");
  status.SetPayload("type", absl::Cord("detail"));
  absl::Status annotated = Annotate(status, "image vda");
  EXPECT_EQ(annotated.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(annotated.message(), "image vda: frame 7");
  EXPECT_EQ(annotated.GetPayload("type"), absl::Cord("detail"));
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
}

TEST(FirstErrorTest, KeepsBothMessages) {
  EXPECT_TRUE(FirstError(absl::OkStatus(), absl::OkStatus()).ok());
  EXPECT_EQ(FirstError(absl::OkStatus(), absl::NotFoundError("b")).message(), "b");
  EXPECT_EQ(FirstError(absl::AbortedError("a"), absl::NotFoundError("b")).message(), "a; then: b");
}

TEST(ExitCodeTest, SeparatesTheClasses) {
  EXPECT_EQ(ExitCode(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCode(absl::InvalidArgumentError("")), 2);
  EXPECT_EQ(ExitCode(absl::NotFoundError("")), 3);
  EXPECT_EQ(ExitCode(absl::DataLossError("")), 8);
  EXPECT_EQ(ExitCode(absl::InternalError("")), 1);
}

absl::StatusOr<int> Half(int x) {
  if (x % 2 != 0) return absl::InvalidArgumentError("odd");
  return x / 2;
}
absl::StatusOr<int> Quarter(int x) {
  STILL_ASSIGN_OR_RETURN(int half, Half(x));
  STILL_ASSIGN_OR_RETURN(half, Half(half));
  return half;
}

TEST(AssignOrReturnTest, ReturnsTheErrorOrTheValue) {
  EXPECT_EQ(*Quarter(12), 3);
  EXPECT_EQ(Quarter(6).status().message(), "odd");
}

}  // namespace
}  // namespace still
