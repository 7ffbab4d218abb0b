"""A private Stillpoint host for tests: its own state directory and repository, and nothing left when it is closed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

PROJECT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("STILL_BUILD", PROJECT / "build/release"))
GUEST = BUILD / "guest"
SCRATCH = BUILD / "scratch"  # On disk: disks and repositories are too large for a tmpfs.


class CommandFailed(Exception):
    def __init__(self, command, result):
        self.code = result.returncode
        self.stderr = result.stderr
        super().__init__(f"still {' '.join(command)}: exit code {result.returncode}: {result.stderr.strip()}")


class Host:
    """with Host() as host: host.still("list")"""

    def __init__(self, encrypted=False, timeout=900):
        SCRATCH.mkdir(exist_ok=True)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="host-", dir=SCRATCH))
        self.state = self.directory / "state"
        self.timeout = timeout
        self.prefix = []  # A program that each command is run by.
        self.environment = dict(os.environ, STILL_STATE=str(self.state), STILL_REPO=str(self.directory / "repo"))
        # Memory images of these tests only, and few of them.
        self.hot = pathlib.Path(tempfile.mkdtemp(prefix="still-hot-", dir="/dev/shm"))
        self.environment.update(STILL_HOT_DIRECTORY=str(self.hot), STILL_HOT_LIMIT="1024")
        for name in ("STILL_PASSPHRASE", "STILL_KEY_FILE"):
            self.environment.pop(name, None)
        if encrypted:
            self.environment["STILL_PASSPHRASE"] = "correct horse"
        try:
            self.still("init", *([] if encrypted else ["--no-encryption"]))
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for entry in self.pids().values():
            try:
                os.kill(entry, signal.SIGKILL)  # still-session; its hypervisor ends with it.
            except ProcessLookupError:
                pass
        wait_for(lambda: not self.pids(), "sessions to end", 120)
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.rmtree(self.hot, ignore_errors=True)

    def pids(self):
        """The pid of each still-session that works in this host's state directory, by session."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            prefix = str(self.state / "sessions").encode() + b"/"
            if len(words) > 2 and words[0].endswith(b"still-session") and words[2].startswith(prefix):
                found[words[2][len(prefix) :].decode()] = int(entry.name)
        return found

    def environments(self):
        """What /proc shows of each process that works for this host: its program, and the bytes of its environment."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                environment = (entry / "environ").read_bytes()
                program = (entry / "comm").read_text().strip()
            except OSError:  # Somebody else's, or it has ended meanwhile.
                continue
            if str(self.state).encode() in environment and program != "python3":
                found.append((program, environment))
        return found

    def start(self, *arguments, **environment):
        """The command, running."""
        if "snapshot" in arguments[:2] and "--max-pause" not in arguments:
            # On a busy test machine a pause of more than the usual 2 s is no fault.
            arguments = (*arguments, "--max-pause", "30s")
        return subprocess.Popen(
            [*self.prefix, str(BUILD / "bin/still"), *map(str, arguments)],
            env=dict(self.environment, **environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments, **environment):
        """The finished command, whatever its exit code."""
        process = self.start(*arguments, **environment)
        try:
            stdout, stderr = process.communicate(timeout=self.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def still(self, *arguments, **environment):
        """What a command that must succeed prints."""
        result = self.run(*arguments, **environment)
        if result.returncode != 0:
            raise CommandFailed([str(a) for a in arguments], result)
        return result.stdout

    def json(self, *arguments, **environment):
        return json.loads(self.still("--json", *arguments, **environment))

    def disk(self, name="disk", mib=256, kind="ext4"):
        path = self.directory / f"{name}.raw"
        subprocess.run([PROJECT / "tools/guest-image/disk", "--type", kind, path, str(mib)], check=True)
        return path

    def boot(
        self, name, *arguments, disks=None, memory="256M", workload="record-writer,counter", files=GUEST, append="", **environment
    ):
        """Runs the test guest as a session and waits for its agent. `files`: where its kernel and initial RAM disk are; `append`:
        more arguments for the kernel."""
        cmdline = f"{(GUEST / 'cmdline').read_text().strip()} {append}"
        if workload:
            cmdline += f" still.workload={workload}"
        words = ["run", name, "--kernel", files / "vmlinux", "--initrd", files / "initrd", "--append", cmdline]
        for disk in [self.disk(name)] if disks is None else disks:
            words += ["--disk", disk]
        if "--agent-timeout" not in arguments:  # Only a hang is a fault.
            words += ["--agent-timeout", "600s"]
        self.still(*words, "--memory", memory, *arguments, **environment)

    def guest(self, session, *command):
        """Standard output of a program in the guest."""
        return self.still("exec", session, "--", *command)

    def records(self, session, *arguments):
        return json.loads(self.guest(session, "record-writer", "--report", *arguments))

    def counter(self, session, *arguments):
        return json.loads(self.guest(session, "counter", "--report", *arguments))

    def session(self, name):
        return next((entry for entry in self.json("ps") if entry["name"] == name), None)

    def console(self, session):
        return self.still("logs", session)

    def check_disk(self, image):
        """What check_disk.py finds in a raw image."""
        result = subprocess.run(
            [
                PROJECT / "tests/support/check_disk.py",
                "--writer",
                BUILD / "guest-programs/record-writer",
                image,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode > 1:
            raise RuntimeError(f"check_disk: {result.stderr}")
        return json.loads(result.stdout)

    def export(self, snapshot, *arguments):
        path = self.directory / f"export-{time.monotonic_ns()}.raw"
        self.still("export", snapshot, path, *arguments)
        return path


def has_private_mounts():
    """Whether root can keep mounts to itself: not in a chroot whose / is no mount point, where `still` refuses (exit code 5)."""
    return subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def wait_for(condition, what, seconds):
    """Polls until the condition holds; gives what it returned. A command that fails meanwhile is tried again."""
    deadline = time.monotonic() + seconds
    failure = None
    while True:
        try:
            value = condition()
            if value:
                return value
        except CommandFailed as error:
            failure = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}") from failure
        time.sleep(0.05)
