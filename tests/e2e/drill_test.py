"""Restore drills: what they prove, what they record, and that nothing of them is left, however they end."""

import pathlib
import signal
import unittest

from snapshot_test import VmTest
from still_host import BUILD, wait_for


class Drill(VmTest):
    boot_arguments = ("--net",)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.taken = cls.host.json("snapshot", "web", "--name", "point", "--quiesce", "require")

    def setUp(self):
        self.process = None

    def tearDown(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.assert_nothing_left()

    def places(self):
        """Directories of throw-away sessions."""
        return [p.name for p in (self.host.state / "sessions").iterdir() if p.name.startswith("drill-")]

    def leftovers(self):
        locks = self.host.state / "throw-away"
        processes = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(self.host.state) in words and ("drill-" in words):
                processes.append(words.replace("\0", " ")[:200])
        return self.places() + processes + (sorted(p.name for p in locks.iterdir()) if locks.exists() else [])

    def assert_nothing_left(self):
        wait_for(lambda: not self.places() and not [w for w in self.leftovers() if " " in w], "the janitor", 60)
        self.host.still("drill", "--history")  # It sweeps.
        self.assertEqual(self.leftovers(), [])
        self.assert_web_works()

    def newest(self):
        return self.host.json("drill", "--history")[0]

    def test_a_snapshot_that_works_passes_and_the_machine_goes_on_from_its_memory(self):
        drill = self.host.json("drill", "point", "--check", "counter --check && echo fine")
        self.assertEqual(drill["state"], "passed")
        self.assertEqual(drill["exit_code"], 0)
        self.assertEqual(drill["message"].splitlines()[-1], "fine")
        self.assertEqual(drill["snapshot"], self.taken["id"])
        self.assertGreater(drill["restored_us"], 0)
        self.assertEqual(self.newest(), drill)

    def test_a_session_stands_for_its_newest_snapshot(self):
        # Also where another one is the only one whose name begins so.
        self.host.still("import", self.host.disk("other", mib=1), "--name", "web-before-rollback-1")
        self.addCleanup(self.host.still, "forget", "web-before-rollback-1")
        self.assertEqual(self.host.json("drill", "web")["snapshot_name"], "point")
        self.assertEqual(self.newest()["check"], "")

    def test_a_check_that_fails_fails_the_drill_and_says_what_it_printed(self):
        self.assert_fails(8, "exit code 3: no orders in the database", "drill", "point", "--check",
                          "echo no orders in the database; exit 3")
        self.assertEqual(self.newest()["state"], "failed")
        self.assertEqual(self.newest()["exit_code"], 3)

    def test_what_a_failing_check_prints_drives_no_terminal(self):
        escapes = r"\033[2J\033]0;owned\a\r\xff"
        failed = self.host.run("drill", "point", "--check", f"printf 'before {escapes} after'; exit 3")
        self.assertEqual(failed.returncode, 8, failed.stderr)
        history = self.host.still("drill", "--history")
        for text in (failed.stdout, failed.stderr, history, self.newest()["message"]):
            self.assertNotRegex(text, "[\x00-\x09\x0b-\x1f\x7f]", "it was shown as it came")
        self.assertIn(r"before \x1b[2J\x1b]0;owned\x07\r\xff after", failed.stderr, "and it is told")

    def test_a_check_that_hangs_is_ended(self):
        self.assert_fails(8, "ran longer than 1s", "drill", "point", "--check", "sleep 600", "--timeout", "1s")
        self.assertEqual(self.newest()["state"], "failed")
        self.assertNotIn("exit_code", self.newest())

    def test_an_unknown_snapshot_is_no_drill(self):
        before = self.host.json("drill", "--history")
        self.assert_fails(3, "nosuch", "drill", "nosuch")
        self.assertEqual(self.host.json("drill", "--history"), before)

    def begin(self):
        """A drill whose check runs until it is ended, and its session."""
        self.process = self.host.start("drill", "point", "--check", "sleep 600")
        return self.process, lambda: next((s for s in self.host.json("ps") if s["name"].startswith("drill-")), None)

    def test_the_machine_has_its_network_card_and_no_network(self):
        process, place = self.begin()
        command = wait_for(lambda: (s := place()) and s.get("hypervisor_command"), "the session", 60)
        netdevs = [command[i + 1] for i, word in enumerate(command) if word == "-netdev"]
        self.assertEqual([n.split(",")[0] for n in netdevs], ["user"], "what has saved state must be there to load it")
        self.assertIn("restrict=on", netdevs[0].split(","))
        web = self.host.session("web")["hypervisor_command"]
        self.assertNotIn("restrict=on", ",".join(web))
        process.send_signal(signal.SIGINT)

    def test_killed_while_the_check_runs_nothing_is_left_and_the_row_says_so(self):
        process, place = self.begin()
        wait_for(lambda: (s := place()) and s["status"] == "running", "the session", 60)
        process.kill()
        process.communicate()
        wait_for(lambda: not self.places(), "the janitor", 60)
        self.assertEqual(self.newest()["state"], "abandoned")

    def test_killed_while_the_snapshot_is_read_nothing_is_left(self):
        process, _ = self.begin()
        wait_for(self.places, "the session's directory", 60)
        process.kill()
        process.communicate()
        wait_for(lambda: not self.places(), "the janitor", 60)
        self.assertEqual(self.newest()["state"], "abandoned")


if __name__ == "__main__":
    print(f"build: {BUILD}")
    unittest.main(verbosity=2)
