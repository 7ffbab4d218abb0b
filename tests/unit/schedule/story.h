// A year of three hosts that share a repository, by a seed: what happens to their machines, disks, clocks, books and
// channels is the story; schedulers, retention and alerts are the real ones. The oracle works from the story alone: it
// knows when each snapshot was really taken, when each message really arrived, and allowances written down here, and uses
// nothing of the code that it judges.
//
// The principle: for every machine that a schedule names, either a good snapshot of the promised level is young enough, or
// somebody has been told and the message has arrived.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace still::schedule {

struct StoryOptions {
  uint64_t seed = 0;
  int days = 365;
  // Mechanisms that a control leaves out, so that the oracle can show that it sees it.
  bool messages_are_queued = true;          // Else what a channel does not take counts as told.
  bool hosts_have_ids = true;               // Else they are told apart by nothing.
  bool somebody_looks_from_outside = true;  // Else nothing is noticed while stilld is dead or hangs.
  bool ends_are_seen = true;                // Else nobody knows of a machine that it ended by itself.
  // Hears each thing that happens, for whoever wants to know how a year came to be wrong.
  std::function<void(const std::string&)> narrate;
};

struct StoryEnd {
  std::vector<std::string> wrong;  // One sentence each, with the day.
  std::map<std::string, int> happened;
  int64_t looked = 0;   // Ages that the oracle looked at.
  int64_t too_old = 0;  // Of these, those that had to be told.
  int64_t ended = 0;    // Looks at a machine that had ended by itself, or at a stilld that hung: they had to be told.
  int64_t hung = 0;
  int64_t fresh_while_off = 0;  // Looks at one that was off for longer than allowed, and whose disks were taken.
  int64_t snapshots = 0;
};

StoryEnd LiveAYear(const StoryOptions& options);

}  // namespace still::schedule
