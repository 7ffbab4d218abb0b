"""stilld and `still schedule` as programs, without a virtual machine: schedules, history, alerts, metrics, the status page."""

import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
import unittest
import urllib.error
import urllib.request

from still_host import BUILD, PROJECT, Host, has_private_mounts, wait_for

MONITORING = PROJECT / "tools/stilld/monitoring"


class Daemon:
    """stilld for one host; ended, and if need be killed, at the end."""

    def __init__(self, host, *arguments, prefix=(), pass_fds=(), **environment):
        self.log = host.directory / f"stilld-{time.monotonic_ns()}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, BUILD / "bin/stilld", "--config", "", *map(str, arguments)], pass_fds=pass_fds,
                env=dict(host.environment, STILL_LOG="json", **environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.ready = wait_for(self.find_ready, "stilld to be ready", 60)

    def find_ready(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"stilld ended: {self.log.read_text()}")
        return next((line for line in self.lines() if line["message"] == "stilld is ready"), None)

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def get(self, path, **headers):
        request = urllib.request.Request(f"http://{self.ready['http']}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.read().decode()

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=60)


class StilldTest(unittest.TestCase):
    def setUp(self):
        self.host = Host()
        self.addCleanup(self.host.close)

    def daemon(self, *arguments, **options):
        daemon = Daemon(self.host, *arguments, **options)
        self.addCleanup(daemon.end, signal.SIGKILL)
        return daemon

    def schedules(self):
        return self.host.json("schedule", "list").get("schedules", [])

    def runs(self, *arguments):
        return self.host.json("schedule", "history", *arguments).get("runs", [])


class Schedules(StilldTest):
    def try_all_commands(self):
        self.host.still("schedule", "add", "nightly", "--session", "web-*", "--session", "db", "--on", "Mon..Fri 02:00",
                        "--zone", "Europe/Berlin", "--keep", "daily=7 weekly=4", "--disk-only", "--spread", "2h",
                        "--label", "tier=gold", "--idle-io", "true")
        self.assertEqual(self.host.run("schedule", "add", "nightly", "--session", "a", "--every", "1h").returncode, 4)
        wrong = self.host.run("schedule", "add", "other", "--session", "a", "--on", "*-13-1")
        self.assertEqual(wrong.returncode, 2, wrong.stderr)
        self.assertIn("month", wrong.stderr)
        [entry] = self.schedules()
        self.assertEqual(entry["schedule"]["sessions"], ["web-*", "db"])
        self.assertEqual(entry["schedule"]["labels"], {"tier": "gold"})
        self.assertTrue(entry["schedule"]["disk_only"])
        self.assertTrue(entry["schedule"]["idle_io"])
        self.assertGreater(int(entry["next_unix_ns"]), time.time_ns())
        self.host.still("schedule", "edit", "nightly", "--every", "6h", "--zone", "", "--idle-io", "false")
        [entry] = self.schedules()
        self.assertEqual(entry["schedule"]["every"], "6h")
        self.assertTrue(entry["schedule"]["disk_only"])
        self.assertFalse(entry["schedule"]["idle_io"])
        self.assertEqual(entry["schedule"]["calendar"], [])
        self.assertEqual(entry["schedule"]["retention"], "daily=7 weekly=4", "what was not given stays")
        self.host.still("schedule", "pause", "nightly")
        self.assertTrue(self.host.json("schedule", "show", "nightly")["schedule"]["paused"])
        self.host.still("schedule", "resume", "nightly")
        timeline = self.host.json("schedule", "preview", "nightly", "--days", "60")
        kept = [one for one in timeline if one["kept"]]
        self.assertTrue(9 <= len(kept) <= 10, f"7 days and 4 weeks, some of them the same: {len(kept)}")
        self.assertTrue(all(one["reasons"] for one in timeline))
        self.assertEqual(self.runs(), [])
        self.assertEqual(self.host.run("schedule", "show", "nosuch").returncode, 3)
        self.host.still("schedule", "rm", "nightly")
        self.assertEqual(self.schedules(), [])

    def test_all_commands_without_a_daemon(self):
        self.try_all_commands()
        self.assertFalse((self.host.state / "stilld.sock").exists())

    def test_all_commands_with_a_daemon(self):
        daemon = self.daemon()
        self.assertEqual(stat.S_IMODE((self.host.state / "stilld.sock").stat().st_mode), 0o600)
        self.try_all_commands()
        self.assertEqual(daemon.end(), 0)

    def test_runs_by_hand_and_when_due_without_a_daemon(self):
        self.host.still("schedule", "add", "check", "--kind", "verify", "--every", "10s", "--verify-period", "20s")
        [run] = self.host.json("schedule", "run-now", "check", "--wait")["runs"]
        self.assertEqual(run["outcome"], "succeeded")
        self.assertIn("slice 1 of 2", run["message"])
        wait_for(lambda: self.host.still("schedule", "run-due") is not None and len(self.runs("check")) >= 2, "a due run", 60)
        self.assertEqual({run["outcome"] for run in self.runs("check")}, {"succeeded"})
        self.assertIn("slice 2 of 2", self.runs("check")[0]["message"])

    def run_several(self):
        names = ["check-a", "check-b", "other"]
        for name in names:
            self.host.still("schedule", "add", name, "--kind", "verify", "--on", "yearly")
        runs = self.host.json("schedule", "run-now", "other", "check-*", "--wait")["runs"]
        self.assertEqual(sorted((run["schedule"], run["outcome"]) for run in runs), [(name, "succeeded") for name in names])
        done = self.host.run("--json", "schedule", "run-now", "other", "nosuch", "check-a", "--wait")
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("nosuch", done.stderr)
        self.assertEqual({run["schedule"] for run in json.loads(done.stdout)["runs"]}, {"other", "check-a"}, "the others run")
        none = self.host.run("schedule", "run-now", "nightly-*")
        self.assertEqual(none.returncode, 3, none.stderr)
        self.assertIn("no schedule fits", none.stderr)

    def test_several_run_by_hand_without_a_daemon(self):
        self.run_several()

    def test_several_run_by_hand_with_a_daemon(self):
        self.daemon()
        self.run_several()

    def test_sessions_to_run_by_hand_have_an_option_and_the_old_place_for_now(self):
        self.host.still("schedule", "add", "nightly", "--session", "web", "--session", "weekly", "--on", "yearly")
        self.host.still("schedule", "add", "weekly", "--session", "db", "--on", "yearly")
        for words in (["nightly", "--session", "web"], ["nightly", "web"]):
            done = self.host.run("schedule", "run-now", *words, "--wait")
            self.assertEqual(done.returncode, 6, "there is no such session, and the run says so: " + done.stderr)
            self.assertEqual("hint: write run-now nightly --session web" in done.stderr, words == ["nightly", "web"], done.stderr)
        self.assertEqual([(run["schedule"], run["session"]) for run in self.runs()], [("nightly", "web")] * 2)
        both = self.host.run("schedule", "run-now", "nightly", "weekly")
        self.assertEqual(both.returncode, 2, both.stderr)
        self.assertIn("nightly --session weekly", both.stderr)
        self.assertEqual(len(self.runs()), 2, "nothing is run that may not have been meant")

    def test_only_one_is_in_charge_and_a_killed_one_is_replaced(self):
        first = self.daemon()
        second = subprocess.run([BUILD / "bin/stilld", "--config", ""], env=self.host.environment, capture_output=True, text=True,
                                timeout=60, check=False)
        self.assertEqual(second.returncode, 6, second.stderr)
        self.assertIn("in charge", second.stderr)
        first.end(signal.SIGKILL)
        self.host.still("schedule", "add", "a", "--session", "x", "--every", "1h")
        self.daemon()
        self.assertEqual([entry["schedule"]["name"] for entry in self.schedules()], ["a"])


class Service(StilldTest):
    def test_systemd_hands_it_a_socket_and_hears_that_it_lives(self):
        self.host.state.mkdir(exist_ok=True)
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            listening.bind(str(self.host.state / "stilld.sock"))
            listening.listen()
            inode = os.stat(self.host.state / "stilld.sock").st_ino
            notified.bind(str(self.host.directory / "notify"))
            notified.settimeout(60)
            daemon = self.daemon(
                prefix=["bash", "-c", 'exec 3<&"$0"; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', str(listening.fileno())],
                pass_fds=[listening.fileno()], NOTIFY_SOCKET=str(self.host.directory / "notify"), WATCHDOG_USEC="300000")
            messages = []
            while messages.count("WATCHDOG=1") < 3:
                messages += notified.recv(4096).decode().splitlines()
            self.assertEqual(messages[0], "READY=1")
        self.assertEqual(os.stat(self.host.state / "stilld.sock").st_ino, inode, "systemd's, and left to it")
        self.host.still("schedule", "add", "a", "--session", "x", "--every", "1h")
        self.assertEqual(daemon.end(), 0)

    def test_what_was_left_paused_goes_on_when_it_starts(self):
        # A process that has a disk open stands for a machine: it is paused by a signal.
        disk = self.host.directory / "disk.raw"
        disk.write_bytes(bytes(4096))
        with disk.open("rb") as opened:
            machine = subprocess.Popen(["sleep", "600"], stdin=opened)
        self.addCleanup(machine.wait)
        self.addCleanup(machine.kill)
        directory = self.host.state / "sessions/web"
        directory.mkdir(parents=True, mode=0o700)
        (directory / "session.json").write_text(json.dumps(
            {"name": "web", "machine": {"hypervisor": "process", "disks": [{"name": "vda"}]}, "vsock_backend": "OFF",
             "adopt_pid": str(machine.pid), "disks": [{"name": "vda", "path": str(disk), "format": "raw"}]}))
        with (directory / "session.log").open("wb") as log:
            session = subprocess.Popen([BUILD / "bin/still-session", "--directory", directory], stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log)
        self.addCleanup(session.wait)
        self.addCleanup(session.kill)

        def status():
            return (self.host.session("web") or {}).get("status")

        wait_for(lambda: status() == "running", "the session", 60)
        machine.send_signal(signal.SIGSTOP)
        wait_for(lambda: status() == "paused", "the pause", 60)
        daemon = self.daemon()
        self.assertEqual(status(), "running", "it is the first thing that it does")
        self.assertIn("session was found paused and goes on", [line["message"] for line in daemon.lines()])
        machine.send_signal(signal.SIGSTOP)
        wait_for(lambda: status() == "paused", "the pause", 60)
        self.assertTrue(self.host.json("resume", "web")["was_paused"])
        self.assertEqual(status(), "running")

    def begin_slow(self, daemon, gate):
        self.host.still("schedule", "add", "slow", "--kind", "verify", "--every", "1h", "--before",
                        f"while [ ! -e {gate} ]; do sleep 0.02; done")
        self.host.still("schedule", "run-now", "slow")
        self.assertEqual(self.runs("slow")[0]["outcome"], "running")
        daemon.process.send_signal(signal.SIGTERM)

    def test_ending_it_waits_for_what_is_under_way(self):
        gate = self.host.directory / "gate"
        daemon = self.daemon()
        self.begin_slow(daemon, gate)
        wait_for(lambda: any(line["message"] == "ending on a signal" for line in daemon.lines()), "the signal", 60)
        self.assertIsNone(daemon.process.poll())
        gate.touch()
        self.assertEqual(daemon.process.wait(timeout=60), 0)
        self.assertEqual(self.runs("slow")[0]["outcome"], "succeeded")

    def test_what_takes_longer_finishes_without_it(self):
        gate = self.host.directory / "gate"
        daemon = self.daemon("--drain", "1s")
        self.begin_slow(daemon, gate)
        self.assertEqual(daemon.process.wait(timeout=60), 0)
        self.assertEqual(self.runs("slow")[0]["outcome"], "running")
        gate.touch()
        wait_for(lambda: self.runs("slow")[0]["outcome"] == "succeeded", "the run's own end", 60)


class Alerts(StilldTest):
    def receive(self):
        """What is posted to a webhook, as it comes, and its address."""
        received = []

        class Receiver(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        return received, f"http://127.0.0.1:{server.server_port}/hook"

    def test_failure_reaches_the_webhook_the_command_and_the_log(self):
        received, url = self.receive()
        told = self.host.directory / "told"
        daemon = self.daemon("--webhook", url, "--notify-command", f'echo "$STILL_EVENT $STILL_SESSION" >> {told}')
        self.host.still("schedule", "add", "often", "--session", "gone", "--every", "10s", "--retries", "0", "--max-age", "15s")
        wait_for(lambda: {event["event"] for event in received} >= {"failed", "stale"}, "both alerts", 90)
        self.assertEqual(len([event for event in received if event["event"] == "failed"]), 1, "told once")
        self.assertEqual(received[0]["session"], "gone")
        wait_for(lambda: told.exists() and "stale gone" in told.read_text(), "the command", 90)
        self.assertIn("alert", [line["message"] if "event" not in line else "alert" for line in daemon.lines()])
        self.assertIn("there is no such session", self.runs("often")[-1]["message"])

    def test_damage_that_verification_finds_is_told(self):
        disk = self.host.directory / "web.raw"
        disk.write_bytes(os.urandom(256 << 10))
        self.host.still("import", disk)
        received, url = self.receive()
        self.daemon("--webhook", url)
        self.host.still("schedule", "add", "weekly-check", "--kind", "verify", "--on", "weekly", "--verify-period", "7d",
                        "--retries", "0")
        packs = pathlib.Path(self.host.environment["STILL_REPO"], "packs")
        pack = max((path for path in packs.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        pack.chmod(0o600)
        with pack.open("r+b") as file:
            file.seek(pack.stat().st_size // 2)
            file.write(bytes(4096))
        self.assertNotEqual(self.host.run("schedule", "run-now", "weekly-check", "--wait").returncode, 0)
        wait_for(lambda: received, "the message", 60)
        self.assertEqual((received[0]["event"], received[0]["schedule"]), ("failed", "weekly-check"))
        self.assertRegex(received[0]["message"], "problems, the first: .*; see `still verify` and `still repair`")

    def test_recovery_is_told_like_failure(self):
        received, url = self.receive()
        gate = self.host.directory / "gate"
        self.daemon("--webhook", url)
        self.host.still("schedule", "add", "weekly-check", "--kind", "verify", "--on", "yearly", "--retries", "0", "--before",
                        f"test -e {gate}")
        self.assertEqual(self.host.run("schedule", "run-now", "weekly-check", "--wait").returncode, 6)
        wait_for(lambda: received, "the failure", 60)
        gate.touch()
        self.host.still("schedule", "run-now", "weekly-check", "--wait")
        wait_for(lambda: len(received) == 2, "the recovery", 60)
        self.assertEqual([(event["event"], event["about"], event["schedule"]) for event in received],
                         [("failed", "", "weekly-check"), ("recovered", "failed", "weekly-check")])

    def test_the_dead_mans_rule_needs_no_daemon(self):
        told = self.host.directory / "told"
        self.host.still("schedule", "add", "often", "--session", "gone", "--every", "10s", "--max-age", "1s")
        def check():
            return self.host.run("schedule", "check", STILL_NOTIFY_COMMAND=f"echo $STILL_EVENT >> {told}").returncode

        wait_for(lambda: check() == 5 and told.exists(), "the alert, and an exit code that says so", 60)
        self.assertEqual(check(), 5, "as long as it is true")
        self.assertEqual(told.read_text(), "stale\n", "told once")
        self.assertEqual(self.runs(), [], "it begins nothing")

    def test_a_drill_of_several_tries_each_and_ends_with_the_worst(self):
        for name in ("web-1", "web-2", "db"):
            disk = self.host.directory / f"{name}.raw"
            disk.write_bytes(os.urandom(64 << 10))
            self.host.still("import", disk, "--session", name)
        # Nothing boots here: that each is tried is what counts.
        without = {"STILL_QEMU": "/nonexistent/qemu"}
        done = self.host.run("--json", "drill", "web-*", "db", "nosuch", "x-*", **without)
        self.assertEqual(done.returncode, 8, done.stderr)
        self.assertEqual([one["session"] for one in json.loads(done.stdout)], ["web-1", "web-2", "db"])
        for word in ("nosuch", 'fits "x-*"'):
            self.assertIn(word, done.stderr)
        self.assertEqual({one["session"] for one in self.host.json("drill", "--history")}, {"web-1", "web-2", "db"})
        one = self.host.run("--json", "drill", "db", **without)
        self.assertEqual((one.returncode, json.loads(one.stdout)["state"]), (8, "failed"))

    def test_what_run_due_found_is_told_also_when_it_ends_with_an_error(self):
        told = self.host.directory / "told"
        gone = self.host.directory / "repository-that-went"
        self.host.still("schedule", "add", "often", "--session", "gone", "--every", "1h", "--max-age", "1s")
        self.host.still("schedule", "add", "check", "--kind", "verify", "--every", "10s", "--retries", "0", "--before",
                        f"mv {self.host.environment['STILL_REPO']} {gone}")
        self.host.still("schedule", "run-due")  # From then on the machine's age counts.
        due = int(self.host.json("schedule", "show", "check")["next_unix_ns"])
        wait_for(lambda: time.time_ns() > due + 2e9, "the run to be due, and the machine too old", 60)
        # The alert comes with the first turn. It is still on its way when a later turn fails.
        slow = f"while [ ! -e {gone} ]; do sleep 0.05; done; sleep 1; echo $STILL_EVENT >> {told}"
        done = self.host.run("schedule", "run-due", STILL_NOTIFY_COMMAND=slow)
        self.assertEqual(done.returncode, 5, done.stderr)
        self.assertIn("no repository there", done.stderr)
        self.assertIn("stale", told.read_text().split())


class Passphrase(unittest.TestCase):
    """Given in the environment, as a unit's or a shell's, it is used and handed to nobody."""

    def test_neither_the_daemon_nor_what_it_starts_shows_it(self):
        host = Host(encrypted=True)
        self.addCleanup(host.close)
        secret = host.environment["STILL_PASSPHRASE"].encode()
        seen, gate = host.directory / "seen", host.directory / "gate"
        daemon = Daemon(host, "--notify-command", f"env >{seen}.notify")
        self.addCleanup(daemon.end, signal.SIGKILL)
        # Its worker opens the repository, and waits for the hook.
        host.still("schedule", "add", "check", "--kind", "verify", "--on", "yearly", "--retries", "0",
                   "--before",
                   f"env >{seen}.before; while [ -d {host.directory} ] && [ ! -e {gate} ]; do sleep 0.05; done",
                   "--after", f"env >{seen}.after; false")
        host.still("schedule", "run-now", "check")
        wait_for(pathlib.Path(f"{seen}.before").exists, "the hook", 60)
        shown = host.environments()
        self.assertGreaterEqual([program for program, _ in shown].count("stilld"), 2, "the daemon and its worker")
        for program, environment in shown:
            self.assertNotIn(secret, environment, program)
        gate.touch()
        host.still("schedule", "add", "fails", "--kind", "verify", "--on", "yearly", "--retries", "0", "--before", "false")
        host.run("schedule", "run-now", "fails", "--wait")
        for whose in ("before", "after", "notify"):
            text = wait_for(lambda: (p := pathlib.Path(f"{seen}.{whose}")).exists() and p.read_bytes(), whose, 60)
            self.assertIn(b"STILL_STATE=", text, "it inherits the rest")
            self.assertNotIn(secret, text, whose)


class Pages(StilldTest):
    @classmethod
    def chromium(cls):
        return shutil.which("chromium")

    def setUp(self):
        super().setUp()
        for number in range(3):
            disk = self.host.directory / f"machine-{number}.raw"
            disk.write_bytes(os.urandom(256 << 10))
            self.host.still("import", disk)
        self.host.still("schedule", "add", "weekly-check", "--kind", "verify", "--on", "weekly")
        self.host.still("schedule", "run-now", "weekly-check", "--wait")
        self.served = self.daemon("--http", "127.0.0.1:0")

    @unittest.skipUnless(shutil.which("promtool"), "there is no promtool")
    def test_prometheus_understands_metrics_and_rules(self):
        text = self.served.get("/metrics")
        result = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("stillpoint_repository_snapshots 3\n", text)
        self.assertRegex(text, r'stillpoint_last_run_success\{kind="verify",schedule="weekly-check",session=""\} 1\n')
        for arguments in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]):
            subprocess.run(["promtool", *arguments], cwd=MONITORING, check=True, capture_output=True)

    def test_rules_and_dashboard_use_metrics_that_exist(self):
        source = (PROJECT / "tools/stilld/metrics.cc").read_text()
        names = set(re.findall(r'"stillpoint_(\w+)"', source)) | set(re.findall(r'registry, "(\w+)"', source))
        names |= {f"repository_{name}" for name in re.findall(r'put\("(\w+)"', source)}
        used = set()
        for name in ("alerts.yml", "dashboard.json"):
            used |= set(re.findall(r"stillpoint_(\w+?)(?:_bucket)?\b(?=[^\w])", (MONITORING / name).read_text()))
        self.assertTrue(used)
        self.assertEqual(used - names, set())

    def test_only_loopback_and_only_by_its_own_name(self):
        with self.assertRaises(urllib.error.HTTPError) as refused:
            self.served.get("/", Host="rebound.example")
        self.assertEqual(refused.exception.code, 403)
        with self.assertRaises(urllib.error.HTTPError) as refused:
            self.served.get("/etc/passwd")
        self.assertEqual(refused.exception.code, 404)
        self.served.end()
        open_to_all = subprocess.run([BUILD / "bin/stilld", "--config", "", "--http", "0.0.0.0:0"], env=self.host.environment,
                                     capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(open_to_all.returncode, 2, open_to_all.stderr)

    @unittest.skipUnless(shutil.which("chromium"), "there is no chromium")
    def test_the_page_in_a_browser(self):
        profile = self.host.directory / "browser"
        picture = self.host.directory / "page.png"
        command = [self.chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   f"--user-data-dir={profile}", "--window-size=1100,1200", "--virtual-time-budget=2000"]
        url = f"http://{self.served.ready['http']}/"
        dom = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True).stdout
        for fragment in ('id="timeline"', "machine-2", "weekly-check", "All is well", 'id="repository"'):
            self.assertIn(fragment, dom)
        self.assertEqual(len(re.findall(r"<circle class=\"?(?:crash|filesystem|application|unknown)\"? c\w=\"?\d+\.", dom)), 3)
        self.assertNotIn("<script", dom)
        subprocess.run([*command, f"--screenshot={picture}", url], capture_output=True, timeout=120, check=True)
        content = picture.read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        self.assertEqual((content[1:4], width), (b"PNG", 1100))
        self.assertGreater(height, 800)
        self.assertGreater(len(content), 20_000, "an empty page compresses to less")
        keep = os.environ.get("STILL_KEEP_SCREENSHOT")
        if keep:
            shutil.copy(picture, pathlib.Path(keep))


class Hanging(StilldTest):
    """Sessions that accept and never answer hold up nobody."""

    def hang(self, name):
        directory = self.host.state / "sessions" / name
        directory.mkdir(parents=True)
        (directory / "session.json").write_text(json.dumps({"name": name}))
        handle = os.open(directory, os.O_PATH)
        self.addCleanup(os.close, handle)
        hanging = socket.socket(socket.AF_UNIX)
        self.addCleanup(hanging.close)
        hanging.bind(f"/proc/self/fd/{handle}/control.sock")  # However long the path is.
        hanging.listen()

    def test_commands_and_the_daemon_go_on(self):
        count = 8
        for number in range(count):
            self.hang(f"hung-{number}")
        begin = time.monotonic()
        sessions = self.host.json("ps")
        self.assertEqual([session["status"] for session in sessions], ["not answering"] * count)
        self.assertLess(time.monotonic() - begin, count * 5 * 0.75, "they were waited for one after the other")
        self.host.still("schedule", "add", "nightly", "--session", "*", "--on", "02:00")
        daemon = self.daemon("--http", "127.0.0.1:0")
        begin = time.monotonic()
        covered = self.host.json("schedule", "coverage")
        self.assertEqual({machine["session"] for machine in covered["machines"]}, {f"hung-{i}" for i in range(count)})
        self.assertIn("hung-3", daemon.get("/"))
        self.assertIn('stillpoint_session_running{session="hung-3"} 1', daemon.get("/metrics"))
        self.assertLess(time.monotonic() - begin, count * 5 * 0.75)
        self.assertEqual(daemon.end(), 0)


@unittest.skipUnless(os.geteuid() == 0 and has_private_mounts(), "it takes a mount namespace of its own")
class SetUp(unittest.TestCase):
    """`still setup` writes to /etc: here to one that nobody else sees."""

    def setUp(self):
        self.host = Host()
        self.addCleanup(self.host.close)
        self.etc = self.host.directory / "etc"
        self.etc.mkdir()
        self.told = self.host.directory / "told"

    def set_up_encrypted(self, *arguments, **environment):
        script = 'mount --bind "$0" /etc && exec "$@"'
        return subprocess.run(["unshare", "--mount", "sh", "-c", script, self.etc, BUILD / "bin/still", "--json", "setup",
                               "--no-units", *arguments], env=self.host.environment | environment,
                              capture_output=True, text=True, timeout=120, check=False)

    def set_up(self, *arguments):
        return self.set_up_encrypted("--no-encryption", *arguments)

    def step(self, done):
        [step] = [one for one in json.loads(done.stdout)["steps"] if one["what"] == "test alert"]
        return step

    def test_a_test_alert_is_sent_when_the_channels_are_new(self):
        command = ("--notify-command", f"echo $STILL_EVENT: $STILL_MESSAGE >>{self.told}")
        done = self.set_up(*command)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(self.step(done)["changed"])
        self.assertRegex(self.told.read_text(), "^test: this is a test")
        again = self.set_up(*command)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertFalse(self.step(again)["changed"])
        self.assertEqual(len(self.told.read_text().splitlines()), 1, "nothing is sent when nothing is new")
        self.set_up(*command, "--test-alert")
        self.assertEqual(len(self.told.read_text().splitlines()), 2)

    def test_a_channel_that_takes_nothing_is_told_at_once(self):
        done = self.set_up("--notify-command", "exit 1")
        self.assertEqual(done.returncode, 6, done.stdout + done.stderr)
        self.assertIn("test alert was not taken by: command", done.stderr)
        self.assertTrue(json.loads(done.stdout)["steps"], "the rest is done all the same")

    def test_without_a_channel_it_says_where_alerts_go(self):
        done = self.set_up()
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("journal", self.step(done)["detail"])

    def test_no_passphrase_is_made_up_for_a_repository_that_has_one(self):
        theirs = self.host.directory / "theirs"
        self.host.still("--repo", theirs, "init", STILL_PASSPHRASE="theirs")
        done = self.set_up_encrypted("--generate-passphrase", STILL_REPO=str(theirs))
        self.assertEqual(done.returncode, 5, done.stdout + done.stderr)
        self.assertIn(f"repository {theirs} has a passphrase already", done.stderr)
        self.assertIn("--passphrase-file or STILL_PASSPHRASE", done.stderr)
        self.assertNotIn("passphrase", json.loads(done.stdout), "none was made up")
        self.assertEqual(list(self.etc.iterdir()), [], "none is stored")
        given = self.set_up_encrypted("--generate-passphrase", STILL_REPO=str(theirs), STILL_PASSPHRASE="theirs")
        self.assertEqual(given.returncode, 0, given.stdout + given.stderr)

    def test_units_work_on_their_own_state_only(self):
        done = subprocess.run([BUILD / "bin/still", "setup", "--no-encryption"], env=self.host.environment,
                              capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        self.assertIn("the units work on /var/lib/stillpoint, not on", done.stderr)
        self.assertFalse((self.host.state / "repository").exists(), "nothing was begun")

    def test_who_asks_for_encryption_gets_no_repository_without(self):
        self.assertEqual(self.set_up().returncode, 0)
        before = {path.name: path.read_bytes() for path in self.etc.rglob("*") if path.is_file()}
        done = self.set_up_encrypted("--generate-passphrase")
        self.assertEqual(done.returncode, 5, done.stdout + done.stderr)
        self.assertIn("is there already, without encryption, and cannot be encrypted later", done.stderr)
        self.assertNotIn("passphrase", json.loads(done.stdout), "none was made up")
        self.assertEqual({path.name: path.read_bytes() for path in self.etc.rglob("*") if path.is_file()}, before)
        self.assertEqual(self.set_up("--generate-passphrase").returncode, 2, "it contradicts --no-encryption")


@unittest.skipUnless(os.geteuid() == 0 and has_private_mounts(), "it takes a mount namespace of its own")
class Doctor(unittest.TestCase):
    def test_a_device_that_cannot_be_opened_is_not_there(self):
        # access(2) allows it, open(2) does not: here directories, in a container devices that its policy refuses.
        host = Host()
        self.addCleanup(host.close)
        devices = host.directory / "dev"
        devices.mkdir()
        script = ('mount -t tmpfs none "$0" && cd "$0" && mkdir vhost-vsock fuse kvm userfaultfd && touch null urandom && '
                  'mount --bind /dev/null null && mount --bind /dev/urandom urandom && mount --rbind "$0" /dev && exec "$@"')
        done = subprocess.run(["unshare", "--mount", "sh", "-c", script, devices, BUILD / "bin/still", "--json", "doctor"],
                              env=host.environment, capture_output=True, text=True, timeout=120, check=False)
        found = {one["what"]: one for one in json.loads(done.stdout)["findings"]}
        self.assertIn("user-space device", found["vsock"]["text"])
        for what in ("vsock", "FUSE", "accelerator", "memory by /dev/userfaultfd"):
            self.assertEqual(found[what]["verdict"], "note", found[what])


if __name__ == "__main__":
    unittest.main(verbosity=2)
