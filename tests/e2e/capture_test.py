"""Captures that do not go the usual way: of a process that is not ours, and without userfaultfd."""

import os
import pathlib
import signal
import subprocess
import sys
import unittest

from still_host import CommandFailed, Host, wait_for

RECORD = 4096
RECORDS = 64
WRITER = f"""
import os, sys, time
files = [os.open(path, os.O_RDWR) for path in sys.argv[1:]]
n = 0
while True:
    n += 1
    for file in files:
        os.pwrite(file, n.to_bytes(8, "little") * {RECORD // 8}, n % {RECORDS} * {RECORD})
    time.sleep(0.0002)
"""


def newest(image):
    data = pathlib.Path(image).read_bytes()
    return max(int.from_bytes(data[at : at + 8], "little") for at in range(0, RECORD * RECORDS, RECORD))


class AdoptedProcess(unittest.TestCase):
    """A program that writes to two disk files in lockstep stands for a VMM without an interface."""

    def setUp(self):
        self.host = Host()
        self.addCleanup(self.host.close)
        self.disks = [self.host.directory / name for name in ("one.raw", "two.raw")]
        for disk in self.disks:
            disk.touch()
            os.truncate(disk, 8 << 20)
        self.writer = subprocess.Popen([sys.executable, "-c", WRITER, *self.disks])
        self.addCleanup(self.writer.wait)
        self.addCleanup(self.writer.kill)
        wait_for(lambda: newest(self.disks[1]) > RECORDS, "the writer", 120)

    def snapshot(self, *arguments):
        words = ["snapshot", "vmm", "--pid", str(self.writer.pid), "--max-pause", "20s", *arguments]
        for disk in self.disks:
            words += ["--disk", str(disk)]
        return self.host.json(*words)

    def runs(self):
        before = newest(self.disks[0])
        wait_for(lambda: newest(self.disks[0]) > before + 3, "the writer to go on", 120)

    def test_its_disks_are_of_one_instant(self):
        snapshot = self.snapshot("--name", "first")
        self.runs()
        self.assertEqual(snapshot["windows"]["memory_method"], "none")
        self.assertEqual(snapshot["consistency"]["level"], "CRASH")
        images = [self.host.export("first", "--image", name) for name in ("vda", "vdb")]
        one, two = map(newest, images)
        self.assertLessEqual(two, one)
        self.assertLessEqual(one, two + 1)
        self.assertEqual(self.host.json("ps"), [], "the session was only a means")
        with self.assertRaises(CommandFailed) as refused:
            self.host.still("restore", "first", "--as", "copy")
        self.assertIn("export", refused.exception.stderr)

    def test_what_cannot_be_pinned_is_refused_and_the_process_runs_on(self):
        stranger = self.host.directory / "three.raw"
        stranger.write_bytes(bytes(4096))
        result = self.host.run("snapshot", "vmm", "--pid", self.writer.pid, "--disk", stranger)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("does not have", result.stderr)
        os.kill(self.writer.pid, signal.SIGSTOP)
        with self.assertRaises(CommandFailed) as refused:
            self.snapshot()
        self.assertIn("somebody else has stopped", refused.exception.stderr)
        os.kill(self.writer.pid, signal.SIGCONT)
        self.runs()
        self.assertEqual(self.host.json("ps"), [])


class WithoutUserfaultfd(unittest.TestCase):
    """Without the right to it (CAP_SYS_PTRACE, vm.unprivileged_userfaultfd) and without /dev/userfaultfd."""

    def test_memory_is_saved_while_the_machine_stands_still_and_that_is_said(self):
        with Host() as host:
            if os.geteuid() == 0:
                host.prefix = ["setpriv", "--bounding-set=-sys_ptrace"]
            elif pathlib.Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1":
                self.skipTest("every user may use userfaultfd here")
            host.environment["STILL_USERFAULTFD_DEVICE"] = "/dev/null"
            host.environment["STILL_QEMU_AS_ROOT"] = "1"  # One that is a user of its own is given the device by root.
            host.boot("web", memory="160M")
            capabilities = host.session("web")["capabilities"]
            if not host.session("web")["hypervisor"].split()[1].startswith(("7.", "8.")):
                self.skipTest("QEMU 9 and newer opens /dev/userfaultfd by itself: vm_contract_test has what stands still there")
            self.assertFalse(capabilities.get("background_memory", False))
            self.assertIn("not permitted", capabilities["background_memory_reason"])
            before = wait_for(lambda: (c := host.counter("web"))["count"] > 0 and c, "the counter", 60)
            said = host.still("snapshot", "web", "--name", "first")
            self.assertIn("stood still while its memory was written", said)
            windows = host.json("show", "first")["windows"]
            self.assertEqual(windows["memory_method"], "stopped")
            self.assertIn("not permitted", windows["memory_method_reason"])
            host.still("restore", "first", "--as", "copy")
            after = host.counter("copy", "--check")
            self.assertEqual(after["errors"], 0)
            self.assertGreaterEqual(after["count"], before["count"])


if __name__ == "__main__":
    unittest.main()
