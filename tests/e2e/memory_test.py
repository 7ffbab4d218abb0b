"""Memory that is tracked between snapshots (docs/memory.md, "Increments"), on a real guest that checks itself."""

import os
import pathlib
import signal
import unittest

from snapshot_test import VmTest


def engine_of(session):
    """The process id of the memory engine below a still-session; None: it has none."""
    for children in pathlib.Path(f"/proc/{session}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "still-memory":
                return pid
    return None


class TrackedMemory(VmTest):
    def setUp(self):
        capabilities = self.host.session("web")["capabilities"]
        if not capabilities.get("engine_memory", False):
            self.skipTest(f"no memory engine here: {capabilities['engine_memory_reason']}")

    def snapshot(self, name, *arguments):
        return self.host.json("snapshot", "web", "--name", name, "--memory", "require", "--quiesce", "require", *arguments)

    def end(self, session):
        self.host.still("stop", session, "--force")
        self.host.still("rm", session)

    def memory_read(self, snapshot):
        return next(int(image["bytes_read"]) for image in snapshot["images"] if image["name"] == "ram")

    def assert_restores(self, name):
        copy = f"copy-{name}"
        self.host.still("restore", name, "--as", copy)
        self.assertEqual(self.host.counter(copy, "--check")["errors"], 0)
        self.end(copy)

    def test_the_next_snapshot_reads_what_was_written_and_is_a_snapshot_like_any_other(self):
        first = self.snapshot("first", "--track-memory")
        self.assertIn("no earlier snapshot", first["windows"]["memory_full_reason"])
        whole = self.memory_read(first)
        for number in range(3):
            if number == 1:  # Somebody else's takes all, and leaves what is tracked as it is.
                self.assertGreater(self.memory_read(self.snapshot("beside")), whole * 3 / 4)
            name = f"next-{number}"
            taken = self.snapshot(name, "--track-memory")
            self.assertEqual(taken["windows"].get("memory_full_reason", ""), "")
            # The guest writes all the time: how much depends on how long this takes.
            self.assertLess(self.memory_read(taken), whole * 3 / 4)
            self.assert_web_works()
            self.assert_restores(name)
        self.assert_restores("beside")
        self.assertTrue(self.host.json("verify", "--read-data", "100")["ok"])

    def test_when_its_engine_is_gone_all_memory_is_read_and_it_is_said(self):
        self.snapshot("before", "--track-memory")
        os.kill(engine_of(self.host.pids()["web"]), signal.SIGKILL)
        self.assert_web_works()
        after = self.snapshot("after", "--track-memory")
        self.assertIn("not been tracked", after["windows"]["memory_full_reason"])
        self.assertIn("all memory was read because", self.host.still("show", "after"))
        self.assert_restores("after")

    def test_of_a_fork_only_its_own_pages_are_read(self):
        whole = self.memory_read(self.snapshot("origin"))
        below = "origin"
        for fork in ("child", "grandchild"):
            self.host.still("restore", below, "--as", fork)
            for number in (1, 2):
                name = f"of-{fork}-{number}"
                tracked = ["--track-memory"] if number == 2 else []
                taken = self.host.json("snapshot", fork, "--name", name, "--memory", "require", *tracked)
                self.assertLess(self.memory_read(taken), whole / 2, name)
                self.assertEqual(taken["windows"].get("memory_full_reason", ""), "")
                self.assert_restores(name)
            self.end(fork)
            below = f"of-{fork}-1"
        # Its image may be forgotten while a fork runs on it.
        self.host.still("restore", below, "--as", "orphan")
        self.host.still("forget", below)
        self.host.still("prune")
        self.assertGreater(self.memory_read(self.host.json("snapshot", "orphan", "--name", "of-orphan")), whole / 2)
        self.assert_restores("of-orphan")
        self.end("orphan")
        self.assertTrue(self.host.json("verify", "--read-data", "100")["ok"])

    def test_without_the_option_no_engine_stays(self):
        # A tracked one before may have left one; a new session has none.
        self.host.still("restore", self.snapshot("plain")["id"], "--as", "fresh")
        self.host.still("snapshot", "fresh", "--name", "of-fresh")
        self.assertIsNone(engine_of(self.host.pids()["fresh"]))
        self.host.still("snapshot", "fresh", "--name", "tracked", "--track-memory")
        self.assertIsNotNone(engine_of(self.host.pids()["fresh"]))
        self.end("fresh")

    def test_tracking_without_memory_is_refused(self):
        result = self.host.run("snapshot", "web", "--track-memory", "--disk-only")
        self.assertEqual(result.returncode, 2, result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
