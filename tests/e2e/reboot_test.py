"""Machines that reboot: the session goes on, in every step of a snapshot, and what a label claims stays true."""

import time
import unittest

from fault_test import HOLD_MS, STEPS, FaultTest
from still_host import Host, wait_for

# While the machine stands still its clock does too: it resets itself right after.
PAUSED = ("pin_disks", "save_state")


# As hard as it gets: nothing is written back, nobody is told.
REBOOT = "reboot -nf"


def reboots(host, session):
    return host.session(session).get("reboots", 0)


def is_connected(host, session):
    return host.session(session).get("agent", {}).get("connected", False)


class RebootInEveryStep(FaultTest):
    def test_the_session_goes_on_and_the_label_is_true(self):
        pid = self.host.session("web")["pid"]
        # What no boot writes anew.
        self.host.guest("web", "sh", "-c", "head -c 12000000 /dev/urandom >/data/blob && sync")
        first = self.host.json("snapshot", "web", "--name", "before", "--disk-only", "--quiesce", "require")
        for step in STEPS:
            with self.subTest(step):
                before = reboots(self.host, "web")
                process = self.begin_reset_snapshot(step)
                stdout, stderr = process.communicate(timeout=600)
                wait_for(lambda: reboots(self.host, "web") > before, "the reboot", 120)
                wait_for(lambda: is_connected(self.host, "web"), "the agent of the new boot", 180)
                self.assert_web_works()
                self.assertEqual(process.returncode, 0, stdout + stderr)
                level = self.host.json("show", f"reset-at-{step}")["consistency"]["level"]
                if step in ("recheck", "pause"):
                    self.assertEqual(level, "CRASH", "it was reset before the point")
                elif step != "quiesce":  # There the new boot's agent may be asked, and freeze.
                    self.assertEqual(level, "FILESYSTEM", "it was reset after the point")
        self.release()
        self.assertEqual(self.host.session("web")["pid"], pid, "it was the same hypervisor all the time")
        last = self.host.json("snapshot", "web", "--name", "after", "--disk-only", "--quiesce", "require")
        self.assertEqual(last["consistency"]["level"], "FILESYSTEM")
        self.assertLess(last["drain"]["bytes_read"], first["drain"]["bytes_read"] / 2, "its bitmaps were kept")
        self.assertFalse(self.host.check_disk(self.host.export("after"))["needs_recovery"])
        self.assert_repository_is_clean(len(STEPS) + 2)

    def begin_reset_snapshot(self, step):
        """A snapshot under way, whose guest has reset itself before `step`, or does as soon as it runs again."""
        before = reboots(self.host, "web")
        reset = self.arm(REBOOT)
        process = self.begin_snapshot(step, 500 if step in PAUSED else HOLD_MS, "--name", f"reset-at-{step}")
        reset()
        if step not in PAUSED:
            wait_for(lambda: reboots(self.host, "web") > before, "the reboot inside the step", 120)
            self.release()
        return process


class RebootAfterRestore(unittest.TestCase):
    """A restored machine has its memory from an image that others use too: its reset boots its own disks."""

    def test_a_fork_reboots_and_is_captured_again(self):
        with Host() as host:
            host.boot("web")
            wait_for(lambda: host.records("web")["acknowledged"] > 5, "the record writer", 120)
            host.still("snapshot", "web", "--name", "base")
            host.still("stop", "web")
            host.still("restore", "base", "--as", "fork", "--count", "2")
            pid = host.session("fork-1")["pid"]
            host.guest("fork-1", "sh", "-c", f"setsid {REBOOT} >/dev/null 2>&1 &")
            wait_for(lambda: reboots(host, "fork-1") == 1, "the reboot", 120)
            wait_for(lambda: is_connected(host, "fork-1"), "the agent of the new boot", 180)
            self.assertEqual(host.session("fork-1")["pid"], pid)
            self.assertEqual(reboots(host, "fork-2"), 0)
            before = host.records("fork-1")["acknowledged"]
            wait_for(lambda: host.records("fork-1")["acknowledged"] > before, "its writer", 120)
            taken = host.json("snapshot", "fork-1", "--name", "again", "--quiesce", "require")
            self.assertEqual(taken["consistency"]["level"], "FILESYSTEM")
            host.still("restore", "again", "--as", "third")
            self.assertEqual(host.counter("third", "--check")["errors"], 0)


class ClockMeasuredWrongly(unittest.TestCase):
    """A guest measures at each boot how fast its processor counts. While its host is busy that goes wrong now and then, and then its
    time runs off: the agent's limits and leases end at once, and it comes and goes."""

    def test_the_guest_finds_out_and_keeps_our_time(self):
        with Host() as host:
            # 60 MHz, where processors have thousands.
            host.boot("web", disks=[], workload="", append="tsc_early_khz=60000")
            wait_for(lambda: self.pace(host) < 2, "a guest's time that is no faster than ours", 120)

    def pace(self, host):
        """How many of the guest's seconds pass in one of ours; of a clock that keeps time never more than 1."""
        begin = time.monotonic()
        first = self.uptime(host)
        time.sleep(1)
        return (self.uptime(host) - first) / (time.monotonic() - begin)

    def uptime(self, host):
        return float(host.guest("web", "cat", "/proc/uptime").split()[0])


if __name__ == "__main__":
    unittest.main()
