"""What a careful Unix program does when its surroundings are not as usual: output that cannot be written, terminals, working
directories, file systems and sources of every kind. The real command on an encrypted repository; no machine is started."""

import ctypes
import fcntl
import os
import pty
import resource
import select
import signal
import struct
import subprocess
import termios
import threading
import time
import unittest

from repository_case import BUSY, DAMAGED, DENIED, EXISTS, FULL, MIB, MISSING, STATE, STILL, USAGE, RepositoryCase

PATIENCE = 120


def without_rename_noreplace():
    """From here on this process is on file systems that do not know the flag: renameat2(2) fails with EINVAL (x86-64)."""
    def statement(code, jt, jf, k):
        return struct.pack("HBBI", code, jt, jf, k)
    load_number, jump_equal, give, allow, error = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050000 | 22
    program = (statement(load_number, 0, 0, 0) + statement(jump_equal, 0, 1, 316) + statement(give, 0, 0, error) +
               statement(give, 0, 0, allow))
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, 2, head, 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


class Output(RepositoryCase):
    encrypted = False

    def setUp(self):
        super().setUp()
        self.store("disk.img", "one")

    def test_what_could_not_be_written_is_no_success(self):
        for words in (["list"], ["--json", "list"], ["show", "one"], ["stats"], ["ps"], ["schedule", "list"],
                      ["verify"], ["forget", "--keep", "last=1", "--dry-run"], ["--help"], ["--version"], ["completion", "bash"],
                      ["import", self.disk("more.img")]):
            with open("/dev/full", "wb") as full:
                done = self.start(*words, stdout=full)
            self.assertEqual(done.returncode, FULL, f"{words}: {done.stderr}")
            self.assertIn("write standard output: No space left on device", done.stderr)

    def test_a_closed_output_is_an_error_and_no_file(self):
        done = self.start("list", stdout=None, preexec_fn=lambda: os.close(1))
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("write standard output", done.stderr)
        self.start("import", self.disk("more.img"), "--name", "two", stdout=None, stdin=None,
                   preexec_fn=lambda: [os.close(fd) for fd in (0, 1)])
        self.assertEqual(self.names(), ["one", "two"])
        self.assertTrue(self.run_still("verify", "--read-data")["ok"])

    def test_a_reader_that_has_seen_enough_is_no_news(self):
        session = self.folder / "state/sessions/web"
        session.mkdir(parents=True)
        (session / "session.json").write_text('{"name": "web"}')
        for log in ("console.log", "session.log"):
            (session / log).write_text("booting\n" * 100_000)
        for words in (["list"], ["logs", "web"], ["logs", "web", "--session-log"], ["--json", "logs", "web"], ["serve", "one"]):
            reading, writing = os.pipe()
            os.close(reading)
            done = self.start(*words, stdout=writing)
            os.close(writing)
            self.assertEqual((done.returncode, done.stderr), (128 + signal.SIGPIPE, ""), words)

    def test_nobody_is_served_who_could_not_be_told_where(self):
        socket = self.folder / "serve.sock"
        with open("/dev/full", "wb") as full:
            done = self.start("serve", "one", "--socket", socket, stdout=full)
        self.assertEqual(done.returncode, FULL, done.stderr)
        self.assertIn("write standard output: No space left on device", done.stderr)
        self.assertFalse(socket.exists())


