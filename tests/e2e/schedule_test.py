"""Schedules over a real machine, run by hand: hooks, limits, restore drills. And that every command speaks JSON."""

import json
import os
import pathlib
import signal
import socket
import unittest

from snapshot_test import VmTest
from still_host import GUEST, has_private_mounts, wait_for

MIB = 1 << 20


class OneMachine(VmTest):
    def add(self, name, *arguments):
        self.host.still("schedule", "add", name, "--on", "yearly", *arguments)
        self.addCleanup(self.host.still, "schedule", "rm", name)

    def run_now(self, name):
        """The ended run, whatever became of it."""
        result = self.host.run("--json", "schedule", "run-now", name, "--wait")
        [run] = json.loads(result.stdout)["runs"]
        self.assertEqual(result.returncode == 0, run["outcome"] == "succeeded", result.stderr)
        return run

    def test_a_capture_with_hooks_and_limits_and_the_drills_of_it(self):
        told = self.host.directory / "told"
        rate = MIB // 2
        self.add("capture", "--session", "web", "--quiesce", "require", "--read-bandwidth", rate, "--bandwidth", "30M",
                 "--before", f'echo "before $STILL_KIND $STILL_SESSION" >> {told}',
                 "--after", f'echo "after $STILL_OUTCOME $STILL_SNAPSHOT" >> {told}', "--keep", "last=1")
        run = self.run_now("capture")
        self.assertEqual((run["outcome"], run["consistency"]), ("succeeded", "filesystem"), run)
        self.assertEqual(told.read_text().splitlines(), ["before capture web", f"after succeeded {run['snapshot']}"])
        taken = self.host.json("show", run["snapshot"])
        read = sum(int(image["bytes_read"]) for image in taken["images"] if image["role"] == "ROLE_DISK")
        self.assertGreater(read, 2 * rate, "else this shows nothing")
        took = (int(run["ended_unix_ns"]) - int(run["started_unix_ns"])) / 1e9
        self.assertGreater(took, read / rate - 1.1, "the first second's worth may go at once")

        self.add("drill", "--kind", "drill", "--session", "web", "--check", "counter --check", "--bandwidth", "200M")
        passed = self.run_now("drill")
        self.assertEqual((passed["outcome"], passed["snapshot"]), ("succeeded", run["snapshot"]), passed)
        self.host.still("schedule", "edit", "drill", "--check", "echo no orders; exit 3")
        failed = self.run_now("drill")
        self.assertEqual(failed["outcome"], "failed")
        self.assertIn("exit code 3: no orders", failed["message"])
        drills = self.host.json("drill", "--history")
        self.assertEqual([(d["state"], d["snapshot"]) for d in drills[:2]],
                         [("failed", run["snapshot"]), ("passed", run["snapshot"])])
        self.assertEqual([session["name"] for session in self.host.json("ps")], ["web"], "nothing of a drill is left")
        self.assert_web_works()

    def test_what_a_hook_before_refuses_is_not_begun(self):
        before = self.host.json("list")
        self.add("refused", "--session", "web", "--before", "echo the array is being rebuilt >&2; exit 1")
        run = self.run_now("refused")
        self.assertEqual(run["outcome"], "failed")
        self.assertIn("the array is being rebuilt", run["message"])
        self.assertEqual(self.host.json("list"), before)

    def commands(self):
        """All there are, by their man pages."""
        pages = self.host.directory / "man"
        self.host.still("__man", pages, "--date", "2026-01-01")
        leaves = [page.stem for page in pages.iterdir() if ".SH COMMANDS" not in page.read_text()]
        groups = [page.stem for page in pages.iterdir() if ".SH COMMANDS" in page.read_text() and page.stem != "still"]
        names = set()
        for leaf in leaves:
            group = next((g for g in groups if leaf.startswith(g + "-")), "still")
            name = leaf[len(group) + 1:]
            names.add(name if group == "still" else f"{group[len('still-'):]} {name}")
        return names

    def check(self, command, *arguments, code=0, **environment):
        self.seen.add(command)
        result = self.host.run("--json", *command.split(), *arguments, **environment)
        self.assertEqual(result.returncode, code, f"{command}: {result.stderr}")
        try:
            return json.loads(result.stdout)
        except json.JSONDecodeError as error:
            self.fail(f"{command}: {error}: {result.stdout[:300]}")

    def test_every_command_prints_one_json_document_when_asked_to(self):
        self.seen = set()
        host, check = self.host, self.check
        scratch = host.directory
        check("snapshot", "web", "--name", "one", "--label", "tier=gold")
        check("list")
        check("show", "one")
        check("ps")
        check("exec", "web", "--", "true")
        check("exec", "web", "--", "false", code=1)
        check("logs", "web")
        check("thaw", "web")
        check("resume", "web")
        check("hydrate", "web")
        check("hot")
        check("doctor")
        check("stats")
        check("completion", "bash")
        check("hold", "one", "--reason", "audit")
        check("release", "one")
        check("verify")
        check("repair", "--dry-run")
        check("drill", "one")
        self.assertEqual(check("drill", "one", "--check", "exit 3", code=8)["exit_code"], 3)
        check("drill", "--history")

        check("restore", "one", "--as", "copy")
        check("rollback", "copy", "one", "--other-machine")
        check("stop", "copy", "--force")
        check("start", "copy")
        host.still("stop", "copy", "--force")
        check("rm", "copy")
        check("run", "bare", "--kernel", GUEST / "vmlinux", "--no-agent", "--memory", "64M")
        host.still("stop", "bare", "--force")
        host.still("rm", "bare")

        disk = host.disk("other", 32)
        check("import", disk, "--name", "image")
        check("export", "image", scratch / "back.raw")
        check("diff", "one", "one")
        self.mounts(scratch / "point")
        self.serve(scratch / "serve.sock")
        self.install_agent(disk)

        check("setup", "--repo", "relative", code=2)  # Else it would set up this very host.
        check("schedule add", "a", "--session", "web", "--every", "1h", "--keep", "last=1", "--disk-only")
        check("schedule edit", "a", "--every", "2h")
        for command in ("list", "run-due", "check", "history", "coverage"):
            check(f"schedule {command}")
        for command in ("show", "preview", "pause", "resume"):
            check(f"schedule {command}", "a")
        self.assertEqual(check("schedule run-now", "a", "--wait")["runs"][0]["outcome"], "succeeded")
        check("schedule rm", "a")

        check("forget", "image")
        check("prune")
        self.keys()
        self.assertEqual(self.commands() - self.seen, set(), "commands that this test does not know")
        self.assertIn("error", check("show", "nosuch", code=3), "errors, too")

    def mounts(self, point):
        """What needs FUSE, and some of it root's rights; without them it says so, in JSON too."""
        point.mkdir()
        root = os.geteuid() == 0
        if root and not pathlib.Path("/dev/fuse").exists():
            self.seen |= {"ls", "cp", "mount", "umount"}
            return
        able = os.access("/dev/fuse", os.R_OK | os.W_OK)
        for words in (("ls", "image:/"), ("cp", "image:/lost+found", point.parent)):
            self.check(*words, code=0 if able else 5)
        self.check("mount", "image", point, code=0 if root else 9)
        self.check("umount", point, code=0 if root else 3)

    def serve(self, path):
        """It goes on until it is ended: what it prints first."""
        self.seen.add("serve")
        process = self.host.start("serve", "image", "--socket", path, "--json")
        try:
            def answers():
                with socket.socket(socket.AF_UNIX) as client:
                    return client.connect_ex(str(path)) == 0 and client.recv(8) == b"NBDMAGIC"
            wait_for(answers, "the server", 60)
        finally:
            process.send_signal(signal.SIGTERM)
            stdout, _ = process.communicate(timeout=60)
        self.assertEqual(json.loads(stdout)["exports"], ["vda"])

    def install_agent(self, disk):
        self.seen.add("agent install")
        if os.geteuid() == 0 and not pathlib.Path("/dev/loop-control").exists():
            return
        able = os.geteuid() != 0 or has_private_mounts()
        self.check("agent install", disk, code=3 if able else 5)  # No operating system is in it.

    def keys(self):
        secret = {"STILL_PASSPHRASE": "correct horse", "STILL_REPO": str(self.host.directory / "encrypted")}
        self.check("init", **secret)
        self.check("key list", **secret)
        added = self.check("key add", STILL_NEW_PASSPHRASE="battery staple", **secret)
        self.check("key rm", added["key"], **secret)
        first = self.check("key list", **secret)[0]
        self.check("key change", first["key"], STILL_NEW_PASSPHRASE="staple", **secret)


if __name__ == "__main__":
    unittest.main(verbosity=2)
