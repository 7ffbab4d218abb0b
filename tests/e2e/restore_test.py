"""Restores: every fork a machine of its own, memory that is read once, generations, rollback, and what cannot work."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import unittest

from still_host import BUILD, GUEST, Host, has_private_mounts, wait_for

# One line: random bytes, a UUID, the machine id, the network card's address, the host name, the clock.
WHO = (
    "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; cat /proc/sys/kernel/random/uuid /etc/machine-id"
    " /sys/class/net/eth0/address; hostname; adjtimex | sed -n 's/.*time.tv_sec: *//p;s/.*time.tv_usec: *//p'"
)


class RestoreTest(unittest.TestCase):
    """One host with a small session `web` and its snapshot `point`."""

    arguments = ()

    @classmethod
    def setUpClass(cls):
        cls.host = Host()
        cls.addClassCleanup(cls.host.close)
        cls.disk = cls.host.disk("web", mib=64)
        cls.host.boot("web", *cls.arguments, disks=[cls.disk, *cls.more_disks()], memory="160M")
        wait_for(lambda: cls.host.records("web")["acknowledged"] > 5, "the record writer", 60)
        cls.prepare()
        cls.point = cls.host.json("snapshot", "web", "--name", "point", "--quiesce", "require")

    @classmethod
    def more_disks(cls):
        return []

    @classmethod
    def prepare(cls):
        pass

    def assert_refused(self, code, fragment, *arguments, **environment):
        result = self.host.run(*arguments, **environment)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertIn(fragment, result.stderr)

    def stop(self, *names):
        for name in names:
            self.host.still("stop", name, "--force")
            self.host.still("rm", name)

    def assert_works(self, name):
        """Thawed, its memory whole, and its writer goes on."""
        session = self.host.session(name)
        self.assertEqual(session["status"], "running")
        self.assertEqual(session["agent"]["quiesce_state"], "THAWED")
        self.assertEqual(self.host.counter(name, "--check")["errors"], 0)
        before = self.host.records(name)["acknowledged"]
        after = wait_for(lambda: (r := self.host.records(name))["acknowledged"] > before and r, "the writer", 60)
        self.assertEqual(after["failed"], 0)


class Identity(RestoreTest):
    arguments = ("--net",)

    @classmethod
    def prepare(cls):
        cls.host.guest("web", "modprobe", "virtio_net")
        cls.host.guest("web", "sh", "-c", "tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id")

    def who(self, name):
        before = time.time()
        words = self.host.guest(name, "sh", "-c", WHO).split()
        after = time.time()
        random, uuid, machine_id, mac, hostname, seconds, micros = words
        # A guest that has booted has its time from a clock that knows whole seconds: up to 1.1 s behind (seen). A restored
        # one was given the host's.
        if name != "web":
            clock = int(seconds) + int(micros) / 1e6
            self.assertLess(before - 1, clock, "the guest's clock is behind the host's")
            self.assertLess(clock, after + 1, "the guest's clock is ahead of the host's")
        return {"random": random, "uuid": uuid, "machine_id": machine_id, "mac": mac, "hostname": hostname}

    def test_eight_forks_at_once_are_eight_machines(self):
        restored = self.host.json("restore", "point", "--as", "fork", "--count", "8")
        names = [f"fork-{i}" for i in range(1, 9)]
        self.assertEqual([s["session"] for s in restored["sessions"]], names)
        self.assertEqual([s["warnings"] for s in restored["sessions"]], [[]] * 8)
        machines = [self.who(name) for name in ["web", *names]]
        for what in ("random", "uuid", "machine_id", "mac"):
            values = [machine[what] for machine in machines]
            self.assertEqual(len(set(values)), 9, f"{what}: {values}")
        self.assertEqual([machine["hostname"] for machine in machines[1:]], names)
        sessions = [self.host.session(name) for name in names]
        self.assertEqual([s["machine"]["nics"][0]["mac"] for s in sessions], [m["mac"] for m in machines[1:]])
        self.assertEqual(len({s["guest_cid"] for s in sessions}), 8)
        # The network is up again: a card without its cable has no carrier.
        self.host.guest("fork-8", "ip", "link", "set", "eth0", "up")
        wait_for(lambda: self.host.guest("fork-8", "cat", "/sys/class/net/eth0/carrier").strip() == "1", "the link", 120)
        self.stop(*names)

    def test_a_machine_that_is_gone_comes_back_as_itself(self):
        source = self.who("web")
        self.host.still("restore", "point", "--as", "again", "--keep-identity")
        again = self.who("again")
        self.stop("again")
        for what in ("machine_id", "mac", "hostname"):
            self.assertEqual(again[what], source[what], what)
        self.assertNotEqual(again["random"], source["random"])
        self.assert_refused(2, "only one session", "restore", "point", "--as", "a", "--keep-identity", "--count", "2")

    def test_booted_disks_get_an_identity_too(self):
        self.host.still("restore", "point", "--as", "cold", "--cold", "--memory", "192M", "--cpus", "2")
        session = self.host.session("cold")
        self.assertEqual(self.host.guest("cold", "hostname").strip(), "cold")
        self.assertEqual(self.host.guest("cold", "nproc").strip(), "2")
        self.host.guest("cold", "modprobe", "virtio_net")
        mac = self.host.guest("cold", "cat", "/sys/class/net/eth0/address").strip()
        self.assertEqual(mac, session["machine"]["nics"][0]["mac"])
        self.assertNotEqual(mac, self.host.session("web")["machine"]["nics"][0]["mac"])
        self.stop("cold")


class HotImages(RestoreTest):
    def hot(self, *arguments):
        return self.host.json("hot", *arguments)["images"]

    def test_three_generations_on_memory_that_is_read_once(self):
        counted = 0
        snapshot = "point"
        for generation in ("one", "two", "three"):
            restored = self.host.json("restore", snapshot, "--as", generation)
            self.assertFalse(restored["hot"])
            self.assert_works(generation)
            count = self.host.counter(generation)["count"]
            self.assertGreaterEqual(count, counted, "the memory of the generation before")
            counted = count
            snapshot = f"of-{generation}"
            self.host.still("snapshot", generation, "--name", snapshot, "--quiesce", "require")
        self.assertTrue(self.host.json("restore", "of-one", "--as", "sibling")["hot"])
        self.assert_works("sibling")
        self.assert_works("two")

        # In use until the last session on it has ended, whatever way.
        self.assertEqual([image["in_use"] for image in self.hot()], [True, True, True])
        os.kill(self.host.pids()["one"], signal.SIGKILL)
        wait_for(lambda: sum(image["in_use"] for image in self.hot()) == 2, "the killed session's image", 120)
        self.assertEqual(len(self.hot("--drop")), 2)
        self.stop("two", "three", "sibling")
        self.assertEqual(self.hot("--drop"), [])

    def test_without_room_for_an_image_the_restore_does_without_it(self):
        self.hot("--drop")
        restored = self.host.json("restore", "point", "--as", "alone", "--count", "2", STILL_HOT_LIMIT="64")
        self.assertFalse(restored["hot"])
        self.assert_works("alone-1")
        self.assert_works("alone-2")
        self.assertEqual(self.hot(), [])
        self.host.still("snapshot", "alone-2", "--name", "of-alone", "--quiesce", "require")
        self.stop("alone-1", "alone-2")


class Rollback(RestoreTest):
    def setUp(self):
        self.host.guest("web", "sh", "-c", "echo later >/data/later && sync")

    def has_file(self, session):
        done = self.host.run("exec", session, "--", "test", "-e", "/data/later")
        self.assertIn(done.returncode, (0, 1), done.stderr)
        self.assertEqual(done.stderr, "")
        return done.returncode == 0

    def test_the_session_is_back_at_the_snapshot_and_the_safety_snapshot_has_the_rest(self):
        self.assertTrue(self.has_file("web"))
        hostname = self.host.guest("web", "hostname")
        done = self.host.json("rollback", "web", "point")
        self.assertFalse(self.has_file("web"))
        self.assertEqual(self.host.guest("web", "hostname"), hostname)
        self.assert_works("web")
        self.assertEqual(self.host.session("web")["restored_from"], self.point["id"])
        self.assertEqual(sorted(p.name for p in self.disk.parent.glob("web.raw*")), ["web.raw"])
        self.assertEqual([p.name for p in (self.host.state / "sessions").iterdir()], ["web"])

        self.host.still("restore", done["safety"]["name"], "--as", "safety")
        self.assertTrue(self.has_file("safety"))
        self.stop("safety")
        # Its disk is where it was, and whole.
        self.host.still("stop", "web")
        self.assertTrue(self.host.check_disk(self.disk)["clean"])
        self.host.still("rm", "web")
        self.host.boot("web", disks=[self.disk], memory="160M")
        self.assertFalse(self.has_file("web"))

    def test_a_rollback_that_fails_leaves_the_session_as_it_was(self):
        program = self.host.directory / "fails-once"
        flag = self.host.directory / "failed"
        program.write_text(
            f"#!/bin/sh\n[ -e {flag} ] && exec {BUILD}/bin/still-session \"$@\"\n: >{flag}\nexit 1\n"
        )
        program.chmod(0o755)
        self.assert_refused(
            1, "goes on from its safety snapshot", "rollback", "web", "point", STILL_SESSION_PROGRAM=str(program)
        )
        self.assertTrue(self.has_file("web"))
        self.assert_works("web")
        # Before the stop nothing is touched at all.
        self.assert_refused(3, "nosuch", "rollback", "web", "nosuch")
        self.assert_refused(4, "point", "rollback", "web", "point", "--safety-name", "point")
        self.assert_works("web")
        self.assertEqual(sorted(p.name for p in self.disk.parent.glob("web.raw*")), ["web.raw"])


    def test_what_a_killed_rollback_left_is_put_back_and_there_is_one_at_a_time(self):
        # Stands in for still-session: waits for us, and ends the rollback while it waits for the session to come up.
        program = self.host.directory / "kills"
        reached = self.host.directory / "reached"
        program.write_text(f"#!/bin/sh\n: >{reached}\nwhile [ -e {reached} ]; do sleep 0.1; done\nkill -9 $PPID\n")
        program.chmod(0o755)
        first = self.host.start("rollback", "web", "point", "--safety-name", "safe", STILL_SESSION_PROGRAM=str(program))
        self.addCleanup(lambda: (reached.unlink(missing_ok=True), first.kill(), first.communicate()))
        wait_for(reached.exists, "the rollback to start the session", 120)
        self.assert_refused(5, "another rollback of session web is under way", "rollback", "web", "point")
        self.assertGreater(len(list(self.disk.parent.glob("web.raw*"))), 1)
        reached.unlink()
        self.assertEqual(first.wait(60), -signal.SIGKILL)
        # Whoever comes next finds the machine as it was, but stopped; its memory is in the safety snapshot.
        self.assert_refused(5, "web is not running", "rollback", "web", "point")
        self.assertEqual(sorted(p.name for p in self.disk.parent.glob("web.raw*")), ["web.raw"])
        self.assertEqual([p.name for p in (self.host.state / "sessions").iterdir()], ["web"])
        self.host.still("rm", "web")
        self.host.boot("web", disks=[self.disk], memory="160M")
        self.assertTrue(self.has_file("web"), "the old disk")
        self.host.still("restore", "safe", "--as", "safe")
        self.assert_works("safe")
        self.stop("safe")


class QemuGuestAgent(RestoreTest):
    """A machine with a port to Debian's own qemu-ga, and that in the guest: from a disk, with its libraries."""

    arguments = ("--qga",)

    @classmethod
    def more_disks(cls):
        tree = cls.host.directory / "qga"
        tree.mkdir()
        libraries = subprocess.run(["ldd", "/usr/sbin/qemu-ga"], check=True, capture_output=True, text=True).stdout
        for path in ["/usr/sbin/qemu-ga", *re.findall(r"(/\S+) \(0x", libraries)]:
            shutil.copy(path, tree)
        disk = cls.host.directory / "qga.raw"
        subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", tree, disk, "32M"], check=True, capture_output=True)
        return [f"{disk},ro"]

    @classmethod
    def prepare(cls):
        cls.host.guest("web", "sh", "-c", "modprobe virtio_console && mkdir /qga && mount -o ro /dev/vdb /qga && "
                       "/qga/ld-linux-x86-64.so.2 --library-path /qga /qga/qemu-ga --daemonize --method=virtio-serial "
                       "--path=/dev/vport0p1 --statedir=/run --pidfile=/run/qga.pid")

    def test_it_thaws_a_restored_guest_whose_agent_does_not_answer(self):
        self.host.still("restore", "point", "--as", "copy")
        self.assert_works("copy")
        # Frozen, until somebody else thaws: the write waits for it, and the agent for the write.
        script = "a=$(pidof still-agent); kill -STOP $a; fsfreeze --freeze /data; touch /data/thawed; kill -CONT $a"
        self.host.guest("copy", "sh", "-c", f"setsid sh -c 'sleep 1; {script}' </dev/null >/dev/null 2>&1 &")
        # The agent tells with every answer when it thawed; the QEMU guest agent knows no such thing.
        wait_for(lambda: (t := self.host.json("thaw", "copy"))["thawed_at_ns"] == 0 and t["thawed"] == 1, "it", 120)
        wait_for(lambda: self.host.guest("copy", "ls", "/data/thawed"), "the agent to go on", 60)
        self.assert_works("copy")
        self.stop("copy")


