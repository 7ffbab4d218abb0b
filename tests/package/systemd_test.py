"""The package on a host with a real systemd, as an administrator uses it: from the installation over `still setup`, scheduled
snapshots of two machines, restarts, crashes, an upgrade and a reboot, to its removal. Root only; brings what it needs.

Differs from a user's host in this: it is a container, so that there is no KVM and no vsock in the kernel, and the packages'
dependencies are there before.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import unittest

import machine

BUILD = pathlib.Path(os.environ["STILL_BUILD"])
PATIENCE = 900  # A machine is slow to boot and slow to restore under emulation, on a host that does other things, too.
HARDENED = 30   # Of 100, by systemd-analyze security: 3.0.


def make_packages(directory):
    subprocess.run(["cpack", "--config", BUILD / "CPackConfig.cmake", "-B", directory], check=True, capture_output=True)
    return {re.match(r"[a-z-]+(?=_)", path.name)[0]: path for path in directory.glob("*.deb")}


def with_higher_version(package, directory):
    """The same package, as the next release."""
    tree = directory / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1.next", control.read_text()))
    # Its own default of a file that administrators edit, changed.
    conf = tree / "etc/stillpoint/stilld.conf"
    conf.write_text(conf.read_text() + "# Of the next release.\n")
    subprocess.run(["dpkg-deb", "--build", tree, directory / "next.deb"], check=True, capture_output=True)
    shutil.rmtree(tree)
    return directory / "next.deb"


@unittest.skipIf(machine.missing(), machine.missing())
class Systemd(unittest.TestCase):
    def setUp(self):
        (BUILD / "scratch").mkdir(exist_ok=True)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="systemd-", dir=BUILD / "scratch"))
        self.addCleanup(shutil.rmtree, self.directory)
        package = make_packages(self.directory)["stillpoint"]
        with_higher_version(package, self.directory)
        shutil.copy(package, self.directory / "now.deb")
        made = machine.Machine(machine.host_suite(), BUILD / "systemd", BUILD / "scratch",
                               bind={self.directory: "/packages", BUILD / "guest": "/guest"},
                               packages=machine.dependencies(package))
        self.machine = made.__enter__()
        self.addCleanup(made.__exit__, None, None, None)

    # Of the environment; without stilld commands open the repository themselves.
    secret = ""

    def say(self, text):
        print(f"-- {text}", flush=True)

    def run_(self, command, **options):
        return self.machine.run(command, **options)

    def still(self, command):
        return json.loads(self.run_(f"{self.secret} still --json {command}"))

    def until(self, what, condition, patience=PATIENCE):
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(1)
        history = self.run_("still schedule history; journalctl -q -u stilld -n 40 --no-pager; still ps", check=False)
        self.fail(f"not in time: {what}\n{history}")

    def start_guest(self, name):
        self.run_(f"truncate -s 32M /srv/{name}.raw && mke2fs -q -F -t ext4 -L data /srv/{name}.raw")
        self.run_(f"systemd-run -q --scope still run {name} --kernel /guest/vmlinux --initrd /guest/initrd "
                  f"--append \"$(cat /guest/cmdline)\" --disk /srv/{name}.raw --memory 192M --agent-timeout {PATIENCE}s",
                  timeout=PATIENCE + 60)

    def newest_success(self):
        """The run of each session that succeeded last, by its id."""
        newest = {}
        for run in self.still("schedule history --limit 1000").get("runs", []):
            if run["outcome"] == "succeeded" and run["schedule"] == "nightly":
                newest[run["session"]] = max(newest.get(run["session"], 0), int(run["id"]))
        return newest

    def await_new_snapshots(self, why):
        before = self.newest_success()
        self.until(f"snapshots of both machines {why}",
                   lambda: all(self.newest_success().get(name, 0) > before.get(name, 0) for name in ("web", "db")))
        for session in self.still("ps"):
            self.assertEqual(session["status"], "running", session)

    def main_pid(self):
        return self.run_("systemctl show -p MainPID --value stilld").strip()

    def test_from_the_installation_to_the_purge(self):
        self.install()
        self.set_up()
        self.take_snapshots()
        self.restart_and_crash()
        self.lose_the_catalog()
        self.drill_inside_the_unit()
        self.start_what_timers_start()
        self.upgrade()
        self.reboot()
        self.remove()

    def install(self):
        self.say("install")
        self.run_("dpkg -i /packages/now.deb")
        self.assertEqual(self.run_("stat -c %a /etc/stillpoint/stilld.env /etc/stillpoint/stilld.conf").split(), ["600", "644"])
        self.assertNotEqual(self.machine.exit_code("systemctl -q is-enabled stilld"), 0, "enabled without being asked")

    def set_up(self):
        self.say("still setup")
        command = ("setup --generate-passphrase --notify-command 'echo $STILL_EVENT >>/var/lib/stillpoint/told' "
                   "--every 20s --keep last=3")
        steps = self.still(command)
        self.passphrase = steps["passphrase"]
        self.assertTrue(all(step["changed"] for step in steps["steps"]), steps)
        self.assertIn("encrypted", steps["steps"][0]["detail"])
        self.assertIn("test", self.run_("cat /var/lib/stillpoint/told").split(), "the test alert has arrived")
        again = self.still(command)
        self.assertFalse(any(step["changed"] for step in again["steps"]), again)
        self.assertNotIn("passphrase", again)
        self.assertEqual(self.run_("systemctl is-active stilld.socket stilld.service still-check.timer").split(), ["active"] * 3)
        self.assertNotIn(self.passphrase, self.run_("grep -rs . /etc/stillpoint /etc/systemd/system", check=False))
        self.run_(f"systemd-analyze security --threshold={HARDENED} --no-pager stilld.service")
        # Whatever the environment of the caller is, it is the same book.
        for environment in ("HOME=/tmp", "XDG_STATE_HOME=/tmp/state XDG_CACHE_HOME=/tmp/cache", ""):
            names = [entry["schedule"]["name"] for entry in
                     json.loads(self.run_(f"{environment} still --json schedule list"))["schedules"]]
            self.assertEqual(names, ["nightly"], environment)

    def take_snapshots(self):
        self.say("two machines")
        for name in ("web", "db"):
            self.start_guest(name)
        self.await_new_snapshots("after they were started")
        runs = [run for run in self.still("schedule history")["runs"] if run["outcome"] == "succeeded"]
        self.assertIn("filesystem", {run["consistency"] for run in runs}, "taken from within the unit, with the agent")

    def restart_and_crash(self):
        self.say("restart")
        self.run_("systemctl restart stilld")
        self.await_new_snapshots("after a restart")
        self.say("kill -9")
        before = self.main_pid()
        self.run_(f"kill -9 {before}")
        self.until("stilld comes back", lambda: self.main_pid() not in ("0", before), patience=120)
        self.await_new_snapshots("after a crash")

    def lose_the_catalog(self):
        self.say("without its catalog")
        self.assertNotEqual(self.run_("ls /var/cache/stillpoint"), "")
        self.run_("rm -r /var/cache/stillpoint/*")
        self.await_new_snapshots("after the catalog was deleted")
        self.assertEqual([entry["schedule"]["name"] for entry in self.still("schedule list")["schedules"]], ["nightly"])

    def drill_inside_the_unit(self):
        self.say("a drill")
        self.run_("still schedule add trial --kind drill --session web --on 'Sun 05:00' --check 'test -e /etc/inittab && sleep 10'")
        self.run_("still schedule run-now trial")
        users = set()

        def ended():
            # Without those that only ask QEMU what it can do.
            users.update(self.run_("ps -o uid=,args= -C qemu-system-x86_64 | awk '/guest=/ {print $1}'", check=False).split())
            runs = self.still("schedule history trial")["runs"]
            return runs and runs[0]["outcome"] != "running"

        self.until("the drill ends", ended)
        run = self.still("schedule history trial")["runs"][0]
        self.assertEqual(run["outcome"], "succeeded", run)
        if self.machine.exit_code(f"test -e {machine.USERFAULTFD}") == 0:
            self.assertEqual(len(users), 3, f"the QEMU of each machine is a user of its own, the drilled one's too: {users}")
            self.assertNotIn("0", users)
        self.run_("still schedule rm trial")

    def start_what_timers_start(self):
        self.say("still-check.service")
        self.run_("mkdir -p /run/systemd/system/still-check.service.d")
        self.run_("printf '[Service]\\nType=oneshot\\nExecStart=/bin/touch /run/told\\n' >/run/systemd/system/told.service")
        self.run_("printf '[Unit]\\nOnFailure=told.service\\n' >/run/systemd/system/still-check.service.d/told.conf")
        self.run_("systemctl daemon-reload")
        self.run_("systemctl start still-check.service")
        self.assertNotEqual(self.machine.exit_code("test -e /run/told"), 0, "all is as promised")
        self.run_("still schedule add late --session nosuch --every 1h --max-age 1s")
        self.until("the check fails", lambda: self.machine.exit_code("systemctl start still-check.service") != 0, patience=120)
        self.assertEqual(self.run_("systemctl show -p ExecMainStatus --value still-check.service").strip(), "5")
        self.until("OnFailure= was started", lambda: self.machine.exit_code("test -e /run/told") == 0, patience=120)
        self.run_("still schedule rm late")
        self.say("still-run-due.service")
        self.run_("systemctl stop stilld.socket stilld.service")
        self.secret = f"STILL_PASSPHRASE={self.passphrase}"
        before = self.newest_success()
        # As its timer does it. What is due is taken before it ends, with the credential.
        self.until("snapshots of both machines without stilld",
                   lambda: (self.run_("systemctl start still-run-due.service", timeout=PATIENCE),
                            all(self.newest_success().get(name, 0) > before.get(name, 0) for name in ("web", "db")))[1])
        self.assertEqual(self.run_("systemctl show -p Result --value still-run-due.service").strip(), "success")
        self.run_("systemctl start still-check.service")
        self.assertNotEqual(self.machine.exit_code("systemctl -q is-active stilld.service"), 0, "they did it without it")
        self.secret = ""
        self.run_("systemctl start stilld.socket stilld.service")
        self.await_new_snapshots("after run-due, by stilld again")

    def upgrade(self):
        self.say("upgrade")
        self.run_("echo '# Of the administrator.' >>/etc/stillpoint/stilld.conf")
        before = self.main_pid()
        self.run_("dpkg --force-confold -i /packages/next.deb")
        self.assertIn(".next", self.run_("dpkg-query -W -f '${Version}' stillpoint"))
        self.assertNotIn(self.main_pid(), ("0", before), "the new program runs")
        self.assertIn("# Of the administrator.", self.run_("cat /etc/stillpoint/stilld.conf"))
        self.await_new_snapshots("after the upgrade")

    def reboot(self):
        self.say("reboot")
        self.machine.reboot()
        self.until("stilld is there by itself", lambda: self.machine.exit_code("systemctl -q is-active stilld") == 0)
        self.assertEqual([entry["schedule"]["name"] for entry in self.still("schedule list")["schedules"]], ["nightly"])
        for name in ("web", "db"):
            self.run_(f"still rm {name}")
            self.start_guest(name)
        self.await_new_snapshots("after the reboot")
        listed = json.loads(self.run_(f"STILL_PASSPHRASE={self.passphrase} still --json list"))
        self.assertEqual({snapshot["session"] for snapshot in listed}, {"web", "db"})

    def remove(self):
        self.say("remove, install again, remove and purge")
        self.run_("dpkg -r stillpoint")
        self.run_("dpkg --force-confold -i /packages/now.deb")
        for unit in ("stilld.service", "still-check.timer"):
            self.assertEqual(self.machine.exit_code(f"systemctl -q is-enabled {unit}"), 0, "it was enabled before")
        self.run_("dpkg -r stillpoint")
        self.assertNotEqual(self.machine.exit_code("systemctl -q is-active stilld.service"), 0)
        self.assertNotEqual(self.machine.exit_code("systemctl -q is-active stilld.socket"), 0)
        self.assertIn("stilld.conf", self.run_("ls /etc/stillpoint"))
        self.run_("dpkg -P stillpoint")
        self.assertEqual(self.run_("ls -d /etc/systemd/system/*still* /var/cache/stillpoint /etc/stillpoint/stilld.* || true"), "")
        # What no package manager may take away: the snapshots, and the only thing on this host that opens them.
        self.assertIn("config", self.run_("ls /var/lib/stillpoint/repository"))
        self.assertIn("passphrase.cred", self.run_("ls /etc/stillpoint"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
