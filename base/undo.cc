#include "base/undo.h"

#include <utility>

#include "base/log.h"

namespace still {

UndoStack::~UndoStack() { Run(); }

void UndoStack::Push(std::string what, std::function<absl::Status()> action) {
  actions_.push_back({std::move(what), std::move(action)});
}

void UndoStack::Run() {
  while (!actions_.empty()) {
    Action action = std::move(actions_.back());
    actions_.pop_back();
    if (absl::Status status = action.run(); !status.ok()) {
      LogError("undo failed", {{"action", action.what}, {"error", status.ToString()}});
    }
  }
}

}  // namespace still
