"""Snapshots that go from one QEMU to the other: Debian 12's and Debian 13's (tools/other-qemu)."""

import re
import shutil
import subprocess
import unittest

from still_host import PROJECT, Host, wait_for

OTHER = PROJECT / "build/other-qemu/qemu-system-x86_64"


def version_of(qemu):
    said = subprocess.run([qemu, "--version"], check=True, capture_output=True, text=True).stdout
    return tuple(map(int, re.search(r"version (\d+)\.(\d+)", said).groups()))


@unittest.skipUnless(OTHER.exists(), "no other QEMU; tools/dev other-qemu fetches it")
class OtherQemu(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.older, cls.newer = sorted([shutil.which("qemu-system-x86_64"), str(OTHER)], key=version_of)
        cls.host = Host(encrypted=True)
        cls.addClassCleanup(cls.host.close)

    def boot(self, name, qemu):
        self.host.boot(name, STILL_QEMU=qemu)
        wait_for(lambda: self.host.records(name)["acknowledged"] > 5, "the record writer", 300)
        self.assertEqual(self.host.session(name)["hypervisor_command"][0], qemu)
        self.addCleanup(self.remove, name)

    def remove(self, name):
        self.host.run("stop", name, "--force")
        self.host.run("rm", name)

    def assert_goes_on(self, snapshot, name, qemu):
        self.host.still("restore", snapshot, "--as", name, STILL_QEMU=qemu)
        self.addCleanup(self.remove, name)
        self.assertEqual(self.host.session(name)["hypervisor_command"][0], qemu)
        self.assertEqual(self.host.counter(name, "--check")["errors"], 0)
        before = self.host.records(name)["acknowledged"]
        wait_for(lambda: self.host.records(name)["acknowledged"] > before, "the writer to go on", 300)

    def test_what_the_older_one_saved_goes_on_under_the_newer_one(self):
        self.boot("old", self.older)
        taken = self.host.json("snapshot", "old", "--name", "old-point", "--quiesce", "require")
        self.assertEqual(taken["consistency"]["level"], "FILESYSTEM")
        self.assert_goes_on("old-point", "upgraded", self.newer)
        # It kept the older machine type, but the newer QEMU's devices may have written more: it does not go back.
        self.host.still("snapshot", "upgraded", "--name", "upgraded-point", "--quiesce", "require")
        self.assert_goes_on("upgraded-point", "again", self.newer)

    def test_what_the_newer_one_saved_is_refused_by_the_older_one_with_the_reason(self):
        self.boot("new", self.newer)
        self.host.still("snapshot", "new", "--name", "new-point", "--quiesce", "require")
        result = self.host.run("restore", "new-point", "--as", "downgraded", STILL_QEMU=self.older)
        self.assertEqual(result.returncode, 5, result.stderr)
        self.assertRegex(result.stderr, r"saved by QEMU \d+\.\d+\.\d+, newer than the \d+\.\d+\.\d+ of this host")
        self.assertIn("--cold", result.stderr)
        self.assertIsNone(self.host.session("downgraded"))
        self.host.still("restore", "new-point", "--as", "cold", "--cold", STILL_QEMU=self.older)
        self.addCleanup(self.remove, "cold")
        self.assertEqual(self.host.session("cold")["status"], "running")


if __name__ == "__main__":
    unittest.main(verbosity=2)
