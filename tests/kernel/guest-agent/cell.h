// Cell: a program as process 1 of a tiny machine: its own pids, and a root in which no file system of this machine is
// mounted but the sandbox's. There a program may freeze "everything".
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "tests/kernel/guest-agent/sandbox.h"

namespace still::agent {

class Cell {
 public:
  // Makes the root (a tmpfs) at <sandbox>/root, with empty run/, tmp/, proc/ and dev/null. Mount more below it before
  // Start.
  explicit Cell(Sandbox& sandbox);
  Cell(const Cell&) = delete;
  Cell& operator=(const Cell&) = delete;
  // Kills what runs.
  ~Cell();

  // Nodes for the loop devices that exist now: a btrfs mount is known by its device's name only.
  void AddLoopDevices();
  // Copies a program into the root, with the libraries it needs, under the same path.
  void Install(const std::string& program);
  // Runs it; paths are those of the cell.
  void Start(const std::vector<std::string>& argv);
  void Kill();
  // The process id as seen from here.
  pid_t pid() const { return pid_; }
  // Of its children, one that runs; 0 when there is none.
  pid_t ChildOf(pid_t parent) const;
  // A path of the cell, as seen from here.
  std::string Path(absl::string_view inside) const;

 private:
  Sandbox& sandbox_;
  pid_t pid_ = 0;
  pid_t maker_ = 0;
};

}  // namespace still::agent
