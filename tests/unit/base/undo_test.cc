#include "base/undo.h"

#include <string>

#include "gtest/gtest.h"

namespace still {
namespace {

TEST(UndoStackTest, RunsNewestFirstAndGoesOnAfterAFailure) {
  std::string order;
  {
    UndoStack undo;
    undo.Push("a", [&] {
      order += 'a';
      return absl::OkStatus();
    });
    undo.Push("b", [&] {
      order += 'b';
      return absl::InternalError("broken");
    });
    undo.Push("c", [&] {
      order += 'c';
      return absl::OkStatus();
    });
  }
  EXPECT_EQ(order, "cba");
}

TEST(UndoStackTest, DisarmedDoesNothing) {
  bool ran = false;
  {
    UndoStack undo;
    undo.Push("x", [&] {
      ran = true;
      return absl::OkStatus();
    });
    undo.Disarm();
  }
  EXPECT_FALSE(ran);
}

}  // namespace
}  // namespace still
