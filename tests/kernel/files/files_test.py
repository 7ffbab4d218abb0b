"""still mount, ls and cp: files of a snapshot, without booting it. Needs root, /dev/fuse and loop devices."""

import json
import os
import pathlib
import shutil
import signal
import stat
import struct
import subprocess
import time
import unittest
import unittest.mock

import still_host

MIB = 1 << 20
NOBODY = 65534

# DIRECTORY PROGRAM ARGUMENTS..: runs the program as nobody, who can reach it and finds /dev/fuse as it is on a plain Debian;
# this machine's may be for root alone.
AS_NOBODY = """
place=$1 program=$2
shift 2
mount -t tmpfs -o mode=0755 none "$place"
mknod -m 0666 "$place/fuse" c 10 229
mount --bind "$place/fuse" /dev/fuse
mkdir "$place/bin"
mount --bind "$(dirname "$program")" "$place/bin"
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$place/bin/still" "$@"
"""


class Host(still_host.Host):
    @classmethod
    def in_tmp(cls):
        """Where others than root get to."""
        with unittest.mock.patch.object(still_host, "SCRATCH", pathlib.Path("/tmp")):
            return cls()

    def readers(self):
        """pid -> name of the programs that files are read with: they work below mounts/."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.readlink(entry / "cwd").startswith(str(self.state / "mounts")):
                    found[entry.name] = (entry / "comm").read_text().strip()
            except OSError:
                pass
        return found

    def become_nobody(self):
        """Everything of this host belongs to nobody, who runs its commands from now on."""
        place = self.directory / "place"
        place.mkdir()
        for folder, _, files in os.walk(self.directory):
            for path in (folder, *(os.path.join(folder, file) for file in files)):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        self.prefix = ["unshare", "--mount", "sh", "-ec", AS_NOBODY, "-", str(place)]


def mounts():
    return pathlib.Path("/proc/self/mounts").read_text().splitlines()


def loop_files():
    return subprocess.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True,
                          check=True).stdout


def fill(directory):
    """What a guest may have left: plain files, links that lead out of the tree, devices, set-user-id programs."""
    (directory / "etc").mkdir()
    (directory / "etc/hostname").write_text("guest\n")
    (directory / "deep/er").mkdir(parents=True)
    (directory / "deep/er/file").write_bytes(bytes(range(256)) * 4096)
    (directory / "deep/absolute").symlink_to("/etc/hostname")
    (directory / "deep/upwards").symlink_to("../../../../../../etc/hostname")
    (directory / "out").symlink_to("/etc")
    program = directory / "deep/program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o4755)
    os.mknod(directory / "deep/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with open(directory / "deep/sparse", "wb") as sparse:
        sparse.truncate(8 * MIB)
        sparse.seek(4 * MIB)
        sparse.write(b"middle")
    (directory / "deep/a name; with $(odd) 'signs'").write_text("odd\n")


class Files(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not still_host.has_private_mounts():
            raise unittest.SkipTest("needs root and a mount namespace of its own, which a chroot may not have")
        cls.host = Host()
        cls.addClassCleanup(cls.host.close)
        tree = cls.host.directory / "tree"
        tree.mkdir()
        fill(tree)
        for kind, mib in (("ext4", 64), ("xfs", 320), ("btrfs", 128)):
            image = cls.host.disk(kind, mib, kind)
            # Filled in a mount namespace that goes with the command.
            subprocess.run(["unshare", "--mount", "sh", "-ec", 'mkdir "$1.dir"; mount -o loop "$1" "$1.dir"; '
                            'cp -a "$2/." "$1.dir"; umount "$1.dir"; rmdir "$1.dir"', "-", image, tree], check=True)
            cls.host.still("import", image, "--name", kind)
        cls.import_partitions(cls.host.directory / "ext4.raw")

    @classmethod
    def import_partitions(cls, file_system):
        path = cls.host.directory / "parts.raw"
        content = file_system.read_bytes()
        table = bytearray(512)
        for slot, (start, sectors) in enumerate([(2048, 2048), (4096, len(content) // 512)]):
            table[446 + 16 * slot : 462 + 16 * slot] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0x83, b"\0\2\0", start, sectors)
        table[510:] = b"\x55\xaa"
        with open(path, "wb") as disk:
            disk.write(table)
            disk.seek(4096 * 512)
            disk.write(content)
        cls.host.still("import", path, "--name", "parts")

    @classmethod
    def tearDownClass(cls):
        left = [line for line in mounts() if str(cls.host.directory) in line]
        if left:
            raise AssertionError(f"mounts were left: {left}")
        if str(cls.host.directory) in loop_files():
            raise AssertionError("a loop device was left")

    def copy(self, source, *words):
        target = self.host.directory / f"copy-{time.monotonic_ns()}"
        self.host.still("cp", source, target, *words)
        return target

    def test_every_file_system_lists_and_gives_its_files(self):
        for kind, *words in (("ext4",), ("xfs",), ("btrfs",), ("ext4", "--host-kernel"), ("btrfs", "--host-kernel")):
            with self.subTest(kind, words=words):
                listed = {entry["name"]: entry for entry in self.host.json("ls", f"{kind}:/deep", *words)}
                self.assertTrue({"er", "absolute", "sparse", "null"} <= set(listed))
                self.assertEqual(listed["absolute"]["link_target"], "/etc/hostname")
                self.assertEqual(listed["sparse"]["size"], 8 * MIB)
                copied = self.copy(f"{kind}:vda:/deep/er/file", *words)
                self.assertEqual(copied.read_bytes(), bytes(range(256)) * 4096)
                self.assertIn("deep", self.host.still("ls", f"{kind}:/", *words))

    def test_root_has_the_hosts_kernel_read_them_only_when_it_says_so(self):
        without = ["unshare", "--mount", "sh", "-ec", 'mount --bind /dev/null "$(command -v linux.uml)"; exec "$@"', "-"]
        with unittest.mock.patch.object(self.host, "prefix", without):
            result = self.host.run("ls", "ext4:/")
            self.assertNotEqual(result.returncode, 0)
            self.assertIn("linux.uml", result.stderr)
            self.assertIn("deep", self.host.still("ls", "ext4:/", "--host-kernel"))

    def test_a_directory_is_copied_without_what_is_dangerous(self):
        for words in ([], ["--host-kernel"]):
            with self.subTest(words=words):
                self.check_copy(self.host.directory / f"all-{len(words)}", *words)

    def check_copy(self, target, *words):
        copied = self.host.json("cp", "ext4:/deep", target, *words)
        self.assertEqual(copied["skipped"], [str(target / "null")])
        self.assertFalse((target / "null").exists())
        self.assertEqual(stat.S_IMODE((target / "program").stat().st_mode), 0o755)
        self.assertEqual((target / "sparse").stat().st_size, 8 * MIB)
        self.assertLess((target / "sparse").stat().st_blocks * 512, MIB)
        self.assertEqual((target / "sparse").read_bytes()[4 * MIB : 4 * MIB + 6], b"middle")
        self.assertEqual(os.readlink(target / "absolute"), "/etc/hostname")
        self.assertEqual((target / "a name; with $(odd) 'signs'").read_text(), "odd\n")

    def test_links_never_lead_out_of_the_guest(self):
        for path in ("/deep/absolute", "/deep/upwards", "/out/hostname", "/../../etc/hostname"):
            for words in ([], ["--host-kernel"]):
                with self.subTest(path, words=words):
                    self.assertEqual(self.copy(f"ext4:{path}", *words).read_text(), "guest\n")

    def test_nothing_that_exists_is_replaced_and_what_is_missing_is_said(self):
        there = self.host.directory / "there"
        there.write_text("mine")
        result = self.host.run("cp", "ext4:/etc/hostname", there)
        self.assertEqual((result.returncode, there.read_text()), (4, "mine"), result.stderr)
        self.assertEqual(self.host.run("cp", "ext4:/nosuch", self.host.directory / "x").returncode, 3)
        self.assertEqual(self.host.run("ls", "ext4:vdb:/").returncode, 3)
        self.assertEqual(self.host.run("ls", "ext4").returncode, 2)
        self.assertEqual(self.host.run("ls", "nosuch:/").returncode, 3)

    def interrupted(self, number, place, *words):
        """The exit code of a copy that gets the signal once it has begun."""
        copying = self.host.start("cp", "ext4:/deep", place, *words)
        self.addCleanup(lambda: (copying.kill(), copying.communicate()))
        while not os.path.lexists(f"{place}.still-partial") and copying.poll() is None:
            time.sleep(0.001)
        copying.send_signal(number)
        return copying.wait(60)

    def test_an_interrupted_copy_leaves_nothing_and_can_be_repeated(self):
        for words in ([], ["--host-kernel"]):
            for number in (signal.SIGINT, signal.SIGTERM):
                with self.subTest(words=words, signal=number.name):
                    place = self.host.directory / f"again-{number.name}-{len(words)}"
                    for _ in range(20):  # One that was over has proven nothing.
                        if self.interrupted(number, place, *words) == -number:
                            break
                        shutil.rmtree(place)
                    else:
                        self.fail("no copy was interrupted")
                    self.assertEqual(list(place.parent.glob(f"{place.name}*")), [])
                    self.host.still("cp", "ext4:/deep", place, *words)
                    self.assertEqual((place / "er/file").stat().st_size, MIB)
        self.assertEqual(list((self.host.state / "mounts").iterdir()), [])

    def test_what_a_killed_copy_left_goes_with_the_next_one(self):
        place = self.host.directory / "killed"
        partial = pathlib.Path(f"{place}.still-partial")
        partial.mkdir()
        (partial / "killed").write_text("half")
        self.host.still("cp", "ext4:/etc/hostname", place)
        self.assertEqual(place.read_text(), "guest\n")
        self.assertFalse(partial.exists())

    def test_partitions_are_named_by_number(self):
        result = self.host.run("ls", "parts:/")
        self.assertEqual(result.returncode, 5, result.stderr)
        self.assertIn("disk vda has partitions: 1 (1M), 2 (64M)", result.stderr)
        self.assertEqual(self.copy("parts:vda:2:/etc/hostname").read_text(), "guest\n")
        self.assertIn("no file system", self.host.run("ls", "parts:vda:1:/").stderr)
        self.assertNotEqual(self.host.run("ls", "parts:vda:3:/").returncode, 0)

    def test_a_mount_stays_until_it_is_taken_away(self):
        directory, second = self.host.directory / "mounted", self.host.directory / "second"
        directory.mkdir()
        second.mkdir()
        self.host.still("mount", "parts:vda:2", directory)
        try:
            self.host.still("mount", "ext4", second)
            self.assertEqual((directory / "etc/hostname").read_text(), "guest\n")
            with self.assertRaises(OSError):
                (directory / "new").write_text("refused")
            line = next(line for line in mounts() if f" {directory} " in line)
            self.assertTrue({"ro", "nosuid", "nodev", "noexec"} <= set(line.split()[3].split(",")), line)
            spare = self.host.directory / "spare.raw"
            spare.write_bytes(os.urandom(MIB))
            self.host.still("import", spare, "--name", "spare")
            self.host.still("forget", "spare")
            pruned = self.host.json("prune", "--grace", "0s")
            self.assertEqual(pruned["packs_deleted"], 0)
            self.assertGreater(pruned["packs_waiting"], 0)
        finally:
            done = self.host.run("--json", "umount", directory, self.host.state, second)
        self.assertEqual(done.returncode, 3, "nothing is mounted on the state directory: " + done.stderr)
        self.assertEqual(json.loads(done.stdout), [{"unmounted": str(directory)}, {"unmounted": str(second)}])
        self.assertEqual(list(directory.iterdir()), [])
        self.assertEqual(list((self.host.state / "mounts").iterdir()), [])
        self.assertEqual(self.host.run("umount", directory).returncode, 3)

    def test_who_may_not_mount_reads_files_too(self):
        with Host.in_tmp() as host:
            for kind in ("ext4", "xfs", "btrfs"):
                host.still("import", self.host.directory / f"{kind}.raw", "--name", kind)
            host.state.mkdir(exist_ok=True)
            host.become_nobody()
            mine = host.directory / "mine"
            mine.mkdir()
            os.chown(mine, NOBODY, NOBODY)
            for kind in ("ext4", "xfs", "btrfs"):
                with self.subTest(kind):
                    listed = {entry["name"]: entry for entry in host.json("ls", f"{kind}:/deep")}
                    self.assertEqual(listed, {entry["name"]: entry for entry in self.host.json("ls", f"{kind}:/deep")})
                    copied = host.json("cp", f"{kind}:/deep", mine / kind)
                    self.assertEqual(copied["skipped"], [str(mine / kind / "null")])
            all_of_it = mine / "ext4"
            self.assertEqual((all_of_it / "er/file").read_bytes(), bytes(range(256)) * 4096)
            self.assertLess((all_of_it / "sparse").stat().st_blocks * 512, MIB)
            self.assertEqual(os.readlink(all_of_it / "absolute"), "/etc/hostname")
            self.assertEqual(stat.S_IMODE((all_of_it / "program").stat().st_mode), 0o755)
            self.assertEqual((all_of_it / "program").stat().st_uid, NOBODY)
            # Into a directory under its own name, over a link of the host; and errors are those that root gets.
            (mine / "link").symlink_to(mine)
            host.still("cp", "ext4:/out/hostname", mine / "link")
            self.assertEqual((mine / "hostname").read_text(), "guest\n")
            again = host.run("cp", "ext4:/etc/hostname", mine)
            self.assertEqual(again.returncode, 4, again.stderr)
            self.assertIn(str(mine / "hostname"), again.stderr)
            self.assertEqual(host.run("ls", "ext4:/nosuch").returncode, 3)
            self.assertEqual(host.run("mount", "ext4", mine).returncode, 9)
            self.assertEqual(host.run("ls", "ext4:/", "--host-kernel").returncode, 9)
            self.assertEqual(list((host.state / "mounts").iterdir()), [])
            # Killed in the middle, it leaves no process, and what else it leaves goes with the next one.
            killed = host.start("cp", "btrfs:/deep", mine / "killed")
            self.addCleanup(lambda: (killed.kill(), killed.communicate()))
            still_host.wait_for(lambda: "linux.uml" in host.readers().values(), "the kernel to start", 60)
            killed.kill()
            still_host.wait_for(lambda: not host.readers(), "its processes to end", 60)
            self.assertFalse((mine / "killed").exists(), "what has its name is whole")
            self.assertNotEqual(list((host.state / "mounts").iterdir()), [])
            host.still("ls", "btrfs:/")
            self.assertEqual(list((host.state / "mounts").iterdir()), [])

    def test_the_doctor_says_what_files_and_lazy_disks_need(self):
        findings = {entry["what"]: entry for entry in self.host.json("doctor")["findings"]}
        for what in ("nbdkit", "nbdkit plugin", "nbdfuse", "FUSE", "linux.uml"):
            self.assertEqual(findings[what]["verdict"], "ok", findings[what])
        without = self.host.json("doctor", STILL_NBDKIT_PLUGIN="/nowhere/plugin.so")
        (plugin,) = (entry for entry in without["findings"] if entry["what"] == "nbdkit plugin")
        self.assertEqual(plugin["verdict"], "note")
        self.assertIn("/nowhere/plugin.so", plugin["text"])

    def test_an_encrypted_repository_needs_no_second_passphrase(self):
        with Host(encrypted=True) as host:
            host.still("import", self.host.directory / "ext4.raw", "--name", "secret")
            host.still("cp", "secret:/etc/hostname", host.directory / "copied")
            self.assertEqual((host.directory / "copied").read_text(), "guest\n")


if __name__ == "__main__":
    unittest.main(verbosity=2)
