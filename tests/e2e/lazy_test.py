"""Lazily restored sessions: they start over the repository, wait when it is away, and need it no more in the end."""

import hashlib
import os
import pathlib
import signal
import unittest

from still_host import Host, wait_for

BLOB = "/data/blob"
OTHER = "/data/other"  # 1 MiB that may be overwritten.
MIB = 1 << 20


def children(pid):
    """pid -> name of the programs that a process has started."""
    found = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[int(child)] = pathlib.Path(f"/proc/{child}/comm").read_text().strip()
    return found


class Lazy(unittest.TestCase):
    """One snapshot, of a guest with a file whose content is known; each test restores it once."""

    encrypted = False

    @classmethod
    def setUpClass(cls):
        cls.host = Host(encrypted=cls.encrypted)
        cls.addClassCleanup(cls.host.close)
        # A read-only disk without a file system: what is on it is in no guest's memory.
        cls.extra = cls.host.directory / "extra.raw"
        cls.extra.write_bytes(bytes(MIB) + os.urandom(2 * MIB) + bytes(5 * MIB))
        cls.extra_sum = hashlib.md5(cls.extra.read_bytes()).hexdigest()
        cls.host.boot("web", disks=[cls.host.disk("web"), f"{cls.extra},ro"])
        wait_for(lambda: cls.host.records("web")["acknowledged"] > 5, "the record writer", 120)
        cls.host.guest("web", "sh", "-c", f"head -c 6000000 /dev/urandom > {BLOB} && head -c 1048576 /dev/urandom > {OTHER} && sync")
        cls.sum = cls.host.guest("web", "md5sum", BLOB)
        # So that the pack which holds it holds nothing else, and holds it as it is.
        cls.host.still("import", cls.extra, "--name", "extra")
        cls.host.still("snapshot", "web", "--name", "point", "--quiesce", "require")
        cls.host.still("forget", "extra")
        cls.host.still("stop", "web", "--force")

    def restore(self, name, *arguments):
        self.host.still("restore", "point", "--as", name, "--lazy", *arguments)
        self.addCleanup(self.host.run, "rm", name)  # One that was stopped may be started again, and needs its snapshot.
        self.addCleanup(self.host.run, "stop", name, "--force")

    def servers(self, name):
        return [pid for pid, program in children(self.host.pids()[name]).items() if program == "nbdkit"]

    def status(self, name):
        return self.host.session(name)["status"]

    def trouble(self, name):
        return self.host.session(name)["disk_trouble"]

    def assert_in_use(self, name):
        """Without its snapshot the disk server would not start again, and the guest be held for good."""
        refused = self.host.run("forget", "point")
        self.assertEqual(refused.returncode, 5, refused.stderr)
        self.assertIn(f"session {name} reads its disks from it", refused.stderr)

    def read_anew(self, name):
        return self.host.guest(name, "sh", "-c", f"echo 3 > /proc/sys/vm/drop_caches; md5sum {BLOB}")

    def assert_unharmed(self, name):
        self.assertEqual(self.read_anew(name), self.sum)
        self.assertNotIn("I/O error", self.host.console(name))
        before = self.host.records(name)["acknowledged"]
        wait_for(lambda: self.host.records(name)["acknowledged"] > before, "the writer to go on", 120)


