"""Schedules of one minute over real machines while stilld is killed again and again: history has no gap without a row, and
no machine is left paused or frozen. A short form runs with all tests; `tools/dev soak` is the long one (STILL_SOAK_SECONDS,
STILL_SOAK_KILL_EVERY, STILL_SOAK_EVERY: seconds)."""

import json
import os
import signal
import subprocess
import time
import unittest

from still_host import BUILD, Host, wait_for

LENGTH = float(os.environ.get("STILL_SOAK_SECONDS", 45))
KILL_EVERY = float(os.environ.get("STILL_SOAK_KILL_EVERY", 12))
EVERY = int(os.environ.get("STILL_SOAK_EVERY", 10))
MACHINES = ("web", "db")


class Soak(unittest.TestCase):
    def start(self):
        with (self.host.directory / "stilld.log").open("ab") as log:
            return subprocess.Popen([BUILD / "bin/stilld", "--config", ""], env=dict(self.host.environment, STILL_LOG="json"),
                                    stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def runs(self):
        return self.host.json("schedule", "history", "--limit", "10000").get("runs", [])

    def assert_works(self, name):
        """Running, thawed, and its writer goes on."""
        state = wait_for(lambda: (s := self.host.session(name))["active_capture"] == "" and s, "the capture's end", 60)
        self.assertEqual(state["status"], "running")
        self.assertEqual(state["agent"]["quiesce_state"], "THAWED")
        before = self.host.records(name)["acknowledged"]
        wait_for(lambda: self.host.records(name)["acknowledged"] > before, f"the writer of {name}", 60)

    def test_no_gap_in_history_and_no_machine_left_behind(self):
        self.host = Host()
        self.addCleanup(self.host.close)
        for name in MACHINES:
            self.host.boot(name, memory="160M")
        self.host.still("schedule", "add", "often", "--session", "*", "--every", f"{EVERY}s", "--disk-only",
                        "--keep", "last=5", "--retries", "1")
        added = int(self.host.json("schedule", "show", "often")["schedule"]["counted_from_unix_ns"]) / 1e9
        daemon = self.start()
        self.addCleanup(lambda: (daemon.kill(), daemon.wait()))
        kills = 0
        end = time.monotonic() + LENGTH
        kill_at = time.monotonic() + KILL_EVERY
        while time.monotonic() < end:
            time.sleep(0.2)  # A soak is a length of time; everything else here polls.
            self.assertIsNone(daemon.poll(), "stilld ended by itself")
            if time.monotonic() >= kill_at:
                daemon.send_signal(signal.SIGKILL)
                daemon.wait()
                kills += 1
                daemon = self.start()
                kill_at = time.monotonic() + KILL_EVERY
        wait_for(lambda: (self.host.state / "stilld.sock").exists() and self.host.run("schedule", "list").returncode == 0,
                 "stilld", 60)
        # As far as the last occurrence that was surely due.
        until = time.time() - 3
        wait_for(lambda: all(self.covered(name, added, until) for name in MACHINES), "a row for each occurrence", 90)
        daemon.send_signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(timeout=120), 0)
        wait_for(lambda: not any(run["outcome"] == "running" for run in self.runs()), "the last runs", 90)
        for name in MACHINES:
            self.assert_works(name)
        runs = self.runs()
        outcomes = {outcome: sum(run["outcome"] == outcome for run in runs) for outcome in {run["outcome"] for run in runs}}
        print(f"{kills} kills, {len(runs)} rows: {json.dumps(outcomes)}")
        self.assertGreater(kills, 1)
        for name in MACHINES:
            good = [run for run in runs if run["session"] == name and run["outcome"] == "succeeded"]
            self.assertGreater(len(good), 0, f"{name}: {runs}")
        self.assertLessEqual(len(self.host.json("list")), 5 * len(MACHINES), "retention")

    def covered(self, name, added, until):
        """Each multiple of the interval lies in a row that stands for some occurrences."""
        spans = [(int(run["planned_unix_ns"]) / 1e9, int(run["planned_until_unix_ns"]) / 1e9) for run in self.runs()
                 if run["session"] == name and int(run["occurrences"]) > 0]
        first = int(added // EVERY + 1) * EVERY
        return all(any(begin - 0.001 <= at <= end + 0.001 for begin, end in spans) for at in range(first, int(until), EVERY))


if __name__ == "__main__":
    unittest.main(verbosity=2)