class Terminal(RepositoryCase):
    def open_terminal(self):
        master, slave = pty.openpty()
        self.addCleanup(os.close, master)
        self.addCleanup(os.close, slave)
        return master, slave

    def on_terminal(self, slave, *words, stdin=None, **environment):
        def own_terminal():
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        without = {key: value for key, value in self.environment.items() if key != "STILL_PASSPHRASE"}
        child = subprocess.Popen([STILL, *words], env=without | environment, stdin=slave if stdin is None else stdin, stdout=slave,
                                 stderr=slave, preexec_fn=own_terminal)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        return child

    END = b"that was all"

    def read_to_end(self, master, shown):
        while self.END not in b"".join(shown):
            shown.append(os.read(master, 65536))

    @staticmethod
    def echoes(slave):
        return bool(termios.tcgetattr(slave)[3] & termios.ECHO)

    def wait_for(self, condition, what):
        end = time.monotonic() + PATIENCE
        while not condition():
            self.assertLess(time.monotonic(), end, what)
            time.sleep(0.02)

    def test_ctrl_c_at_the_question_ends_it_and_gives_the_echo_back(self):
        for key, number in ((b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT), (None, signal.SIGTERM), (None, signal.SIGHUP)):
            master, slave = self.open_terminal()
            child = self.on_terminal(slave, "list")
            self.wait_for(lambda: not self.echoes(slave), "the question")
            if key is None:
                child.send_signal(number)
            else:
                os.write(master, key)
            self.assertEqual(child.wait(PATIENCE), -number)
            self.assertTrue(self.echoes(slave), f"after {number.name}")

    def test_whoever_is_stopped_is_asked_again(self):
        master, slave = self.open_terminal()
        child = self.on_terminal(slave, "list")
        self.wait_for(lambda: not self.echoes(slave), "the question")
        child.send_signal(signal.SIGTSTP)
        shown = b""

        def asked_twice():
            nonlocal shown
            if select.select([master], [], [], 0.1)[0]:
                shown += os.read(master, 4096)
            return shown.count(b"Passphrase") > 1
        # Whether it stops then is for its session to say (who is alone in one may not be able to); it goes on in any case.
        self.wait_for(lambda: asked_twice() or self.echoes(slave), "the echo")
        self.wait_for(lambda: asked_twice() or child.send_signal(signal.SIGCONT), "the question again")
        os.write(master, b"secret\n")
        self.assertEqual(child.wait(PATIENCE), 0)
        self.assertTrue(self.echoes(slave))

    def test_the_question_does_not_read_the_disk_that_comes_in(self):
        master, slave = self.open_terminal()
        with open(self.disk(), "rb") as image:
            source = subprocess.Popen(["cat"], stdin=image, stdout=subprocess.PIPE)
        child = self.on_terminal(slave, "import", "-", "--name", "piped", stdin=source.stdout)
        source.stdout.close()
        self.wait_for(lambda: not self.echoes(slave), "the question")
        os.write(master, b"secret\n")
        self.assertEqual(child.wait(PATIENCE), 0)
        source.wait()
        self.assertEqual(self.names(), ["piped"])

    def test_a_terminal_that_does_not_say_what_it_is_gets_no_control_sequences(self):
        for terminal, drawn in ((None, False), ("dumb", False), ("xterm", True)):
            master, slave = self.open_terminal()
            shown = []
            reader = threading.Thread(target=self.read_to_end, args=(master, shown))
            reader.start()
            environment = {"STILL_PASSPHRASE": "secret"} | ({"TERM": terminal} if terminal else {})
            child = self.on_terminal(slave, "import", self.disk(), **environment)
            self.assertEqual(child.wait(PATIENCE), 0)
            os.write(slave, self.END)
            reader.join(PATIENCE)
            self.assertEqual(b"\x1b[" in b"".join(shown), drawn, f"TERM={terminal}: {shown}")


class Surroundings(RepositoryCase):
    encrypted = False

    def in_deleted_directory(self):
        gone = self.folder / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()

    def test_a_deleted_working_directory_only_matters_for_what_lies_in_it(self):
        image = self.disk()
        self.run_still("import", image, "--name", "one", preexec_fn=self.in_deleted_directory)
        self.assertEqual(self.names(preexec_fn=self.in_deleted_directory), ["one"])
        self.run_still("export", "one", self.folder / "out.img", preexec_fn=self.in_deleted_directory)
        self.run_still("schedule", "add", "hourly", "--session", "*", "--every", "1h", preexec_fn=self.in_deleted_directory)
        for words in (["export", "one", "out.img"], ["import", "--format", "qcow2", "disk.qcow2"], ["run", "web", "--disk", "disk.img"],
                      ["export", "one", "out", "--chain"], ["--repo", "repository", "list"]):
            done = self.start("--json", *words, preexec_fn=self.in_deleted_directory)
            self.assertIn(done.returncode, (MISSING, STATE), f"{words}: {done.stdout}{done.stderr}")
            self.assertIn("still: ", done.stderr)

    def test_without_home_and_terminal_it_works(self):
        bare = {key: value for key, value in self.environment.items() if key not in ("HOME", "PATH")}
        self.assertEqual(self.run_still("list", environment=bare), [])
        self.assertEqual(self.run_still("ps", environment=bare), [])

    @unittest.skipUnless(os.geteuid() == 0, "only root can be somebody else")
    def test_a_user_without_a_home_is_told_what_to_say(self):
        work = self.folder / "work"
        work.mkdir()
        os.chmod(self.folder, 0o755)
        os.chmod(work, 0o777)
        for environment in ({}, {"XDG_STATE_HOME": "relative"}):
            self.refused(STATE, "no home directory", "ps", environment=environment, user=54321, cwd=work)
        self.assertEqual(list(work.iterdir()), [])

    def test_a_new_file_system_is_an_empty_directory(self):
        fresh = self.folder / "fresh"
        (fresh / "lost+found").mkdir(parents=True)
        self.run_still("--repo", fresh, "init", "--no-encryption")
        self.run_still("--repo", fresh, "import", self.disk(), "--name", "one")
        self.assertTrue(self.run_still("--repo", fresh, "verify", "--read-data")["ok"])


