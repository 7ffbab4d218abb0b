"""A Debian of its own with a real systemd (systemd-nspawn), for tests of the packages. Root only.

    with Machine(suite="bookworm", cache=build / "systemd", scratch=build / "scratch", bind={guest: "/guest"}) as machine:
        machine.run("dpkg -i /files/*.deb")

The root is made once for each suite (mmdebstrap, from this machine's apt configuration) and kept in `cache`; what a test
writes goes into a layer over it that is thrown away. Processes, mounts and network are the machine's own: nothing is left
when it ends, also when the test is killed.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile
import time

# What the tests use. What the packages depend on comes to it: a change of the list makes a new root.
PACKAGES = ("systemd-sysv", "dbus", "udev", "ca-certificates", "e2fsprogs", "procps")
BOOT_SECONDS = 300
USERFAULTFD = "/dev/userfaultfd"


def missing():
    """Why there can be no machine here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("mmdebstrap", "systemd-nspawn", "nsenter", "unshare"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if subprocess.run(["unshare", "--mount", "true"], stderr=subprocess.DEVNULL, check=False).returncode != 0:
        return "may have no mounts of its own (a chroot whose / is no mount point)"
    return None


def host_suite():
    for line in pathlib.Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise RuntimeError("/etc/os-release names no suite")


def dependencies(package):
    """The Debian packages that this .deb depends on; of alternatives, the first."""
    depends = subprocess.run(["dpkg-deb", "--field", package, "Depends"], check=True, capture_output=True, text=True).stdout
    return tuple(entry.split("|")[0].split("(")[0].strip() for entry in depends.split(","))


def make_root(suite, cache, packages):
    """The root of a suite with these packages, made if there is none."""
    root = cache / suite
    stamp = cache / f"{suite}.packages"
    wanted = " ".join(sorted(set(packages)))
    if stamp.exists() and stamp.read_text() == wanted:
        return root
    cache.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    if root.exists():
        shutil.rmtree(root)
    # In mount and process namespaces of its own: what it mounts is gone with it, whatever happens.
    subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "mmdebstrap",
                    "--variant=minbase", f"--include={','.join(sorted(set(packages)))}", "--skip=check/empty", "--quiet", suite, root],
                   check=True)
    stamp.write_text(wanted)
    return root


class Machine:
    def __init__(self, suite, cache, scratch, bind=None, packages=()):
        self.base = make_root(suite, cache, (*PACKAGES, *packages))
        scratch.mkdir(exist_ok=True)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="machine-", dir=scratch))
        self.root = self.directory / "root"
        self.bind = bind or {}
        self.nspawn = None

    def __enter__(self):
        try:
            for name in ("upper", "work", "root"):
                (self.directory / name).mkdir()
            self.boot()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_):
        if self.nspawn is not None:
            if self.nspawn.poll() is None:
                subprocess.run(self._enter("systemctl poweroff"), check=False, capture_output=True, timeout=60)
            try:
                self.nspawn.wait(60)
            except subprocess.TimeoutExpired:
                self.nspawn.kill()  # unshare's child, and with it everything in there.
                self.nspawn.wait()
        shutil.rmtree(self.directory)

    def boot(self):
        # The layers are mounted in a namespace that ends with the machine, and all its processes are in one of their own: a
        # killed systemd-nspawn leaves its machine running.
        mounts = (f"mount -t overlay overlay -o lowerdir={self.base},upperdir={self.directory}/upper,"
                  f"workdir={self.directory}/work {self.root}")
        binds = " ".join(f"--bind-ro={source}:{target}" for source, target in self.bind.items())
        if pathlib.Path(USERFAULTFD).exists():  # With it QEMU need not be root.
            binds += f" --bind={USERFAULTFD}"
        log = open(self.directory / "console.log", "ab")
        self.nspawn = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--mount-proc", "--propagation", "private",
             "--kill-child", "--fork", "sh", "-c",
             f"{mounts} && exec systemd-nspawn -q -D {self.root} --register=no --keep-unit -b --console=passive {binds}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        log.close()
        self.await_boot()

    def await_boot(self):
        """Until systemd has come up, also after a reboot."""
        deadline = time.monotonic() + BOOT_SECONDS
        state = "nothing"
        while time.monotonic() < deadline:
            if self.nspawn.poll() is not None:
                break
            result = subprocess.run(self._enter("systemctl is-system-running"), check=False, capture_output=True, text=True)
            state = result.stdout.strip()
            if state in ("running", "degraded"):
                return
            time.sleep(0.2)
        console = (self.directory / "console.log").read_text(errors="replace")
        raise RuntimeError(f"systemd did not come up: {state}\n{console[-3000:]}")

    def reboot(self):
        """systemd-nspawn leaves the second half to whoever started it: with --keep-unit it ends."""
        self.run("systemctl reboot", check=False)
        self.nspawn.wait(BOOT_SECONDS)
        self.boot()

    def leader(self):
        """The machine's first process, or None."""
        children = _children(self.nspawn.pid)
        nspawn = [pid for pid in children if _name(pid) == "systemd-nspawn"]
        inside = [pid for parent in nspawn for pid in _children(parent)]
        inside = [pid for pid in inside if _name(pid) == "systemd"]
        return inside[0] if inside else None

    def _enter(self, command):
        leader = self.leader()
        if leader is None:
            return ["sh", "-c", "exit 1"]
        # As a service is started: no HOME, no terminal.
        return ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "env", "-i",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
                "DEBIAN_FRONTEND=noninteractive", "bash", "-c", command]

    def run(self, command, check=True, timeout=600):
        """Its standard output. AssertionError when it fails."""
        result = subprocess.run(self._enter(command), check=False, capture_output=True, text=True, timeout=timeout,
                                stdin=subprocess.DEVNULL)
        if check and result.returncode != 0:
            raise AssertionError(f"{command}: exit code {result.returncode}\n{result.stdout[-3000:]}{result.stderr[-3000:]}")
        return result.stdout

    def exit_code(self, command, timeout=600):
        return subprocess.run(self._enter(command), check=False, capture_output=True, timeout=timeout,
                              stdin=subprocess.DEVNULL).returncode

    def copy_in(self, source, target):
        """Into the running machine."""
        with open(source, "rb") as file:
            command = f"mkdir -p $(dirname {target}) && cat >{target}"
            subprocess.run(self._enter(command), check=True, stdin=file, timeout=120)


def _children(pid):
    try:
        return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _name(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""
