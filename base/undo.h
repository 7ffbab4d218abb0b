// UndoStack: everything acquired pushes what gives it back; the newest runs first. Success calls Disarm().
//
//   UndoStack undo;
//   STILL_RETURN_IF_ERROR(MakeDirectory(dir));
//   undo.Push("remove staging directory", [dir] { return RemoveTree(dir); });
//   ...
//   undo.Disarm();   // from here on it stays
//
// This is undo *on failure only*. What must happen always (resume, thaw) is a guard of its own: see session/capture.
// Not thread-safe.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/status.h"

namespace still {

class UndoStack {
 public:
  UndoStack() = default;
  UndoStack(UndoStack&&) = default;
  UndoStack(const UndoStack&) = delete;
  UndoStack& operator=(const UndoStack&) = delete;
  UndoStack& operator=(UndoStack&&) = delete;
  ~UndoStack();

  // `what` is logged when the action fails: an undo has nobody left to return its error to.
  void Push(std::string what, std::function<absl::Status()> action);
  // Runs everything now, newest first. Idempotent. Failures are logged and do not stop the rest.
  void Run();
  void Disarm() { actions_.clear(); }

 private:
  struct Action {
    std::string what;
    std::function<absl::Status()> run;
  };
  std::vector<Action> actions_;
};

}  // namespace still
