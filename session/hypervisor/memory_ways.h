// The ways in which this host can save a machine's memory, and what each costs: for `still doctor`, and for the words in
// which a capture says why it took a slower one.
#pragma once

#include <string>
#include <vector>

namespace still::session {

struct MemoryWay {
  std::string name;
  bool available = false;
  std::string text;  // What it costs when it is available, else what would make it so.
};

// Why userfaultfd(2) protects no memory from writing for this user, and what would change it.
std::string UserfaultfdReason();

// Tried, not guessed, for this user in this process. The best comes first, the last is always there.
std::vector<MemoryWay> MemoryWays();

}  // namespace still::session
