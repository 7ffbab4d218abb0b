"""Snapshots and restores of a real VM: what they promise, and what they say when they cannot."""

import ctypes
import re
import subprocess
import unittest

from still_host import BUILD, GUEST, Host, wait_for


class VmTest(unittest.TestCase):
    """One host with one running VM, `web`, for all tests of a class."""

    boot_arguments = ()
    fault_file = False

    @classmethod
    def setUpClass(cls):
        cls.host = Host()
        cls.addClassCleanup(cls.host.close)
        environment = {"STILL_FAULT_FILE": str(cls.host.directory / "fault")} if cls.fault_file else {}
        cls.disk = cls.host.disk("web")
        cls.host.boot("web", *cls.boot_arguments, disks=[cls.disk], **environment)
        wait_for(lambda: cls.host.records("web")["acknowledged"] > 5, "the record writer", 120)

    def assert_web_works(self):
        """Running, thawed, nothing under way, and its writer goes on."""
        web = wait_for(lambda: (s := self.host.session("web"))["active_capture"] == "" and s, "the capture's end", 120)
        self.assertEqual(web["status"], "running")
        self.assertEqual(web["agent"]["quiesce_state"], "THAWED")
        before = self.host.records("web")["acknowledged"]
        wait_for(lambda: self.host.records("web")["acknowledged"] > before, "the writer to go on", 120)

    def assert_fails(self, code, fragment, *arguments):
        result = self.host.run(*arguments)
        self.assertEqual(result.returncode, code, result.stderr)
        self.assertIn(fragment, result.stderr)
        # What takes longer than a second says before how far it is.
        said = [line for line in result.stderr.splitlines() if not re.fullmatch(r"[^:]+(\.\.\.|: \d+% of .*)", line)]
        self.assertEqual(len(said), 1, f"one line expected: {result.stderr}")
        return result


class Quiesce(VmTest):
    def tearDown(self):
        self.host.run("exec", "web", "--", "fsfreeze", "--unfreeze", "/data")
        self.host.run("exec", "web", "--", "rm", "-rf", "/etc/still/hooks.d", "/etc/qemu", "/etc/qemu-ga", "/etc/qemu-kvm")

    def hook(self, name, script, directory="/etc/still/hooks.d"):
        self.host.guest(
            "web", "sh", "-c", f"mkdir -p {directory} && printf '%s\\n' '#!/bin/sh' '{script}' > {directory}/{name}"
        )
        self.host.guest("web", "chmod", "+x", f"{directory}/{name}")

    def test_a_proven_freeze_gives_the_filesystem_level(self):
        taken = self.host.json("snapshot", "web", "--disk-only", "--quiesce", "require")
        self.assertEqual(taken["consistency"]["level"], "FILESYSTEM")
        self.assertEqual([m["mount_point"] for m in taken["consistency"]["frozen"]], ["/data"])
        self.assertFalse(self.host.check_disk(self.host.export(taken["id"]))["needs_recovery"])

    def test_without_a_freeze_the_image_needs_recovery_and_the_label_says_crash(self):
        taken = self.host.json("snapshot", "web", "--disk-only", "--quiesce", "off")
        self.assertEqual(taken["consistency"]["level"], "CRASH")
        self.assertIn("quiesce is off", taken["consistency"]["downgrades"])
        found = self.host.check_disk(self.host.export(taken["id"]))
        self.assertTrue(found["needs_recovery"])
        self.assertTrue(found["clean"])

    def test_a_file_system_that_somebody_else_froze_lowers_the_label_or_fails(self):
        self.host.guest("web", "fsfreeze", "--freeze", "/data")
        result = self.host.run("snapshot", "web", "--name", "required", "--quiesce", "require")
        self.assertEqual(result.returncode, 5, result.stderr)
        self.assertIn("/data", result.stderr)
        tried = self.host.json("snapshot", "web", "--disk-only", "--quiesce", "try")
        self.assertEqual(tried["consistency"]["level"], "CRASH")
        self.assertIn("already frozen", tried["consistency"]["downgrades"][0] + tried["consistency"]["downgrades"][-1])
        self.assertNotIn("required", [s["name"] for s in self.host.json("list")])

    def test_hooks_that_pass_give_the_application_level(self):
        self.hook("good", "exit 0")
        taken = self.host.json("snapshot", "web", "--disk-only", "--quiesce", "require")
        self.assertEqual(taken["consistency"]["level"], "APPLICATION")
        self.assertEqual([h["verb"] for h in taken["consistency"]["hooks"]], ["freeze", "thaw"])

    def test_the_hooks_of_each_distribution_are_run_where_it_has_them(self):
        # Debian's and SUSE's; RHEL's and Fedora's; RHEL 7's, and there the single one, which a directory would replace.
        places = [("/etc/qemu/fsfreeze-hook.d", "one"), ("/etc/qemu-ga/fsfreeze-hook.d", "two"), ("/etc/qemu-kvm", "fsfreeze-hook")]
        for directory, name in places:
            self.hook(name, "exit 0", directory)
        taken = self.host.json("snapshot", "web", "--disk-only", "--quiesce", "require")
        frozen = {hook["path"] for hook in taken["consistency"]["hooks"] if hook["verb"] == "freeze"}
        self.assertEqual(frozen, {f"{directory}/{name}" for directory, name in places})

    def test_a_hook_that_fails_fails_the_snapshot_or_lowers_its_label(self):
        self.hook("bad", "exit 3")
        result = self.host.run("snapshot", "web", "--disk-only", "--quiesce", "require")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("bad", result.stderr)
        warned = self.host.json("snapshot", "web", "--disk-only", "--quiesce", "require", "--hooks", "warn")
        self.assertEqual(warned["consistency"]["level"], "FILESYSTEM")
        self.assertIn("bad", warned["consistency"]["downgrades"][0])

    def test_a_thaw_hook_that_takes_its_time_holds_up_nobody(self):
        self.hook("slow", "[ \"$1\" = freeze ] || sleep 8")
        taken = self.host.json("snapshot", "web", "--disk-only", "--quiesce", "require")
        self.assertEqual(taken["consistency"]["level"], "APPLICATION")
        self.assertTrue(taken["consistency"]["hooks"][-1]["unfinished"])
        self.assertLess(int(taken["windows"]["freeze_us"]), 8_000_000)

    def test_a_hook_that_hangs_is_ended(self):
        self.hook("slow", "sleep 300")
        result = self.host.run("snapshot", "web", "--disk-only", "--quiesce", "require", "--freeze-lease", "8s")
        self.assertNotEqual(result.returncode, 0)
        self.assert_web_works()


