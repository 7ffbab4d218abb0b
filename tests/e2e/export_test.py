"""Exports that others can use: a directory that plain QEMU starts, and a chain of qcow2 files."""

import json
import pathlib
import re
import socket
import subprocess
import unittest

from still_host import BUILD, PROJECT, Host, wait_for


def leaves_traces_of_us(text):
    return [word for word in (str(PROJECT), str(BUILD), "still-session", "libstill") if word in text]


class Qmp:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(120)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rw")
        self.lines.readline()
        self.ask("qmp_capabilities")

    def ask(self, command):
        self.lines.write(json.dumps({"execute": command}) + "\n")
        self.lines.flush()
        while True:
            answer = json.loads(self.lines.readline())
            if "return" in answer or "error" in answer:
                return answer["return"]

    def close(self):
        self.lines.close()
        self.socket.close()

    def written(self):
        return sum(disk["stats"]["wr_operations"] for disk in self.ask("query-blockstats"))


class ExportedMachine(unittest.TestCase):
    def start(self, directory, *arguments):
        (directory / "qmp.sock").unlink(missing_ok=True)
        process = subprocess.Popen([directory / "run", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        self.addCleanup(lambda: (process.kill(), process.wait(), process.stdout.close()))
        wait_for(lambda: (directory / "qmp.sock").exists() or process.poll() is not None, "QEMU", 120)
        self.assertIsNone(process.poll(), process.stdout.read() if process.poll() is not None else "")
        qmp = Qmp(directory / "qmp.sock")
        self.addCleanup(qmp.close)
        return process, qmp

    def records(self, image):
        found = self.host.check_disk(image)
        self.assertTrue(found["clean"])
        self.assertEqual(found["damaged"], 0)
        return found["records"]

    def test_plain_qemu_goes_on_with_it_once_and_boots_it_as_often_as_wanted(self):
        with Host() as self.host:
            # Without vsock: this host need not have the kernel's device, which plain QEMU would use.
            self.host.boot("web", "--vsock", "off", "--no-agent", memory="128M", disks=[self.host.disk("web", 64)])

            def working():
                taken = self.host.json("snapshot", "web", "--quiesce", "off", "--disk-only")
                return self.host.check_disk(self.host.export(taken["id"])).get("records", 0) > 3

            wait_for(working, "the record writer", 120)
            self.host.still("snapshot", "web", "--quiesce", "off", "--name", "point")
            self.host.still("stop", "web", "--force")
            directory = self.host.directory / "machine"
            self.host.still("export", "point", directory, "--format", "directory")
            self.assertEqual(leaves_traces_of_us((directory / "run").read_text()), [])
            before = self.records(directory / "vda.raw")

            process, qmp = self.start(directory)
            wait_for(lambda: qmp.ask("query-status")["status"] == "running", "the machine to run", 120)
            begun = qmp.written()
            wait_for(lambda: qmp.written() > begun + 20, "the guest's writer to go on", 120)
            qmp.ask("quit")
            process.wait(120)
            self.assertGreater(self.records(directory / "vda.raw"), before)

            again = subprocess.run([directory / "run"], capture_output=True, text=True, timeout=120, check=False)
            self.assertEqual(again.returncode, 1)
            self.assertIn("--cold", again.stderr)

            process, qmp = self.start(directory, "--cold")
            wait_for(lambda: qmp.written() > 20, "the booted guest's writer", 120)
            qmp.ask("quit")
            process.wait(120)


class ExportedChain(unittest.TestCase):
    def test_each_file_is_one_snapshot_and_only_what_changed(self):
        with Host() as host:
            host.boot("web", disks=[host.disk("web", 128)], workload="record-writer")
            names = ["one", "two", "three"]
            for name in names:
                host.guest("web", "sh", "-c", f"head -c 3000000 /dev/urandom > /data/{name}; rm -f /data/one.old; "
                           "mv /data/one /data/one.old 2>/dev/null; sync")
                host.still("snapshot", "web", "--disk-only", "--name", name)
            host.still("stop", "web", "--force")
            directory = host.directory / "chain"
            files = host.json("export", "three", directory, "--chain")["files"]
            self.assertEqual(len(files), 3)
            for name, file in zip(names, files):
                self.assertRegex(file, re.compile(r"^\d{3}-[0-9a-f]{12}\.qcow2$"))
                subprocess.run(["qemu-img", "check", "-q", directory / file], check=True)
                raw = host.export(name)
                subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", directory / file, raw], check=True)
            sizes = [pathlib.Path(directory / file).stat().st_blocks for file in files]
            self.assertLess(max(sizes[1:]), 128 << 11, "increments hold less than the disk")
            info = json.loads(subprocess.run(["qemu-img", "info", "--output=json", directory / files[2]], check=True,
                                             capture_output=True, text=True).stdout)
            self.assertEqual(info["backing-filename"], files[1])
            self.assertEqual(sorted(path.name for path in directory.iterdir()), sorted(files))


if __name__ == "__main__":
    unittest.main(verbosity=2)
