"""Machines that were off are switched on again: with their disks, whoever made them, and with who they are."""

import json
import os
import signal
import unittest

from still_host import CommandFailed, Host, wait_for


class StartAgain(unittest.TestCase):
    """Each way to end is a thing of its own, and start is the way out of all of them."""

    def ended(self, host, status, kind):
        web = wait_for(lambda: (s := host.session("web"))["status"].startswith(status) and s, status, 60)
        self.assertEqual(web["end"]["kind"], kind)

    def start(self, host):
        self.assertTrue(host.json("start", "web")["started"])
        self.assertFalse(host.json("start", "web")["started"], "the second time it runs already")
        before = host.records("web")["acknowledged"]
        wait_for(lambda: host.records("web")["acknowledged"] > before, "the writer of the new boot", 60)

    def test_every_end_is_told_apart_and_started_again(self):
        with Host() as host:
            host.boot("web")
            machine = host.session("web")["id"]
            wait_for(lambda: host.records("web")["acknowledged"] > 5, "the record writer", 60)

            self.assertEqual(host.json("stop", "web", "--grace", "60s")["kind"], "STOPPED")
            self.assertEqual(host.json("stop", "web")["kind"], "STOPPED", "the second time it is so already")
            self.ended(host, "stopped", "STOPPED")
            self.start(host)

            host.guest("web", "sh", "-c", "setsid poweroff -f >/dev/null 2>&1 &")
            self.ended(host, "powered off", "POWERED_OFF")
            self.start(host)

            os.kill(int(host.session("web")["pid"]), signal.SIGKILL)
            self.ended(host, "crashed", "CRASHED")
            self.start(host)

            os.kill(host.pids()["web"], signal.SIGKILL)
            self.ended(host, "killed", "KILLED")
            started = host.state / "sessions/web/start.json"
            record = json.loads(started.read_text())
            started.write_text(json.dumps(dict(record, boot_id="another")))
            self.ended(host, "ended with its host", "HOST_RESTARTED")
            self.start(host)
            self.assertEqual(host.session("web")["id"], machine)

            host.still("stop", "web", "--force")
            (host.directory / "web.raw").rename(host.directory / "away.raw")
            with self.assertRaises(CommandFailed):
                host.still("start", "web")
            (host.directory / "away.raw").rename(host.directory / "web.raw")
            self.start(host)


class StartRestored(unittest.TestCase):
    def test_restored_machines_keep_their_disks_and_their_identity(self):
        with Host(encrypted=True) as host:
            host.boot("web")
            wait_for(lambda: host.records("web")["acknowledged"] > 5, "the record writer", 60)
            host.still("snapshot", "web", "--name", "base")
            host.still("stop", "web")

            host.still("restore", "base", "--as", "fork", "--count", "2")
            host.guest("fork-1", "sh", "-c", "echo mine > /data/mine && sync")
            ended = host.json("stop", "fork-*", "--grace", "60s")
            self.assertEqual([e["name"] for e in ended], ["fork-1", "fork-2"])
            host.still("start", "fork-1")
            self.assertEqual(host.guest("fork-1", "cat", "/data/mine"), "mine\n")
            host.still("stop", "fork-1", "fork-2")
            self.assertEqual(len(host.json("rm", "fork-*")), 2)
            self.assertEqual(host.run("rm", "fork-*").returncode, 3, "none fits any more")

            # A lazy one that is stopped before it is complete lacks what only the snapshot has.
            host.still("restore", "base", "--as", "lazy", "--lazy", "--no-hydrate", "--cold")
            host.guest("lazy", "sh", "-c", "echo new > /data/new && sync")
            host.still("stop", "lazy", "--grace", "60s")
            self.assertEqual(host.run("forget", "base").returncode, 5, "the session still needs it")
            host.still("start", "lazy")
            self.assertEqual(host.guest("lazy", "cat", "/data/new"), "new\n")
            host.still("hydrate", "lazy")
            host.still("stop", "lazy", "--grace", "60s")
            host.still("forget", "base")
            host.still("start", "lazy", STILL_PASSPHRASE="")
            self.assertEqual(host.guest("lazy", "cat", "/data/new"), "new\n")


if __name__ == "__main__":
    unittest.main()
