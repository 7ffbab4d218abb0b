"""The Debian packages: what is in them, and that the programs work where they are installed, which is not a build."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

BUILD = pathlib.Path(os.environ["STILL_BUILD"])


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True, **options).stdout


class Package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        (BUILD / "scratch").mkdir(exist_ok=True)
        cls.directory = pathlib.Path(tempfile.mkdtemp(prefix="package-", dir=BUILD / "scratch"))
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        run("cpack", "--config", BUILD / "CPackConfig.cmake", "-B", cls.directory / "out")
        cls.packages = {re.match(r"[a-z-]+(?=_)", p.name)[0]: p for p in (cls.directory / "out").glob("*.deb")}
        cls.roots = {}
        for name, path in cls.packages.items():
            cls.roots[name] = cls.directory / name
            run("dpkg-deb", "--extract", path, cls.roots[name])
        cls.still = cls.roots["stillpoint"] / "usr/bin/still"

    def field(self, package, name):
        return run("dpkg-deb", "--field", self.packages[package], name).strip()

    def test_there_is_one_for_hosts_and_one_for_guests(self):
        self.assertEqual(sorted(self.packages), ["stillpoint", "stillpoint-agent"])
        depends = self.field("stillpoint", "Depends")
        for needed in ("qemu-system-x86", "libsqlite3-0", "libgrpc++"):
            self.assertIn(needed, depends)
        self.assertEqual(self.field("stillpoint-agent", "Depends"), "", "the agent needs nothing of the guest")

    def test_hosts_get_programs_pages_completion_and_the_agent_for_images(self):
        root = self.roots["stillpoint"]
        for path in ("bin/still", "bin/still-session", "bin/stilld", "lib/stillpoint/libstill-vsock.so",
                     "lib/stillpoint/nbdkit-still-plugin.so", "lib/stillpoint/still-file-reader", "lib/stillpoint/still-memory",
                     "lib/stillpoint/guest/still-agent",
                     "lib/stillpoint/guest/still-agent.service", "lib/systemd/system/stilld.service",
                     "lib/systemd/system/stilld.socket", "lib/systemd/system/still-run-due.timer",
                     "lib/systemd/system/still-check.timer", "share/stillpoint/monitoring/alerts.yml",
                     "share/stillpoint/monitoring/dashboard.json", "share/doc/stillpoint/examples/notify-by-mail",
                     "share/man/man1/still.1.gz", "share/man/man1/stilld.1.gz",
                     "share/man/man1/still-key-add.1.gz", "share/bash-completion/completions/still",
                     "share/zsh/vendor-completions/_still", "share/fish/vendor_completions.d/still.fish",
                     "share/doc/stillpoint/copyright"):
            self.assertTrue((root / "usr" / path).exists(), path)
        [plugin] = root.glob("usr/lib/*/nbdkit/plugins/*")  # Its target is in the package, not on this machine.
        self.assertEqual(os.readlink(plugin), "/usr/lib/stillpoint/nbdkit-still-plugin.so")
        for file in root.rglob("*"):
            if file.is_file() and not file.is_symlink():
                self.assertEqual(file.stat().st_mode & 0o022, 0, f"{file} can be written by others")

    def test_the_programs_run_from_where_they_are_unpacked(self):
        programs = self.roots["stillpoint"] / "usr/bin"
        self.assertRegex(run(programs / "still", "--version"), r"^still \d+\.\d+")
        self.assertIn("--webhook", run(programs / "stilld", "--help"))
        self.assertIn("--directory", run(programs / "still-session", "--help"))
        # With what lies beside them only: the command finds the agent and its units, and nothing else is wrong.
        result = subprocess.run([programs / "still", "agent", "install", self.directory / "nosuch.raw"], capture_output=True,
                                text=True, check=False)
        self.assertEqual(result.returncode, 3)
        self.assertIn("nosuch.raw", result.stderr)

    def test_its_configuration_is_the_administrators(self):
        etc = self.roots["stillpoint"] / "etc/stillpoint"
        conffiles = run("dpkg-deb", "--info", self.packages["stillpoint"], "conffiles").split()
        self.assertEqual(conffiles, [f"/etc/stillpoint/{name}" for name in ("stilld.conf", "stilld.env")])
        self.assertEqual([oct((etc / name).stat().st_mode & 0o777) for name in ("stilld.conf", "stilld.env")], ["0o644", "0o600"])
        # As it comes it changes nothing, and what it proposes works. An unknown name in it would be an error.
        text = (etc / "stilld.conf").read_text()
        self.assertNotRegex(text, r"(?m)^[^#\n]")
        (self.directory / "all.conf").write_text(re.sub(r"(?m)^#(?=[a-z-]+=)", "", text))
        run(self.roots["stillpoint"] / "usr/bin/stilld", "--config", self.directory / "all.conf", "--man", self.directory,
            "--man-date", "2026-01-01")
        for line in (etc / "stilld.env").read_text().splitlines():
            self.assertRegex(line, r"^# |^$|^#STILL_[A-Z_]+=", "systemd reads it")

    def test_what_is_given_as_an_example_works(self):
        examples = self.roots["stillpoint"] / "usr/share/doc/stillpoint/examples"
        sent = subprocess.run(["sh", "-n", examples / "notify-by-mail"], check=False)
        self.assertEqual(sent.returncode, 0)

    @unittest.skipUnless(shutil.which("systemd-analyze"), "there is no systemd-analyze")
    def test_systemd_understands_the_units_and_finds_them_hardened(self):
        root = self.roots["stillpoint"]
        place = self.directory / "units"
        place.mkdir()
        for unit in (root / "usr/lib/systemd/system").iterdir():
            # The programs are not installed here.
            text = unit.read_text().replace("/usr/bin/still", str(root / "usr/bin/still"))
            (place / unit.name).write_text(text)
        agent = (self.roots["stillpoint-agent"] / "usr/lib/systemd/system/still-agent.service").read_text()
        (place / "still-agent.service").write_text(
            agent.replace("/usr/sbin", str(self.roots["stillpoint-agent"] / "usr/sbin")))
        result = subprocess.run(["systemd-analyze", "verify", "--man=no", *sorted(place.iterdir())], capture_output=True,
                                text=True, check=False, env=dict(os.environ, SYSTEMD_UNIT_PATH=f"{place}:"))
        complaints = [line for line in result.stderr.splitlines() if "still" in line]
        self.assertEqual(complaints, [])
        # 100: as open as can be. What is left is what it takes to start machines in drills.
        result = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager",
                                 place / "stilld.service"], capture_output=True, text=True, check=False)
        self.assertEqual(result.returncode, 0, result.stdout[-600:])

    def test_guests_get_the_agent_its_unit_and_places_for_hooks(self):
        root = self.roots["stillpoint-agent"]
        agent = root / "usr/sbin/still-agent"
        self.assertTrue(os.access(agent, os.X_OK))
        self.assertIn("still-agent", run(agent, "--version"))
        self.assertTrue((root / "usr/lib/systemd/system/still-agent.service").exists())
        self.assertTrue((root / "etc/still/hooks.d").is_dir())
        self.assertTrue((root / "etc/still/restore.d").is_dir())

    def test_pages_are_well_formed(self):
        pages = sorted((self.roots["stillpoint"] / "usr/share/man/man1").glob("*.gz"))
        self.assertGreater(len(pages), 20)
        if shutil.which("man") is None:
            self.skipTest("man is not installed")
        for page in pages:
            result = subprocess.run(["man", "--warnings", "-E", "UTF-8", "-l", page], capture_output=True, text=True,
                                    check=True, env=dict(os.environ, MANWIDTH="100", LC_ALL="C.UTF-8"))
            self.assertEqual(result.stderr, "", page)
            self.assertIn("SYNOPSIS", result.stdout)

    def test_bash_completes_commands_options_and_values(self):
        script = self.roots["stillpoint"] / "usr/share/bash-completion/completions/still"

        def complete(line):
            program = f'. {script}; COMP_LINE="$1"; COMP_POINT=${{#1}}; _still; printf "%s\\n" "${{COMPREPLY[@]}}"'
            return run("bash", "-c", program, "bash", line).split()

        self.assertIn("snapshot", complete(f"{self.still} "))
        self.assertEqual(complete(f"{self.still} snap"), ["snapshot"])
        self.assertEqual(complete(f"{self.still} snapshot web --quies"), ["--quiesce"])
        self.assertEqual(complete(f"{self.still} snapshot web --quiesce=r"), ["require"], "bash holds what is before the =")
        self.assertEqual(complete(f"{self.still} completion "), ["bash", "zsh", "fish"])

    def test_the_other_shells_can_read_their_scripts(self):
        share = self.roots["stillpoint"] / "usr/share"
        for shell, script in (("zsh", "zsh/vendor-completions/_still"), ("fish", "fish/vendor_completions.d/still.fish")):
            with self.subTest(shell):
                if shutil.which(shell) is None:
                    self.skipTest(f"{shell} is not installed")
                run(shell, "-n", share / script)


if __name__ == "__main__":
    unittest.main(verbosity=2)
