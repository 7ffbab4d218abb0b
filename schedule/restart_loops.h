// RestartLoops: machines whose guest is reset again and again, because it panics while it boots or a watchdog ends it. Its
// session goes on and only counts the resets, so that nothing else shows it. Pure. What was counted when must outlive the
// process, because many that look live for a moment: it is among the book's remembered words.
//
//   loops.Load(remembered);
//   if (loops.Look("web", 17, now) == RestartLoops::Verdict::kLoops) ...
//   for (const auto& [key, value] : loops.unsaved()) ...   // Into the book; then loops.Saved().
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/time/time.h"

namespace still::schedule {

class RestartLoops {
 public:
  // Whoever installs or updates a machine resets it less often.
  static constexpr uint32_t kMostWithin = 5;
  static constexpr absl::Duration kWindow = absl::Hours(1);

  enum class Verdict : char {
    kUnknown,  // It was not looked at for long enough: what was true stays so.
    kLoops,
    kCalm,
  };

  // From what Book::Remembered() gives.
  void Load(const std::map<std::string, std::string>& remembered);
  // `resets`: of the guest, since its session started.
  Verdict Look(const std::string& session, uint32_t resets, absl::Time now);
  // Forgets the other machines.
  void KeepOnly(const std::function<bool(const std::string& session)>& there);

  // Words that the book does not have yet; an empty one is to be forgotten.
  const std::map<std::string, std::string>& unsaved() const { return unsaved_; }
  void Saved() { unsaved_.clear(); }

 private:
  struct Mark {
    absl::Time since;
    uint32_t resets = 0;  // By then.
  };
  void Put(const std::string& session, const Mark& mark);

  std::map<std::string, Mark> marks_;
  std::map<std::string, std::string> unsaved_;
};

}  // namespace still::schedule