class Restore(VmTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.taken = cls.host.json("snapshot", "web", "--name", "point", "--quiesce", "require")

    def test_warm_goes_on_where_it_was_and_can_be_snapshotted_again(self):
        counted = self.host.counter("web")["count"]
        self.host.still("restore", "point", "--as", "warm")
        warm = self.host.session("warm")
        web = self.host.session("web")
        self.assertEqual(warm["status"], "running")
        self.assertEqual(warm["agent"]["quiesce_state"], "THAWED")
        self.assertNotEqual(warm["guest_cid"], web["guest_cid"])
        check = self.host.counter("warm", "--check")
        self.assertEqual(check["errors"], 0)
        self.assertGreater(check["count"], 0)
        second = self.host.json("snapshot", "warm", "--name", "second", "--quiesce", "require")
        self.assertEqual(second["kind"], "DISK_AND_MEMORY")
        self.host.still("stop", "warm", "--force")
        self.host.still("restore", "second", "--as", "grandchild")
        self.assertEqual(self.host.counter("grandchild", "--check")["errors"], 0)
        self.host.still("stop", "grandchild", "--force")
        self.assertGreaterEqual(self.host.counter("web")["count"], counted)

    def test_cold_boots_the_disks_with_another_memory_size(self):
        self.host.still("restore", "point", "--as", "cold", "--cold", "--memory", "192M")
        wait_for(lambda: self.host.records("cold")["acknowledged"] > 0, "the record writer", 120)
        report = self.host.records("cold")
        self.assertGreater(report["first"], 5, "the records of before the snapshot are on the disk")
        self.assertEqual(self.host.session("cold")["machine"]["memory_bytes"], 192 << 20)
        self.host.still("stop", "cold")
        self.assertEqual(self.host.session("cold")["status"], "stopped")
        self.host.still("rm", "cold")
        self.assertIsNone(self.host.session("cold"))

    def test_exports_agree_in_every_format(self):
        raw = self.host.export("point")
        qcow2 = self.host.directory / "point.qcow2"
        self.host.still("export", "point", qcow2, "--format", "qcow2")
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, qcow2], check=True, capture_output=True)
        back = self.host.json("import", qcow2, "--format", "qcow2")
        again = self.host.export(back["id"])
        subprocess.run(["cmp", raw, again], check=True)


