"""What dies, when: whatever is killed in the middle of a snapshot, the guest runs and is thawed, and nothing is half-listed."""

import os
import signal
import subprocess
import time
import unittest

from memory_test import engine_of
from snapshot_test import VmTest
from still_host import wait_for

# A step is held until release(); this only ends a test that hangs.
HOLD_MS = 120_000
STEPS = ("quiesce", "recheck", "pause", "pin_disks", "save_state", "thaw")


class FaultTest(VmTest):
    fault_file = True

    def setUp(self):
        self.fault = self.host.directory / "fault"
        self.log = self.host.state / "sessions/web/session.log"
        self.addCleanup(self.fault.unlink, missing_ok=True)

    def begin_snapshot(self, step, milliseconds, *arguments, **environment):
        """A snapshot under way, held before `step`."""
        self.fault.write_text(f"{step}:{milliseconds}\n")
        held = self.log.read_text().count(f"step={step}")
        process = self.host.start("snapshot", "web", *arguments, **environment)
        wait_for(lambda: self.log.read_text().count(f"step={step}") > held, f"step {step}", 120)
        return process

    def release(self):
        self.fault.unlink(missing_ok=True)

    def arm(self, script):
        """What is returned has the guest run `script`, also when it is frozen and takes no new command: its end is what a program of
        the guest waits for. It prints nothing meanwhile: that nobody waits for it any more is seen all the same."""
        wait = f"setsid sh -c 'while kill -0 '$$'; do sleep 0.1; done; {script}' >/dev/null 2>&1 &"
        command = self.host.start("exec", "web", "--timeout", "600s", "--", "sh", "-c", f"{wait} echo; exec sleep 600")
        self.addCleanup(command.communicate)
        self.addCleanup(command.kill)
        self.assertEqual(command.stdout.readline(), "\n")
        return command.kill

    def assert_repository_is_clean(self, snapshots):
        self.assertEqual(len(self.host.json("list")), snapshots)
        self.assertTrue(self.host.json("verify", "--read-data", "100")["ok"])


class CallerKilled(FaultTest):
    def test_at_each_step_the_guest_goes_on_and_the_next_snapshot_works(self):
        for step in STEPS:
            with self.subTest(step):
                process = self.begin_snapshot(step, 1000, "--name", f"killed-at-{step}")
                process.kill()
                process.communicate()
                self.assert_web_works()
        self.assert_repository_is_clean(0)
        self.fault.unlink()
        self.assertEqual(self.host.json("snapshot", "web", "--quiesce", "require")["consistency"]["level"], "FILESYSTEM")
        self.assert_repository_is_clean(1)


class CallerStopped(FaultTest):
    def test_its_capture_is_given_up_and_the_next_snapshot_works(self):
        # Before memory is streamed: all of it is still to come when its reader takes nothing any more.
        process = self.begin_snapshot("save_state", 1000, "--name", "stopped")
        os.kill(process.pid, signal.SIGSTOP)
        self.addCleanup(process.kill)
        self.assert_web_works()
        self.assertIn("took nothing for 1s", self.log.read_text())
        self.fault.unlink()
        self.host.still("snapshot", "web", "--name", "next")
        os.kill(process.pid, signal.SIGCONT)
        _, stderr = process.communicate(timeout=600)
        self.assertNotEqual(process.returncode, 0, stderr)
        self.assert_repository_is_clean(1)


class EngineKilled(FaultTest):
    """The memory engine is killed or stopped while the guest waits for it (docs/memory.md, "Who answers")."""

    def test_at_each_step_the_guest_goes_on_and_the_next_snapshot_works(self):
        if not self.host.session("web")["capabilities"].get("engine_memory", False):
            self.skipTest("no memory engine here: " + self.host.session("web")["capabilities"]["engine_memory_reason"])
        for number in (signal.SIGKILL, signal.SIGSTOP):
            for step in ("quiesce", "pause", "save_state"):
                with self.subTest(step, signal=number):
                    process = self.begin_snapshot(step, 2000, "--name", f"never-{step}")
                    os.kill(engine_of(self.host.pids()["web"]), number)
                    _, stderr = process.communicate(timeout=600)
                    self.assertEqual(process.returncode, 6, stderr)
                    self.assertIn("the memory engine", stderr)
                    self.assert_web_works()
        self.assert_repository_is_clean(0)
        self.fault.unlink()
        taken = self.host.json("snapshot", "web", "--name", "next", "--memory", "require", "--quiesce", "require")
        self.assertEqual(taken["windows"]["memory_method"], "engine")
        self.host.still("restore", "next", "--as", "copy")
        self.assertEqual(self.host.counter("copy", "--check")["errors"], 0)