class NothingToBoot(unittest.TestCase):
    """What the host does with machines whose disk is empty: they start in a moment, and stay in their firmware."""

    ALONE = ("--without-agent", "--memory", "64M")

    def setUp(self):
        self.host = Host()
        self.addCleanup(self.host.close)

    def disk(self, mib):
        path = self.host.directory / "disk.raw"
        path.write_bytes(os.urandom(1 << 20))
        os.truncate(path, mib << 20)
        return path

    def running(self):
        return {session["name"]: session["status"] for session in self.host.json("ps")}

    def test_when_one_fork_fails_those_before_it_are_ended_and_removed(self):
        self.host.still("import", self.disk(1), "--name", "point")
        sessions = self.host.state / "sessions"
        program = self.host.directory / "fails-for-the-second"
        program.write_text(f"""#!/bin/sh
case $2 in
  */fork-2)
    while [ ! -S {sessions}/fork-1/control.sock ]; do sleep 0.1; done
    exit 1
esac
exec {BUILD}/bin/still-session "$@"
""")
        program.chmod(0o755)
        words = ("restore", "point", "--as", "fork", "--count", "3", *self.ALONE)
        failed = self.host.run(*words, STILL_SESSION_PROGRAM=str(program))
        self.assertEqual(failed.returncode, 1, failed.stderr)
        self.assertIn("fork-2", failed.stderr)
        self.assertEqual(self.host.pids(), {}, "the first and the third were there")
        self.assertEqual(list(sessions.iterdir()), [])
        self.host.still(*words)
        self.assertEqual(self.running(), {f"fork-{i}": "running" for i in (1, 2, 3)})

    def test_a_rollback_leaves_a_session_alone_that_is_somebody_elses_after_its_stop(self):
        disk = self.disk(1)
        self.host.still("run", "web", "--disk", disk, "--no-agent", "--memory", "64M")
        self.host.still("snapshot", "web", "--name", "point", "--quiesce", "off")
        content = disk.read_bytes()
        directory = self.host.state / "sessions/web"
        with open(directory / "lock", "rb+") as lock:
            # The kernel gives it to whoever waits for it, in the instant in which the session's process ends.
            waiting = threading.Thread(target=fcntl.lockf, args=(lock, fcntl.LOCK_EX))
            waiting.start()
            begun = (directory / "session.json").read_bytes()
            refused = self.host.run("rollback", "web", "point", "--without-agent", "--safety-name", "safety")
            waiting.join()
            self.assertEqual(refused.returncode, 5, refused.stderr)
            self.assertIn("the session was stopped, and is somebody else's now", refused.stderr)
            self.assertEqual((directory / "session.json").read_bytes(), begun)
            self.assertEqual(self.host.pids(), {}, "it is not started")
        self.assertEqual(disk.read_bytes(), content)
        self.assertEqual([path.name for path in disk.parent.glob("disk.raw*")], ["disk.raw"])
        self.assertEqual([path.name for path in directory.parent.iterdir()], ["web"])
        self.assertEqual([snapshot["name"] for snapshot in self.host.json("list")], ["point", "safety"])
        # Whose it was gives it back, and the rollback is what it would have been.
        self.host.still("start", "web")
        self.host.still("rollback", "web", "point", "--without-agent")
        self.assertEqual(self.running(), {"web": "running"})

    def test_a_disk_that_is_longer_than_any_file_runs_from_qcow2(self):
        self.host.still("import", self.disk(300), "--name", "long")
        # As ext4 refuses what is longer than 16 TiB - 4 KiB.
        self.host.prefix = ["prlimit", f"--fsize={256 << 20}"]
        self.host.still("restore", "long", "--as", "long", *self.ALONE)
        self.assertEqual(self.running(), {"long": "running"})
        self.assertEqual([path.name for path in (self.host.state / "sessions/long").glob("vda.*")], ["vda.qcow2"])
        # Nor may the file be that keeps what the guest overwrites.
        taken = self.host.json("snapshot", "long", "--disk-only")
        self.assertEqual(self.host.json("diff", "long", taken["id"])["images"]["vda"]["ranges"], [])

    def test_no_process_that_stays_shows_the_passphrase(self):
        with Host(encrypted=True) as host:
            host.still("import", self.disk(1), "--name", "point")
            # Its disk server needs the passphrase for as long as the session is not complete.
            host.still("restore", "point", "--as", "lazy", "--lazy", "--no-hydrate", *self.ALONE)
            programs = set()
            for program, environment in host.environments():
                programs.add("qemu" if program.startswith("qemu") else program)
                self.assertNotIn(host.environment["STILL_PASSPHRASE"].encode(), environment, program)
            self.assertLessEqual({"still-session", "nbdkit", "qemu"}, programs)

    def test_the_session_log_does_not_grow_for_ever(self):
        limit = 8 << 20
        self.host.still("run", "web", "--disk", self.disk(1), "--no-agent", "--memory", "64M")
        log, old = (self.host.state / "sessions/web" / name for name in ("session.log", "session.log.1"))
        for life in ("first", "second"):
            self.host.still("stop", "web", "--force")
            # All but full, so that what the next life says goes beyond it.
            with log.open("ab") as file:
                file.write(f"{life}\n".encode().ljust(limit - log.stat().st_size - 1, b"."))
            self.host.still("start", "web")
            # Without an agent there is no freeze, which is a line of the log.
            self.host.still("snapshot", "web", "--disk-only", "--quiesce", "try")
            wait_for(lambda: log.stat().st_size < limit // 2, "the next file", 60)
            self.assertLessEqual(old.stat().st_size, limit + (1 << 20), "what is said before the log is bounded is little")
            self.assertIn(f"{life}\n".encode(), old.read_bytes())
            stderr = os.stat(f"/proc/{self.host.pids()['web']}/fd/2")
            self.assertEqual((stderr.st_dev, stderr.st_ino), (log.stat().st_dev, log.stat().st_ino), "its last words")
        self.assertNotIn(b"first\n", old.read_bytes(), "of the oldest nothing is kept")
        self.assertEqual(sorted(path.name for path in log.parent.glob("session.log*")), ["session.log", "session.log.1"])

    @unittest.skipIf(os.geteuid() != 0 or not has_private_mounts(), "only root can make a file system that is full")
    def test_a_machine_without_space_is_shown_as_held_with_the_reason_and_goes_on(self):
        # Writes one sector of its own disk, over and over: int 13h, cylinder 1, head 0, sector 1.
        writer = bytes.fromhex("31c08ec0bb007cb80103b90101ba8000cd13ebf3")
        disk = self.host.directory / "writer.raw"
        disk.write_bytes(writer.ljust(510, b"\0") + b"\x55\xaa")
        os.truncate(disk, 64 << 20)
        full = self.host.directory / "full"
        full.mkdir()
        # In mounts of its own, which end with the session.
        fill = (f"mount -t tmpfs -o size=1m none {full} && cp --sparse=always {disk} {full}/disk.raw && "
                f"{{ cat /dev/zero >{full}/filler 2>/dev/null || true; }} && exec \"$@\"")
        self.host.prefix = ["unshare", "--mount", "sh", "-c", fill, "sh"]
        self.host.still("run", "web", "--disk", full / "disk.raw", "--no-agent", "--memory", "64M")
        self.host.prefix = []
        wait_for(lambda: self.running()["web"] == "held", "the hold", 120)
        reason = "the guest is held: disk vda cannot be written: No space left on device"
        self.assertEqual(self.host.session("web")["disk_trouble"], reason)
        self.assertIn(f"web: {reason}\n", self.host.still("ps"))
        os.remove(f"/proc/{self.host.pids()['web']}/root{full}/filler")
        wait_for(lambda: "held" not in self.host.still("ps"), "the guest to go on", 120)
        self.assertEqual(self.running(), {"web": "running"})


class CannotWork(RestoreTest):
    def test_a_guest_that_takes_no_new_random_numbers_is_not_let_run(self):
        self.host.guest("web", "sh", "-c", "mv /dev/urandom /dev/urandom.away && : > /dev/urandom")
        try:
            self.host.still("snapshot", "web", "--name", "deaf")
        finally:
            self.host.guest("web", "mv", "/dev/urandom.away", "/dev/urandom")
        self.assert_refused(1, "the random generator was not reseeded", "restore", "deaf", "--as", "twin")
        self.assertIsNone(self.host.session("twin"))
        self.assertEqual(list(self.host.pids()), ["web"])

    def test_another_machine_is_refused_before_anything_starts(self):
        qemu = self.host.directory / "qemu"
        qemu.write_text(
            "#!/bin/sh\ncase $1 in\n--version) echo 'QEMU emulator version 6.2.0' ;;\n"
            "-machine) echo 'pc-q35-6.2 Standard PC' ;;\n"
            "-device) qemu-system-x86_64 -device help | grep -v virtio-rng-pci ;;\n"
            '*) [ "$2" = help ] && exec qemu-system-x86_64 "$@"; exit 1 ;;\nesac\n'
        )
        qemu.chmod(0o755)
        for fragment in ("newer than the 6.2.0", "no machine type pc-q35-", "has no virtio-rng-pci"):
            self.assert_refused(5, fragment, "restore", "point", "--as", "other", STILL_QEMU=str(qemu))
        fragment = "cannot start the machine: QEMU 6.2.0 has no virtio-rng-pci"
        self.assert_refused(5, fragment, "restore", "point", "--as", "other", "--cold", STILL_QEMU=str(qemu))
        self.assertIsNone(self.host.session("other"))
        self.assert_refused(2, "need --cold", "restore", "point", "--as", "other", "--memory", "1G")
        self.assert_refused(4, "web is running", "restore", "point", "--as", "web")
        self.assert_refused(7, "too little memory", "restore", "point", "--as", "huge", "--cold", "--memory", "8T")
        self.assertEqual([s["name"] for s in self.host.json("ps")], ["web"])

    def test_memory_without_an_agent_needs_consent(self):
        cmdline = (GUEST / "cmdline").read_text().strip() + " still.agent=off"
        kernel = ["--kernel", GUEST / "vmlinux", "--initrd", GUEST / "initrd", "--append", cmdline]
        self.host.still("run", "mute", *kernel, "--memory", "128M", "--no-agent")
        self.host.still("snapshot", "mute", "--name", "mute", "--quiesce", "off")
        self.assert_refused(5, "--without-agent", "restore", "mute", "--as", "copy")
        restored = self.host.json("restore", "mute", "--as", "copy", "--without-agent")
        self.assertEqual(self.host.session("copy")["status"], "running")
        self.assertIn("identity", restored["warnings"][0])
        # Booted, it is nobody's copy, and nobody waits for an agent that is not there.
        self.host.still("restore", "mute", "--as", "cold", "--cold")
        self.stop("mute", "copy", "cold")


if __name__ == "__main__":
    unittest.main(verbosity=2)