# Not in a chroot whose / is no mount point.
OWN_MOUNTS = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])


@unittest.skipIf(subprocess.run([*OWN_MOUNTS, "true"], stderr=subprocess.DEVNULL, check=False).returncode != 0,
                 "it takes a mount namespace of its own")
class ReadOnly(RepositoryCase):
    def read_only(self, *words):
        """In a mount namespace of its own, where the repository is read-only."""
        script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
        done = subprocess.run([*OWN_MOUNTS, "sh", "-c", script, "sh", self.repository, STILL, "--json", *words],
                              env=self.environment, check=False, capture_output=True, text=True, timeout=PATIENCE)
        return done

    def check(self):
        self.store("disk.img", "one")
        # Also without what this host remembers of it.
        self.environment["STILL_CACHE_DIR"] = f"{self.folder}/other-cache"
        out = self.folder / "out.img"
        for words in (["list"], ["show", "one"], ["stats"], ["verify", "--read-data"], ["export", "one", out], ["diff", "one", "one"],
                      ["repair", "--dry-run"], ["prune", "--dry-run"], ["forget", "one", "--dry-run"]):
            done = self.read_only(*words)
            self.assertEqual(done.returncode, 0, f"{words}: {done.stdout}{done.stderr}")
        self.assertEqual(out.read_bytes(), (self.folder / "disk.img").read_bytes())
        for words in (["import", self.disk("more.img")], ["forget", "one"], ["hold", "one"], ["release", "one"], ["prune"],
                      ["repair"]):
            done = self.read_only(*words)
            self.assertEqual(done.returncode, DENIED, f"{words}: {done.stdout}{done.stderr}")
            self.assertIn("can only be read here (Read-only file system)", done.stderr)
        self.assertEqual(self.names(), ["one"])

    def test_an_encrypted_one_is_read_and_says_why_it_is_not_written(self):
        self.check()

    def test_a_drill_restores_from_it_also_at_a_limited_rate(self):
        self.store("disk.img", "one")
        begun = self.folder / "begun"
        machine = self.folder / "no-machine"
        machine.write_text(f"#!/bin/sh\necho begun >>{begun}\nexit 1\n")
        machine.chmod(0o755)
        self.environment["STILL_SESSION_PROGRAM"] = str(machine)
        for limit in ("0", "1G"):
            done = self.read_only("drill", "one", "--bandwidth", limit)
            self.assertEqual(done.returncode, DAMAGED, f"it has no machine to answer: {done.stdout}{done.stderr}")
            self.assertTrue(begun.exists(), f"--bandwidth {limit} has not come to the machine: {done.stdout}{done.stderr}")
            begun.unlink()

    def test_a_plain_one_too(self):
        self.repository = self.folder / "plain"
        self.environment["STILL_REPO"] = str(self.repository)
        del self.environment["STILL_PASSPHRASE"]
        self.run_still("init", "--no-encryption")
        self.check()


