"""Sessions of root's: QEMU is a user of its own with only its files, and all that sessions can do works all the same."""

import hashlib
import os
import pathlib
import shutil
import signal
import unittest

from still_host import GUEST, Host, wait_for


def status_of(pid):
    """/proc/PID/status as words by name."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, value in (line.split(":", 1) for line in lines)}


@unittest.skipUnless(os.geteuid() == 0, "QEMU is confined where root starts it")
class Confined(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.host = Host()
        cls.addClassCleanup(cls.host.close)
        (finding,) = [entry for entry in cls.host.json("doctor")["findings"] if entry["what"] == "QEMU's user"]
        if finding["verdict"] != "ok":
            raise unittest.SkipTest(finding["text"])
        # What a distribution that hides its kernels looks like, and disks that nobody else gets to.
        private = cls.host.directory / "private"
        private.mkdir(mode=0o700)
        for name in ("vmlinux", "initrd"):
            shutil.copy(GUEST / name, private / name)
            (private / name).chmod(0o600)
        disk = cls.host.disk("private/disk")
        disk.chmod(0o600)
        cls.host.boot("web", "--net", files=private, disks=[disk])
        wait_for(lambda: cls.host.records("web")["acknowledged"] > 5, "the record writer", 60)

    def hypervisor(self, session):
        """The pid of a session's QEMU, after the claim that it is nobody."""
        pid = int(self.host.session(session)["pid"])
        status = status_of(pid)
        self.assertNotIn("0", status["Uid"] + status["Gid"])
        self.assertEqual(status["Groups"], [])
        for kind in ("CapPrm", "CapEff", "CapAmb"):
            self.assertEqual(int(status[kind][0], 16), 0, kind)
        self.assertEqual(status["NoNewPrivs"], ["1"])
        return pid

    def going_on(self, session):
        before = wait_for(lambda: self.host.records(session), "the record writer", 60)["acknowledged"]
        wait_for(lambda: self.host.records(session)["acknowledged"] > before, "the writer to go on", 60)
        return self.hypervisor(session)

    def snapshot(self, name, session="web"):
        taken = self.host.json("snapshot", session, "--name", name, "--quiesce", "require", "--memory", "require")
        self.assertEqual(taken["consistency"]["level"], "FILESYSTEM")
        self.assertEqual(taken["windows"]["memory_method"], "engine", taken["windows"].get("memory_method_reason"))
        return taken

    def end(self, *sessions):
        for session in sessions:
            self.addCleanup(self.host.run, "stop", session, "--force")

    def test_snapshots_forks_and_their_hot_image(self):
        self.snapshot("point")
        self.snapshot("next")
        others = set(self.host.hot.glob("*.ram"))
        self.host.still("restore", "point", "--as", "one")
        self.host.still("restore", "point", "--as", "two")
        self.end("one", "two")
        (image,) = set(self.host.hot.glob("*.ram")) - others
        before = hashlib.sha256(image.read_bytes()).digest()
        users = {tuple(status_of(self.going_on(name))["Uid"]) for name in ("web", "one", "two")}
        self.assertEqual(len(users), 3, "no session's QEMU can touch another's")
        self.assertEqual(hashlib.sha256(image.read_bytes()).digest(), before)
        self.snapshot("of-a-fork", "one")
        self.going_on("one")

    def test_a_session_is_stopped_and_started_again(self):
        self.host.boot("again")
        self.end("again")
        first = status_of(self.going_on("again"))["Uid"]
        self.host.still("stop", "again")
        self.host.still("start", "again", "--agent-timeout", "600s")
        self.assertNotEqual(status_of(self.going_on("again"))["Uid"], first)
        self.snapshot("of-again", "again")

    def test_lazy_disks(self):
        self.snapshot("for-lazy")
        for name, how in (("cold", ["--cold", "--no-hydrate"]), ("warm", [])):
            self.host.still("restore", "for-lazy", "--as", name, "--lazy", *how)
            self.end(name)
            self.going_on(name)
        self.host.still("snapshot", "cold", "--disk-only", "--quiesce", "require")
        self.host.still("hydrate", "cold")
        self.going_on("cold")

    def test_it_ends_with_its_session(self):
        self.host.boot("short", workload="")
        pid = self.hypervisor("short")
        os.kill(self.host.pids()["short"], signal.SIGKILL)
        wait_for(lambda: not pathlib.Path(f"/proc/{pid}").exists(), "QEMU to end", 60)

    def test_an_image_that_lies_over_another_one_keeps_it_as_it_is(self):
        self.host.boot("below", workload="")
        self.host.still("stop", "below")
        base = self.host.directory / "below.raw"
        before = hashlib.sha256(base.read_bytes()).digest()
        top = self.host.directory / "private/top.qcow2"
        os.spawnlp(os.P_WAIT, "qemu-img", "qemu-img", "create", "-q", "-f", "qcow2", "-b", "../below.raw", "-F", "raw", str(top))
        self.host.boot("over", disks=[f"{top},format=qcow2"])
        self.end("over")
        self.going_on("over")
        self.assertEqual(hashlib.sha256(base.read_bytes()).digest(), before)
