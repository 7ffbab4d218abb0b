"""Sessions on a host with a real systemd: they outlive the shell, the service and the package that they were started under, power
off with the host, and start with it. Root only. Differs from a user's host as systemd_test does."""

import json
import os
import pathlib
import shutil
import tempfile
import time
import unittest

import machine
import systemd_test

BUILD = pathlib.Path(os.environ["STILL_BUILD"])
PATIENCE = 900
# Stops before remote file systems do, and after whoever needs them.
WITNESS = """[Unit]
Wants=remote-fs.target
Before=remote-fs.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c "still --json ps >/var/lib/at-the-end.json"
"""


@unittest.skipIf(machine.missing(), machine.missing())
class Sessions(unittest.TestCase):
    def setUp(self):
        (BUILD / "scratch").mkdir(exist_ok=True)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="sessions-", dir=BUILD / "scratch"))
        self.addCleanup(shutil.rmtree, self.directory)
        package = systemd_test.make_packages(self.directory)["stillpoint"]
        systemd_test.with_higher_version(package, self.directory)
        shutil.copy(package, self.directory / "now.deb")
        made = machine.Machine(machine.host_suite(), BUILD / "systemd", BUILD / "scratch",
                               bind={self.directory: "/packages", BUILD / "guest": "/guest"},
                               packages=machine.dependencies(package))
        self.machine = made.__enter__()
        self.addCleanup(made.__exit__, None, None, None)
        self.machine.run("dpkg -i /packages/now.deb")

    def session(self, name):
        sessions = json.loads(self.machine.run("still --json ps"))
        return next((entry for entry in sessions if entry["name"] == name), None)

    def until(self, what, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(1)

    def test_with_the_host(self):
        run = ("still run {0} --kernel /guest/vmlinux --initrd /guest/initrd --append \"$(cat /guest/cmdline)\" "
               f"--memory 192M --agent-timeout {PATIENCE}s")
        # From a service that is then stopped: the shell of somebody who logs out, a cron job, stilld.
        self.machine.run("systemd-run -q --unit=somebody --service-type=oneshot -p RemainAfterExit=yes -E HOME=/root "
                         "sh -c '" + run.format("web").replace("'", "") + " --autostart'", timeout=PATIENCE + 60)
        self.machine.run("systemctl stop somebody")
        pid = self.session("web")["pid"]
        self.assertEqual(self.session("web")["status"], "running")
        self.assertEqual(self.machine.run("systemctl is-enabled still-session@web").strip(), "enabled")
        self.machine.run(run.format("db"), timeout=PATIENCE + 60)

        self.machine.run("dpkg -i /packages/next.deb")
        self.assertEqual(self.session("web")["pid"], pid, "an upgrade is nothing to a session")

        self.machine.run(f"cat >/etc/systemd/system/witness.service <<'END'\n{WITNESS}END\n"
                         "systemctl daemon-reload && systemctl start witness")
        self.machine.reboot()
        ended = {one["name"]: one["status"] for one in json.loads(self.machine.run("cat /var/lib/at-the-end.json"))}
        self.assertNotIn("running", [ended["web"], ended["db"]], "guests power off while what they need is there")
        self.until("web starts with the host", lambda: (s := self.session("web")) and s["status"] == "running")
        self.until("its unit", lambda: self.machine.run("systemctl is-active still-session@web", check=False).strip() == "active")
        db = self.session("db")
        self.assertEqual((db["end"]["kind"], db["end"].get("by_force", False)), ("STOPPED", False), "its guest powered off")
        console = self.machine.run("still logs db")
        self.assertIn("Power down", console)

        self.machine.run("systemctl stop still-session@web")
        web = self.session("web")
        self.assertEqual((web["end"]["kind"], web["end"].get("by_force", False)), ("STOPPED", False), "its guest powered off")
        self.machine.run("systemctl start still-session@web", timeout=PATIENCE)
        self.assertEqual(self.session("web")["status"], "running")
        self.machine.run("still start web")
        self.machine.run("still stop web db")
        self.machine.run("still rm web db")
        self.assertNotEqual(self.machine.exit_code("systemctl -q is-enabled still-session@web"), 0)


if __name__ == "__main__":
    unittest.main()