class LazyStart(Lazy):
    def damage(self, content):
        """Changes a byte of the one pack that holds these bytes."""
        for pack in (self.host.directory / "repo/packs").rglob("*"):
            if pack.is_file() and (at := pack.read_bytes().find(content)) >= 0:
                with open(pack, "r+b") as file:
                    file.seek(at)
                    file.write(bytes([content[0] ^ 1]))
                return
        self.fail("no pack holds it")

    def test_a_damaged_block_holds_the_guest_until_repair_has_it_from_another_copy(self):
        self.restore("damaged", "--cold", "--no-hydrate")
        self.damage(self.extra.read_bytes()[2 * MIB :][:64])
        reading = self.host.start("exec", "damaged", "--timeout", "600s", "--", "md5sum", "/dev/vdb")
        self.addCleanup(lambda: (reading.kill(), reading.communicate()))
        wait_for(lambda: self.status("damaged") == "held" and "snapshot point, image vdb, bytes 2097152 to "
                 in self.trouble("damaged"), "the guest to be held over the block", 120)
        lost = self.host.json("repair")["lost"]
        self.assertEqual([(entry["name"], entry["image"]) for entry in lost], [("point", "vdb")])
        # Not at the same place: the same piece of an image again would be found without a repair, and the guest go on.
        shifted = self.host.directory / "shifted.raw"
        shifted.write_bytes(bytes(MIB // 2) + self.extra.read_bytes())
        self.host.still("import", shifted, "--name", "another-copy")
        self.assertEqual(self.host.json("repair")["lost"], [])
        output, errors = reading.communicate(timeout=600)
        self.assertIn(self.extra_sum, output, errors)
        wait_for(lambda: self.status("damaged") == "lazy" and not self.trouble("damaged"), "the end of the trouble", 120)
        self.assert_unharmed("damaged")

    def test_cold_boots_over_the_repository_and_in_the_end_needs_it_no_more(self):
        self.restore("cold", "--cold", "--no-hydrate")
        self.assertEqual(self.status("cold"), "lazy")
        self.assert_in_use("cold")
        self.assertEqual(self.read_anew("cold"), self.sum)
        # A disk that the guest may only read is no less lazy.
        self.assertIn(self.extra_sum, self.host.guest("cold", "md5sum", "/dev/vdb"))
        self.assertEqual(self.host.guest("cold", "cat", "/sys/block/vdb/ro").strip(), "1")
        overlay = self.host.state / "sessions/cold/vda.qcow2"
        self.assertLess(overlay.stat().st_blocks * 512, 64 << 20, "what was only read was not copied")
        again = self.host.json("snapshot", "cold", "--disk-only", "--quiesce", "require")
        found = self.host.check_disk(self.host.export(again["id"], "--image", "vda"))
        self.assertTrue(found["clean"])
        self.assertFalse(found["needs_recovery"])

        self.host.still("hydrate", "cold")
        wait_for(lambda: self.servers("cold") == [], "the disk server to end", 120)
        self.assertEqual(self.status("cold"), "running")
        (free,) = self.host.json("forget", "point", "--dry-run")["decisions"]
        self.assertFalse(free["keep"])
        repository = self.host.directory / "repo"
        repository.rename(self.host.directory / "away")
        self.addCleanup((self.host.directory / "away").rename, repository)
        self.assert_unharmed("cold")
        self.host.guest("cold", "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
        self.assertIn(self.extra_sum, self.host.guest("cold", "md5sum", "/dev/vdb"))

    def test_warm_goes_on_completes_itself_and_can_be_snapshotted_meanwhile(self):
        self.restore("warm", "--hydrate-rate", "1M")
        self.assertEqual(self.host.counter("warm", "--check")["errors"], 0)
        self.assertTrue(wait_for(lambda: self.status("warm").startswith("hydrating"), "hydration", 120))
        self.host.still("snapshot", "warm", "--name", "second", "--quiesce", "require")
        self.host.still("hydrate", "warm")
        self.assertEqual(self.status("warm"), "running")
        self.assert_unharmed("warm")
        self.host.still("restore", "second", "--as", "grandchild", "--lazy")
        self.addCleanup(self.host.run, "stop", "grandchild", "--force")
        self.assertEqual(self.host.counter("grandchild", "--check")["errors"], 0)
        self.assertEqual(self.read_anew("grandchild"), self.sum)


class LazyTrouble(Lazy):
    encrypted = True  # What serves the disks is started again with the passphrase, which nobody is asked for.

    def test_a_disk_server_that_is_killed_is_started_again_and_the_guest_sees_nothing(self):
        self.restore("killed", "--cold", "--no-hydrate")
        (server,) = self.servers("killed")
        os.kill(server, signal.SIGKILL)
        self.assertEqual(self.read_anew("killed"), self.sum)
        self.assertNotEqual(self.servers("killed"), [server])
        self.assert_unharmed("killed")

    def test_a_repository_that_goes_away_holds_the_guest_until_it_is_back(self):
        self.restore("held", "--cold", "--no-hydrate")
        repository = self.host.directory / "repo"
        away = self.host.directory / "repo-away"
        # A guest that is held answers to no new command, and any of its reads may hold it: this one runs before.
        reading = self.host.start("exec", "held", "--timeout", "600s", "--", "sh", "-c",
                                  f"echo ready; sleep 5; echo 3 > /proc/sys/vm/drop_caches; md5sum {BLOB}")
        self.addCleanup(lambda: (reading.kill(), reading.communicate()))
        self.assertEqual(reading.stdout.readline(), "ready\n")
        repository.rename(away)
        try:
            # The read fails first, and then the server, which is started anew: in the end both are told together.
            for words in ("the guest is held: disks vda, vdb of snapshot ", ": snapshot point, image vda, bytes ",
                          "repo: No such file or directory"):
                wait_for(lambda: self.status("held") == "held" and words in self.trouble("held"), words, 120)
        finally:
            away.rename(repository)
        output, errors = reading.communicate(timeout=600)
        self.assertEqual(output, self.sum, errors)
        wait_for(lambda: self.status("held") == "lazy", "the guest to go on", 120)
        self.assert_unharmed("held")
        self.host.still("hydrate", "held")
        self.assert_unharmed("held")

    def test_held_while_a_capture_drains_the_guest_goes_on_and_the_capture_says_that_it_is_lost(self):
        fault = self.host.directory / "fault"
        self.addCleanup(fault.unlink, missing_ok=True)
        self.host.environment["STILL_FAULT_FILE"] = str(fault)
        self.addCleanup(self.host.environment.pop, "STILL_FAULT_FILE")
        self.restore("drained", "--cold", "--no-hydrate")
        directory = self.host.state / "sessions/drained"
        pinned = lambda: list(directory.glob("capture-*.fleece"))
        # The caller is stopped before it reads anything: the window needs it no more.
        fault.write_text("thaw:1000\n")
        snapshot = self.host.start("snapshot", "drained", "--name", "lost", "--disk-only", "--quiesce", "require")
        self.addCleanup(lambda: (snapshot.kill(), snapshot.communicate()))
        wait_for(lambda: "step=thaw" in (directory / "session.log").read_text(), "the thaw", 120)
        os.kill(snapshot.pid, signal.SIGSTOP)
        # Refused as long as the guest is frozen.
        wait_for(lambda: self.host.run("exec", "drained", "--", "true").returncode == 0, "the end of the thaw", 120)
        repository = self.host.directory / "repo"
        away = self.host.directory / "repo-away"
        # A guest that is held answers to no new command, so this one waits for the repository to go. What it overwrites first
        # nobody can keep for the capture then; its read holds the guest.
        write = f"dd if=/dev/zero of={OTHER} bs=64k conv=notrunc,fsync 2> /dev/null"
        reading = self.host.start("exec", "drained", "--timeout", "600s", "--", "sh", "-c",
                                  f"{write} count=1; echo ready; sleep 5; {write} count=4 seek=4; "
                                  f"echo 3 > /proc/sys/vm/drop_caches; md5sum {BLOB}")
        self.addCleanup(lambda: (reading.kill(), reading.communicate()))
        self.assertEqual(reading.stdout.readline(), "ready\n")
        repository.rename(away)
        try:
            wait_for(lambda: self.status("drained") == "held", "the guest to be held", 120)
        finally:
            away.rename(repository)
        output, errors = reading.communicate(timeout=600)
        self.assertEqual(output, self.sum, errors)
        self.assertTrue(pinned(), "it went on beside the capture, not after it")
        os.kill(snapshot.pid, signal.SIGCONT)
        _, errors = snapshot.communicate(timeout=600)
        self.assertEqual(snapshot.returncode, 6, errors)
        self.assertIn("disk vda cannot be read as of the snapshot's point any more", errors)
        self.assertIn("take it again", errors)
        wait_for(lambda: not pinned(), "the end of the capture", 120)
        again = self.host.json("snapshot", "drained", "--name", "again", "--disk-only", "--quiesce", "require")
        found = self.host.check_disk(self.host.export(again["id"], "--image", "vda"))
        self.assertTrue(found["clean"])
        self.assert_unharmed("drained")


if __name__ == "__main__":
    unittest.main(verbosity=2)