class Export(RepositoryCase):
    encrypted = False

    def setUp(self):
        super().setUp()
        self.image = self.disk()
        self.run_still("import", self.image, "--name", "one")

    def content(self):
        with open(self.image, "rb") as file:
            return file.read()

    def test_where_rename_knows_no_flag_it_ends_well_all_the_same(self):
        old = {"preexec_fn": without_rename_noreplace}
        self.run_still("export", "one", self.folder / "out.img", **old)
        self.assertEqual((self.folder / "out.img").read_bytes(), self.content())
        self.run_still("export", "one", self.folder / "out.qcow2", "--format", "qcow2", **old)
        self.run_still("export", "one", self.folder / "chain", "--chain", **old)
        self.assertEqual(len(list((self.folder / "chain").iterdir())), 1)
        self.refused(EXISTS, "exists", "export", "one", self.folder / "out.img", **old)
        self.run_still("import", self.disk("more.img"), "--name", "two", **old)
        self.assertEqual([path.name for path in self.folder.iterdir() if "partial" in path.name], [])

    def test_what_a_killed_export_left_is_recognised_and_removed(self):
        out, chain = self.folder / "out.img", self.folder / "chain"
        (self.folder / "out.img.still-partial").write_bytes(b"x" * 3 * MIB)
        (self.folder / "chain.still-partial").mkdir()
        (self.folder / "chain.still-partial/000.qcow2").write_bytes(b"half")
        self.run_still("export", "one", out)
        self.assertEqual(out.read_bytes(), self.content())
        self.run_still("export", "one", chain, "--chain")
        self.assertEqual([path.name for path in self.folder.iterdir() if "partial" in path.name], [])

    def interrupted(self, number, *words):
        """The exit code of an export that gets the signal in the midst of its work; None: it was over by then."""
        out = self.folder / "out"
        child = subprocess.Popen([STILL, "export", "large", out, *words], env=self.environment, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        while not os.path.exists(f"{out}.still-partial") and child.poll() is None:
            time.sleep(0.001)
        if child.poll() is None:
            child.send_signal(number)
        code = child.wait(PATIENCE)
        if not out.exists():
            return code
        subprocess.run(["rm", "-r", out], check=True)
        return None

    def test_one_that_is_interrupted_leaves_nothing(self):
        with open(self.folder / "large.img", "wb") as file:
            for _ in range(64):
                file.write(os.urandom(MIB))
        self.run_still("import", self.folder / "large.img", "--name", "large")
        before = sorted(path.name for path in self.folder.iterdir())
        for number, words in ((signal.SIGINT, []), (signal.SIGTERM, ["--format", "qcow2"]), (signal.SIGHUP, ["--chain"])):
            for _ in range(20):  # One that was over has proven nothing.
                code = self.interrupted(number, *words)
                if code is not None:
                    break
            self.assertEqual(code, -number, f"{words}: it ends as if it had not caught the signal")
            self.assertEqual(sorted(path.name for path in self.folder.iterdir()), before, f"after {number.name}: {words}")

    def test_what_another_one_is_writing_is_left_to_it(self):
        partial = self.folder / "out.img.still-partial"
        partial.write_bytes(b"under way")
        with open(partial, "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            self.refused(BUSY, "another export is writing it", "export", "one", self.folder / "out.img")
        self.assertEqual(partial.read_bytes(), b"under way")
        # Somebody's file that is called as ours once were is nobody's business.
        (self.folder / "out.img.partial").write_bytes(b"somebody's")
        self.run_still("export", "one", self.folder / "out.img")
        self.assertEqual((self.folder / "out.img.partial").read_bytes(), b"somebody's")

    def test_a_disk_that_is_longer_than_any_file_is_exported_as_qcow2(self):
        self.run_still("import", self.disk("long.img", 900 * MIB), "--name", "long")
        # As ext4 refuses what is longer than 16 TiB - 4 KiB.
        short = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (256 * MIB, 256 * MIB))}
        self.refused(FULL, "export it as qcow2", "export", "long", self.folder / "out.img", **short)
        self.run_still("export", "long", self.folder / "out.qcow2", "--format", "qcow2", **short)
        back = self.run_still("import", self.folder / "out.qcow2", "--format", "qcow2")
        self.assertEqual(back["images"][0]["size"], 900 * MIB)
        self.assertEqual(self.run_still("diff", "long", back["id"])["images"]["vda"]["ranges"], [])

    def test_sixteen_tebibytes_are_a_size_like_any_other(self):
        size = 16 << 40
        made = self.folder / "huge.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", made, str(size)], check=True)
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 7 {size - MIB} 64k", made], check=True, capture_output=True)
        self.assertEqual(self.run_still("import", made, "--format", "qcow2", "--name", "huge")["images"][0]["size"], size)
        self.run_still("export", "huge", self.folder / "back.qcow2", "--format", "qcow2")
        said = subprocess.run(["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P 7 {size - MIB} 64k", self.folder / "back.qcow2"],
                              check=True, capture_output=True, text=True).stdout
        self.assertNotIn("verification failed", said)