class AgentKilled(FaultTest):
    def test_a_frozen_guest_whose_agent_is_killed_thaws_itself(self):
        # Before the pause the guest is frozen and runs: there its agent dies.
        kill = self.arm("kill -9 $(pidof still-agent)")
        tried = self.begin_snapshot("pause", HOLD_MS, "--name", "agentless", "--quiesce", "require", "--disk-only")
        self.assertEqual(self.host.session("web")["agent"]["quiesce_state"], "FROZEN")
        kill()
        wait_for(lambda: self.host.session("web").get("agent", {}).get("quiesce_state") == "THAWED", "the thaw", 120)
        self.release()
        _, stderr = tried.communicate(timeout=600)
        self.assertNotEqual(tried.returncode, 0, "a freeze that was not proven must not be claimed")
        self.assertIn("thawed early", stderr)
        self.assert_web_works()
        self.assert_repository_is_clean(0)


class HypervisorKilled(FaultTest):
    def test_while_memory_is_drained_nothing_is_listed_and_the_repository_is_clean(self):
        process = self.begin_snapshot("thaw", 1500, "--name", "never")
        os.kill(int(self.host.session("web")["pid"]), signal.SIGKILL)
        _, stderr = process.communicate(timeout=600)
        self.assertEqual(process.returncode, 6, stderr)
        wait_for(lambda: not self.host.pids(), "the session's end", 120)
        self.assertIn("signal 9", self.host.session("web")["status"])
        self.assert_repository_is_clean(0)


@unittest.skipIf(os.geteuid() != 0, "mounts a small file system for the repository")
class RepositoryFull(FaultTest):
    def test_a_full_repository_fails_the_snapshot_and_leaves_the_guest_alone(self):
        small = self.host.directory / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", small], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", small], check=True)
        repository = str(small / "repo")
        self.host.still("init", "--no-encryption", STILL_REPO=repository)
        result = self.host.run("snapshot", "web", STILL_REPO=repository)
        self.assertEqual(result.returncode, 7, result.stderr)
        self.assertIn("No space left", result.stderr)
        self.assert_web_works()
        self.assertEqual(self.host.json("list", STILL_REPO=repository), [])


@unittest.skipIf(os.geteuid() != 0, "mounts and freezes a file system for the repository")
class RepositoryHangs(FaultTest):
    def test_the_guest_does_not_wait_for_it_and_the_snapshot_does(self):
        mount = self.host.directory / "hangs"
        mount.mkdir()
        image = self.host.directory / "hangs.img"
        with image.open("wb") as file:
            file.truncate(1 << 30)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, mount], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", mount], check=True)
        repository = str(mount / "repo")
        self.host.still("init", "--no-encryption", STILL_REPO=repository)
        # Held before the point: everything has to be stored while nothing can be.
        process = self.begin_snapshot("pin_disks", 1000, "--name", "late", STILL_REPO=repository)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        subprocess.run(["fsfreeze", "--freeze", mount], check=True)
        self.addCleanup(subprocess.run, ["fsfreeze", "--unfreeze", mount], stderr=subprocess.DEVNULL, check=False)
        before = wait_for(lambda: self.host.records("web")["acknowledged"], "the thaw", 120)
        # For longer than a reader of memory may take nothing: who waits for the repository has lost its capture by then.
        begin = time.monotonic()
        wait_for(lambda: self.host.records("web")["acknowledged"] > before + 30, "the writer to go on", 120)
        wait_for(lambda: time.monotonic() > begin + 5, "five seconds", 10)
        self.assertIsNone(process.poll(), "it ended without its repository")
        subprocess.run(["fsfreeze", "--unfreeze", mount], check=True)
        _, stderr = process.communicate(timeout=600)
        self.assertEqual(process.returncode, 0, stderr)
        self.assertTrue(self.host.json("verify", "--read-data", "100", STILL_REPO=repository)["ok"])
        self.fault.unlink()
        self.assert_web_works()


if __name__ == "__main__":
    unittest.main(verbosity=2)