def xxh3(data):
    function = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    function.argtypes, function.restype = (ctypes.c_char_p, ctypes.c_size_t), ctypes.c_uint64
    return function(data, len(data)).to_bytes(8, "little")


class BadInput(VmTest):
    def test_every_mistake_gets_one_line_and_its_exit_code(self):
        missing = self.host.directory / "missing"
        kernel = ["--kernel", GUEST / "vmlinux", "--initrd", GUEST / "initrd"]
        self.assert_fails(3, "kernel", "run", "a", "--kernel", missing)
        self.assert_fails(3, "missing", "run", "a", *kernel, "--disk", missing)
        self.assert_fails(2, "is not a qcow2 image", "run", "a", *kernel, "--disk", f"{self.disk},format=qcow2")
        self.assert_fails(2, "no disk image", "run", "a", *kernel, "--disk", GUEST / "cmdline")
        self.assert_fails(2, "use raw or qcow2", "run", "a", *kernel, "--disk", f"{self.disk},format=vmdk")
        self.assert_fails(2, "session name", "run", "Not/A/Name", *kernel)
        self.assert_fails(2, "multiple of 2 MiB", "run", "a", *kernel, "--memory", "100000K")
        self.assert_fails(4, "web is running", "run", "web", *kernel)
        self.assert_fails(3, 'no session "nosuch"; there are: web', "snapshot", "nosuch")
        self.assert_fails(3, "nosuch", "restore", "nosuch", "--as", "b")
        self.assert_fails(3, "nosuch", "show", "nosuch")
        self.assert_fails(2, "say --format raw", "import", self.disk, "--format", "qcow2")
        self.assertEqual([s["name"] for s in self.host.json("ps")], ["web"])

    def test_a_name_that_is_taken_is_refused_before_the_guest_is_touched(self):
        self.host.still("snapshot", "web", "--disk-only", "--name", "taken")
        self.assert_fails(4, "taken", "snapshot", "web", "--disk-only", "--name", "taken")
        self.assert_fails(4, "web is running", "restore", "taken", "--as", "web")

    def test_a_guest_without_agent_says_so_within_its_deadline(self):
        result = self.host.run(
            "run", "mute", "--kernel", GUEST / "vmlinux", "--append", "console=ttyS0 panic=0", "--agent-timeout", "3s"
        )
        self.assertEqual(result.returncode, 6, result.stderr)
        self.assertRegex(result.stderr, "no guest agent answered within 3s; its console (ends with|is empty)")
        self.assertIsNone(self.host.session("mute"))

    def test_a_guest_that_does_not_boot_shows_its_last_words(self):
        self.assert_fails(6, 'its console ends with "', "run", "broken", "--kernel", GUEST / "vmlinux")
        self.assertIsNone(self.host.session("broken"))

    def test_help_is_there_for_every_command(self):
        commands = "init run ps stop rm exec logs snapshot list show restore import export verify doctor".split()
        for command in commands:
            with self.subTest(command):
                self.assertIn("--help", self.host.still(command, "--help"))

    def test_a_repository_of_a_newer_version_is_refused(self):
        config = next(p for p in (self.host.directory / "repo").iterdir() if p.name == "config")
        content = config.read_bytes()
        self.addCleanup(config.write_bytes, content)
        # docs/format/repository.md, frame header: byte 5 is the version of what the frame holds, 24 to 31 are the checksum.
        newer = content[:5] + bytes([99]) + content[6:]
        config.write_bytes(newer)
        self.assert_fails(8, "checksum does not match; put a copy", "list")
        config.write_bytes(newer[:24] + xxh3(newer[:24] + newer[32:]) + newer[32:])
        self.assert_fails(5, "newer", "list")


if __name__ == "__main__":
    print(f"build: {BUILD}")
    unittest.main(verbosity=2)