class Import(RepositoryCase):
    encrypted = False

    def stored(self, name):
        out = self.folder / f"{name}.out"
        self.run_still("export", name, out)
        return out.read_bytes()

    def test_pipes_are_read_to_their_end(self):
        content = os.urandom(3 * MIB) + bytes(MIB) + os.urandom(512)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as cat:
            feed = threading.Thread(target=lambda: (cat.stdin.write(content), cat.stdin.close()))
            feed.start()
            told = self.run_still("import", "-", "--name", "piped", "--session", "web", stdin=cat.stdout)
            feed.join()
        self.assertEqual((told["session"], told["images"][0]["size"]), ("web", len(content)))
        self.assertEqual(self.stored("piped"), content)
        fifo = self.folder / "fifo"
        os.mkfifo(fifo)
        feed = threading.Thread(target=lambda: fifo.write_bytes(content))
        feed.start()
        self.assertEqual(self.run_still("import", fifo, "--name", "by-fifo")["images"][0]["size"], len(content))
        feed.join()
        self.assertEqual(self.run_still("diff", "piped", "by-fifo")["images"]["vda"]["ranges"], [])

    def test_a_file_as_standard_input_is_read_from_where_it_is(self):
        content = os.urandom(MIB)
        (self.folder / "disk.img").write_bytes(content)
        for offset in (0, 512):
            with open(self.folder / "disk.img", "rb", buffering=0) as image:
                image.seek(offset)
                self.run_still("import", "-", "--name", f"from-{offset}", stdin=image)
            self.assertEqual(self.stored(f"from-{offset}"), content[offset:])

    def test_what_no_machine_could_have_is_refused(self):
        for size, why in ((0, "is empty"), (511, "not a number of sectors"), (MIB + 1, "not a number of sectors")):
            path = self.disk("odd.img", size)
            self.refused(USAGE, why, "import", path)
            with open(path, "rb") as image:
                with subprocess.Popen(["cat"], stdin=image, stdout=subprocess.PIPE) as cat:
                    self.refused(USAGE, why, "import", "-", stdin=cat.stdout)
        self.refused(USAGE, "is a directory", "import", self.folder)
        self.refused(USAGE, "device without an end", "import", "/dev/zero")
        self.refused(USAGE, "device without an end", "import", "-")
        with subprocess.Popen(["printf", "QFI\\373%508s", ""], stdout=subprocess.PIPE) as qcow2:
            self.refused(USAGE, "begins like a qcow2 image", "import", "-", stdin=qcow2.stdout)
        with subprocess.Popen(["cat"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as cat:
            self.refused(USAGE, "store it from a file", "import", "-", "--format", "qcow2", stdin=cat.stdout)
        self.assertEqual(self.run_still("list"), [])

    def test_a_block_device_has_the_size_that_it_says(self):
        backing = self.disk("backing.img", 3 * MIB)
        made = subprocess.run(["losetup", "--find", "--show", "--read-only", backing], check=False, capture_output=True, text=True)
        if made.returncode != 0:
            self.skipTest(f"no loop device: {made.stderr.strip()}")
        device = made.stdout.strip()
        self.addCleanup(subprocess.run, ["losetup", "--detach", device], check=True)
        self.assertEqual(self.run_still("import", device, "--name", "device")["images"][0]["size"], 3 * MIB)
        with open(backing, "rb") as file:
            self.assertEqual(self.stored("device"), file.read())


if __name__ == "__main__":
    unittest.main()
