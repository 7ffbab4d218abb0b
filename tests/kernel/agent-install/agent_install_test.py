"""`still agent install`: every kind of image it knows, those it refuses, and that nothing of it is left on the host."""

import os
import pathlib
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest

BUILD = pathlib.Path(os.environ["STILL_BUILD"])
AGENT = (BUILD / "bin/guest/still-agent").read_bytes()
SECTOR = 512
MIB = 1 << 20
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
NOBODY = 65534


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True,
                          env=dict(os.environ, PATH=PATH), **options).stdout


def host_state():
    """What must be as before: mounts, loop devices with a file, temporary directories."""
    loops = sorted(p.read_text() for p in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"))
    mounts = [line for line in pathlib.Path("/proc/self/mounts").read_text().splitlines() if "still-" in line]
    temporary = sorted(p.name for p in pathlib.Path("/tmp").glob("still-*")
                       if p.name.startswith(("still-root-", "still-image-", "still-debugfs-")))
    return loops, mounts, temporary


class AgentInstall(unittest.TestCase):
    def setUp(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")
        if subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0:
            self.skipTest("needs a mount namespace of its own, which a chroot may not have")
        (BUILD / "scratch").mkdir(exist_ok=True)
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="agent-", dir=BUILD / "scratch"))
        self.addCleanup(shutil.rmtree, self.directory)
        before = host_state()
        self.addCleanup(lambda: self.assertEqual(host_state(), before, "left on the host"))

    def tree(self, kind="systemd"):
        """The files of a guest that would boot."""
        root = self.directory / f"tree-{kind}"
        for name in ("etc", "usr/sbin"):
            (root / name).mkdir(parents=True)
        if kind == "systemd":
            (root / "usr/lib/systemd").mkdir(parents=True)
            (root / "usr/lib/systemd/systemd").write_text("")
            (root / "lib").symlink_to("usr/lib")
            (root / "sbin").symlink_to("usr/sbin")
        elif kind == "sysvinit":
            for name in ("etc/init.d", "etc/rc2.d", "sbin"):
                (root / name).mkdir(parents=True)
            (root / "sbin/init").write_text("")
        elif kind == "busybox":
            (root / "etc/inittab").write_text("::sysinit:/etc/boot")
        return root

    def image(self, type="ext4", kind="systemd", offset=0, mib=64):
        path = self.directory / f"{type}-{kind}-{offset}.raw"
        size = mib if type != "xfs" else 320  # The smallest that mkfs.xfs makes.
        if type == "btrfs":
            size = 128
        content = self.directory / "content"
        with open(content, "wb") as file:
            file.truncate(size * MIB)
        tree = self.tree(kind)
        if type == "ext4":
            run("mke2fs", "-q", "-t", "ext4", "-d", tree, content)
        elif type == "btrfs":
            run("mkfs.btrfs", "-q", "--rootdir", tree, content)
        else:
            run("mkfs.xfs", "-q", content)
            self.mounted(content, f"cp -a {tree}/. .")
        with open(path, "wb") as file:
            file.truncate(offset + size * MIB)
            if offset:
                entry = struct.pack("<B3xB3xII", 0x80, 0x83, offset // SECTOR, size * MIB // SECTOR)
                swap = struct.pack("<B3xB3xII", 0, 0x82, 2048, 2048)
                file.seek(446)
                file.write(swap + entry + bytes(32) + b"\x55\xaa")
        run("dd", f"if={content}", f"of={path}", "bs=1M", f"seek={offset // MIB}", "conv=sparse,notrunc")
        content.unlink()
        return path

    def mounted(self, path, script, offset=0):
        """What a shell prints in the image's root, mounted in a namespace of its own."""
        point = self.directory / "point"
        point.mkdir(exist_ok=True)
        return run("unshare", "--mount", "sh", "-ec", f"mount -o loop,offset={offset} {path} {point}; cd {point}; {script}; "
                   f"cd /; umount {point}")

    def install(self, *arguments, user=None, program=BUILD / "bin/still"):
        command = [program, "agent", "install", *arguments]
        options = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        return subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120, check=False, **options)

    def assert_installed(self, path, offset=0):
        self.mounted(path, f"cmp usr/sbin/still-agent {BUILD}/bin/guest/still-agent; test -x usr/sbin/still-agent; "
                     "test -d etc/still/hooks.d; test $(stat -c %u usr/sbin/still-agent) = 0", offset)

    def assert_refused(self, code, fragment, *arguments, **options):
        result = self.install(*arguments, **options)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertIn(fragment, result.stderr)

    def test_every_file_system_whole_and_partitioned(self):
        for type in ("ext4", "xfs", "btrfs"):
            for offset in (0, 2 * MIB):
                with self.subTest(type, offset=offset):
                    shutil.rmtree(self.directory / "tree-systemd", ignore_errors=True)
                    path = self.image(type, offset=offset)
                    for _ in range(2):  # Again, as for an upgrade.
                        result = self.install(path)
                        self.assertEqual(result.returncode, 0, result.stderr)
                        self.assertIn("systemd starts it", result.stdout)
                    self.assert_installed(path, offset)
                    link = self.mounted(path, "readlink etc/systemd/system/sysinit.target.wants/still-agent.service", offset)
                    self.assertEqual(link, "../still-agent.service\n")
                    path.unlink()

    def test_qcow2(self):
        raw = self.image(offset=2 * MIB)
        path = self.directory / "disk, with a comma.qcow2"
        run("qemu-img", "convert", "-O", "qcow2", raw, path)
        result = self.install(path)
        self.assertEqual(result.returncode, 0, result.stderr)
        run("qemu-img", "check", path)
        back = self.directory / "back.raw"
        run("qemu-img", "convert", "-O", "raw", path, back)
        self.assert_installed(back, 2 * MIB)

    def test_guests_without_systemd(self):
        path = self.image(kind="sysvinit")
        self.assertIn("sysvinit", self.install(path, "--port", "5005").stdout)
        self.assert_installed(path)
        self.assertIn("/usr/sbin/still-agent --connect vsock:5005 <", self.mounted(path, "cat etc/rc2.d/S01still-agent"))
        path = self.image(kind="busybox")
        for _ in range(2):
            self.assertIn("busybox", self.install(path).stdout)
        self.assertEqual(self.mounted(path, "cat etc/inittab"), "::sysinit:/etc/boot\n::respawn:/usr/sbin/still-agent\n")

    def test_without_root_by_debugfs(self):
        # Where another user can come to, which need not be so for the build.
        place = pathlib.Path(tempfile.mkdtemp(prefix="install-"))
        self.addCleanup(shutil.rmtree, place)
        place.chmod(0o755)
        for name in ("still", "guest/still-agent", "guest/still-agent.service", "guest/still-agent.init"):
            (place / "bin" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(BUILD / "bin" / name, place / "bin" / name)
        path = place / "disk.raw"
        shutil.move(self.image(offset=2 * MIB), path)
        os.chown(path, NOBODY, NOBODY)
        for _ in range(2):
            result = self.install(path, user=NOBODY, program=place / "bin/still")
            self.assertEqual(result.returncode, 0, result.stderr)
        run("e2fsck", "-fn", f"{path}?offset={2 * MIB}")
        self.assert_installed(path, 2 * MIB)

    def test_a_link_of_the_guest_leads_nowhere_else(self):
        path = self.image()
        victim = self.directory / "victim"
        victim.mkdir()
        self.mounted(path, f"rm -r etc/systemd 2>/dev/null || true; ln -s {victim} etc/systemd; "
                     f"ln -s ../../../../../../../../{victim} etc/still")
        self.install(path)
        self.assertEqual(list(victim.iterdir()), [])

    def test_an_image_in_use_is_refused(self):
        raw = self.image()
        qcow2 = self.directory / "disk.qcow2"
        run("qemu-img", "convert", "-O", "qcow2", raw, qcow2)
        for path, format in ((raw, "raw"), (qcow2, "qcow2")):
            with self.subTest(format):
                socket = self.directory / "nbd"
                server = subprocess.Popen(["qemu-nbd", "--format", format, "--socket", str(socket), str(path)])
                self.addCleanup(server.wait)
                self.addCleanup(server.kill)
                deadline = time.monotonic() + 30
                while not socket.exists():
                    self.assertLess(time.monotonic(), deadline)
                    time.sleep(0.02)
                before = path.read_bytes()
                self.assert_refused(5, "running machine", path)
                self.assertEqual(path.read_bytes(), before)
                server.send_signal(signal.SIGTERM)
                server.wait()
                socket.unlink(missing_ok=True)

    def test_a_guest_that_was_not_shut_down_is_refused(self):
        for type in ("ext4", "xfs"):
            with self.subTest(type):
                shutil.rmtree(self.directory / "tree-systemd", ignore_errors=True)
                path = self.image(type)
                copy = self.directory / "copy.raw"
                # A copy of a mounted file system, as after a power cut.
                self.mounted(path, f"touch here; sync; touch there; cp --sparse=always {path} {copy}")
                self.assert_refused(5, "not shut down", copy)

    def test_what_is_no_guest_is_refused(self):
        path = self.directory / "empty.raw"
        run("mke2fs", "-q", "-t", "ext4", path, "16M")
        self.assert_refused(3, "no ext4, xfs or btrfs with an operating system", path)
        self.assert_refused(3, "nosuch", self.directory / "nosuch.raw")
        self.assert_refused(2, "qcow2", path, "--format", "qcow2")


if __name__ == "__main__":
    unittest.main(verbosity=2)
