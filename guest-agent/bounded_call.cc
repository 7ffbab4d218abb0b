#include "guest-agent/bounded_call.h"

#include <set>

#include "absl/base/thread_annotations.h"

namespace still::agent {
namespace {

// Each is a thread that hangs in the kernel.
constexpr size_t kMaxHanging = 64;

struct Questions {
  absl::Mutex mutex;
  std::set<std::string> open ABSL_GUARDED_BY(mutex);
};

// Never destroyed: a thread that was left behind may end after main.
Questions& TheQuestions() {
  static Questions* questions = new Questions;
  return *questions;
}

}  // namespace

bool HangingCalls::Begin(const std::string& question) {
  Questions& questions = TheQuestions();
  absl::MutexLock lock(&questions.mutex);
  return questions.open.size() < kMaxHanging && questions.open.insert(question).second;
}

void HangingCalls::End(const std::string& question) {
  Questions& questions = TheQuestions();
  absl::MutexLock lock(&questions.mutex);
  questions.open.erase(question);
}

}  // namespace still::agent
