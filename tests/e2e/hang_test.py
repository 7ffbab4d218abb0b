"""Guests that hang before their session is ready: the command ends by its limit, whoever ends it leaves nothing alive, and
meanwhile every other command knows that somebody works in the session's directory."""

import os
import pathlib
import signal
import unittest

from still_host import GUEST, Host, wait_for

# The guest runs its hooks while it takes its identity: this one stops the agent that runs it.
HANG = "/etc/still/restore.d/hang"
HOOK = f"mkdir -p {HANG.rpartition('/')[0]} && printf '#!/bin/sh\\necho IT HANGS >/dev/console\\nkillall -STOP still-agent\\n'"


def is_alive(pid):
    """Not for what has ended and was not yet reaped."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def is_qemu(pid):
    """A session starts other programs before: to see whether its hypervisor can be a user of its own."""
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().startswith("qemu")
    except OSError:
        return False


def children(parent):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
        except OSError:  # It has ended meanwhile.
            continue
    return found


class HangTest(unittest.TestCase):
    host: Host
    begun: list

    def processes(self, name):
        """The session's still-session and what it has started: its hypervisor."""
        keeper = self.host.pids().get(name)
        return [] if keeper is None else [keeper, *children(keeper)]

    def begin(self, name, *arguments):
        """The command, once its session has a hypervisor."""
        command = self.host.start(*arguments)
        self.addCleanup(command.communicate)
        self.addCleanup(command.kill)
        self.begun = wait_for(lambda: any(map(is_qemu, found := self.processes(name))) and found, "the hypervisor", 120)
        return command

    def assert_refused(self, code, fragment, *arguments):
        result = self.host.run(*arguments)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertIn(fragment, result.stderr)

    def assert_lives_unready(self, name):
        self.assertEqual(self.host.session(name)["status"], "starting")
        self.assert_refused(5, "is just starting", "rm", name)
        self.assert_refused(6, "is just starting", "exec", name, "--", "true")
        self.assertTrue((self.host.state / "sessions" / name / "session.json").exists())

    def assert_ends_with_its_command(self, name, command, how):
        command.send_signal(how)
        command.communicate()
        wait_for(lambda: not any(map(is_alive, self.begun)), "its processes to end", 120)
        wait_for(lambda: self.host.session(name)["status"].startswith("stopped"), "its end to be known", 120)
        self.host.still("rm", name)
        self.assertIsNone(self.host.session(name))


class HangingRestore(HangTest):
    @classmethod
    def setUpClass(cls):
        cls.host = Host()
        cls.addClassCleanup(cls.host.close)
        cls.host.boot("web", disks=[cls.host.disk("web", mib=64)], memory="160M", workload="")
        cls.host.guest("web", "sh", "-c", f"{HOOK} >{HANG} && chmod +x {HANG}")
        cls.host.still("snapshot", "web", "--name", "point", "--quiesce", "require")

    def begin_restore(self):
        command = self.begin("copy", "restore", "point", "--as", "copy")
        console = self.host.state / "sessions/copy/console.log"
        wait_for(lambda: console.exists() and "IT HANGS" in console.read_text(errors="replace"), "the guest to hang", 120)
        return command

    def assert_nothing_is_left(self):
        self.assertNotIn("copy", self.host.pids())
        self.assertIsNone(self.host.session("copy"))
        self.assertFalse((self.host.state / "sessions/copy").exists())

    def test_it_ends_when_the_guest_gives_no_sign_of_life_and_says_what_it_waits_for(self):
        result = self.host.run("restore", "point", "--as", "copy")
        self.assertEqual(result.returncode, 6, result.stderr)
        self.assertIn("wait until the guest has its own identity...", result.stderr)
        self.assertIn("the guest hangs", result.stderr)
        self.assert_nothing_is_left()

    def test_it_ends_by_its_limit(self):
        result = self.host.run("restore", "point", "--as", "copy", "--agent-timeout", "15s")
        self.assertEqual(result.returncode, 6, result.stderr)
        self.assertRegex(result.stderr, "no identity of its own within|no guest agent answered within 15s")
        self.assert_nothing_is_left()

    def test_a_session_that_is_not_ready_lives_and_ends_with_its_command(self):
        command = self.begin_restore()
        self.assert_lives_unready("copy")
        self.assert_refused(4, "is just starting", "restore", "point", "--as", "copy")
        self.assert_ends_with_its_command("copy", command, signal.SIGKILL)

    def test_stop_ends_it_and_the_restore(self):
        command = self.begin_restore()
        self.host.still("stop", "copy")
        _, stderr = command.communicate()
        self.assertEqual(command.returncode, 6, stderr)
        self.assertIn("the session ended: stopped", stderr)
        self.assert_nothing_is_left()


class HangingBoot(HangTest):
    @classmethod
    def setUpClass(cls):
        cls.host = Host()
        cls.addClassCleanup(cls.host.close)

    def test_a_session_that_boots_for_ever_lives_and_ends_with_its_command(self):
        for how in (signal.SIGINT, signal.SIGKILL):
            # No initial RAM disk: the kernel stops, and nobody dials.
            command = self.begin(
                "mute", "run", "mute", "--kernel", GUEST / "vmlinux", "--append", "panic=0", "--agent-timeout", "1h"
            )
            self.assert_lives_unready("mute")
            self.assert_ends_with_its_command("mute", command, how)

    def test_a_session_whose_process_hangs_is_ended_by_force_only(self):
        self.host.still("run", "mute", "--kernel", GUEST / "vmlinux", "--append", "panic=0", "--agent-timeout", "0")
        begun = self.processes("mute")
        os.kill(begun[0], signal.SIGSTOP)
        self.assert_refused(6, "does not answer; `still stop --force mute`", "stop", "mute")
        self.assertTrue(all(map(is_alive, begun)))
        self.host.still("stop", "--force", "mute")
        wait_for(lambda: not any(map(is_alive, begun)), "its processes to end", 60)
        self.host.still("start", "mute", "--agent-timeout", "0")
        self.host.still("stop", "--force", "mute")
        self.host.still("start", "mute", "--agent-timeout", "0")
        self.host.still("stop", "--force", "mute")
        self.host.still("rm", "mute")


if __name__ == "__main__":
    unittest.main(verbosity=2)
