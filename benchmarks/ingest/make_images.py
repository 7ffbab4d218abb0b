#!/usr/bin/env python3
"""Makes the data set of the ingest benchmark from Debian packages and a guest that runs from them: no root rights, no mounts.

    make_images.py DIRECTORY [--small]

gen0.img is an ext4 root image of 4 GiB with about 1.3 GiB in use. The small test guest (tools/guest-image) boots under
emulation with a copy of it, unpacks packages into it, removes others, appends to logs, rotates them and updates an SQLite
database, all through the guest's ext4: that makes gen1, and so on to gen3; 5 to 8 % of the blocks in use are new in each,
how many is printed. Then a guest of 1 GiB runs programs out of gen3 and reads files of it, for ever (guest_day.py); ram0.img
is its memory after two minutes, ram1.img a minute later.

The same packages give the same gen0; what a guest wrote, and its memory, differ a little from run to run. --small: a quarter
of everything.
"""

import argparse
import json
import os
import pathlib
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

import guest_day

HERE = pathlib.Path(__file__).resolve().parent
MIB = 1024 * 1024
PAGE = 4096
ZERO = bytes(PAGE)
BOOT_TIMEOUT_S = 1800  # A machine may be busy, and emulates.
RAM_WARM_S, RAM_APART_S = 120, 60
BASE = ["python3.11-minimal", "libpython3.11-stdlib", "libpython3.11-minimal", "perl-base", "perl-modules-5.36", "libperl5.36",
        "git", "vim-runtime", "bash", "coreutils", "libc6", "libc-bin", "locales", "openssl", "libssl3", "systemd", "dpkg", "apt",
        "cpp-12", "libexpat1", "zlib1g", "libsqlite3-0", "libcrypt1", "libtinfo6"]
LARGE = ["gcc-12", "g++-12", "libgcc-12-dev", "libstdc++-12-dev", "libicu72", "cmake", "cmake-data", "libllvm14",
         "groff-base", "python3-docutils", "tzdata", "binutils-x86-64-linux-gnu",
         "libllvm16", "libclang-cpp16", "golang-1.19-src", "golang-1.19-go", "mariadb-server-core"]
ADDED = [["sqlite3", "rsync"], ["tmux", "libxml2", "nano"], ["wget", "libglib2.0-0", "zstd"]]
ADDED_LARGE = [["postgresql-15", "postgresql-client-15"], ["libstd-rust-1.63"], ["libnode108", "libruby3.1"]]
REMOVED = [[], ["vim-runtime"], ["git"]]


def run(*command, **options):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, **options)


def unpack(names, cache, root):
    """Downloads what is missing and unpacks it."""
    cache.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not list(cache.glob(f"{name}_*.deb")):
            run("apt-get", "download", "-q", name, cwd=cache, stderr=subprocess.DEVNULL)
        run("dpkg-deb", "-x", sorted(cache.glob(f"{name}_*.deb"))[-1], root)


def make_database(path, size, source):
    """Rows of half a page, which guest_day.py then updates."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE record (id INTEGER PRIMARY KEY, name TEXT, content BLOB)")
        database.executemany("INSERT INTO record (name, content) VALUES (?, ?)",
                             ((f"record {i}", source.randbytes(500) + b"content " * 170) for i in range(size // 2048)))
    database.close()


def make_first(image, root, size, source):
    for folder in ("var/log", "var/lib/app", "var/tmp", "tmp", "proc", "sys", "dev", "run", "usr/local/bin"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    make_database(root / "var/lib/app/data.db", size // 100, source)
    (root / "var/log/syslog").write_bytes(guest_day.log_lines(source, size // 200))
    (root / "usr/local/bin/guest_day.py").write_bytes((HERE / "guest_day.py").read_bytes())
    with open(image, "wb") as file:
        file.truncate(size)
    run("mke2fs", "-q", "-t", "ext4", "-U", "6b8b4567-327b-23c6-643c-986966334873", "-E", "hash_seed="
        "6b8b4567-327b-23c6-643c-986966334874,lazy_itable_init=0", "-d", root, image,
        env=os.environ | {"E2FSPROGS_FAKE_TIME": "1700000000"})


class Guest:
    """The small test guest with a disk of the data set; boots into `task` of the script below."""

    SCRIPT = """#!/bin/sh
exec >/dev/console 2>&1
mount -t proc proc /data/proc
mount -o bind /dev /data/dev
day() { chroot /data /usr/bin/python3.11 /usr/local/bin/guest_day.py "$@"; }
task=$(tr ' ' '\\n' </proc/cmdline | sed -n 's/^task=//p')
if [ "$task" = live ]; then day live; fi
tar -xf /dev/vdb -C /data || exit
(cd /data && xargs -r rm -f <var/tmp/removed) || exit
day change "$task" || exit
umount /data/dev /data/proc && umount /data && echo guest: changed
reboot -f
"""

    def __init__(self, scratch, cache, image, task, more=()):
        self.log = scratch / "console"
        self.monitor_path = scratch / "qmp"
        guest = cache / "guest"
        run(HERE / "../../tools/guest-image/build", guest, env=os.environ | {"STILL_GUEST_CACHE": str(cache / "kernel")})
        overlay = scratch / "overlay/usr/bin/benchmark"
        overlay.parent.mkdir(parents=True, exist_ok=True)
        overlay.write_text(self.SCRIPT)
        overlay.chmod(0o755)
        archive = subprocess.run(["cpio", "--create", "--format=newc", "--owner=0:0", "--quiet"], cwd=scratch / "overlay",
                                 input=b"usr/bin/benchmark\n", stdout=subprocess.PIPE, check=True).stdout
        initrd = scratch / "initrd"
        initrd.write_bytes((guest / "initrd").read_bytes() + archive)
        disks = [part for disk in (image, *more) for part in ("-drive", f"if=virtio,format=raw,cache=unsafe,file={disk}")]
        self.process = subprocess.Popen(
            [str(part) for part in ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-cpu", "max", "-m", "1024", "-nodefaults",
             "-display", "none", "-no-reboot", "-serial", f"file:{self.log}", "-qmp", f"unix:{self.monitor_path},server,nowait",
             "-kernel", guest / "vmlinux", "-initrd", initrd, "-append",
             f"{(guest / 'cmdline').read_text()} still.workload=benchmark task={task}", *disks]])

    def wait_for(self, line):
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while line not in (self.log.read_text(errors="replace") if self.log.exists() else ""):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.end()
                sys.exit(f"guest: ended before it said '{line}':\n{self.log.read_text(errors='replace')}")
            time.sleep(0.5)

    def save_memory(self, *paths_and_waits):
        """Writes guest memory to each path, the machine stopped, and lets it run for the seconds that follow it."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.monitor_path))
            stream = connection.makefile("rw")
            stream.readline()
            for path, wait_s in paths_and_waits:
                for command, arguments in (("qmp_capabilities", {}), ("stop", {}),
                                           ("pmemsave", {"val": 0, "size": 1024 * MIB, "filename": str(path)}), ("cont", {})):
                    stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                    stream.flush()
                    while "return" not in (answer := json.loads(stream.readline())):
                        if "error" in answer and command != "qmp_capabilities":
                            sys.exit(f"guest: {answer}")
                        if "error" in answer:
                            break
                time.sleep(wait_s)

    def end(self):
        self.process.kill()
        self.process.wait()


def change(image, base, cache, added, removed, number):
    """A few days of a guest, in a copy of the image it had before."""
    run("cp", "--sparse=always", base, image)
    with tempfile.TemporaryDirectory(dir=image.parent) as directory:
        scratch = pathlib.Path(directory)
        new, old = scratch / "new", scratch / "old"
        for folder, packages in ((new, added), (old, removed)):
            folder.mkdir()
            unpack(packages, cache, folder)
        (new / "var/tmp").mkdir(parents=True, exist_ok=True)
        (new / "var/tmp/removed").write_text(
            "".join(f"'{path.relative_to(old)}'\n" for path in sorted(old.rglob("*")) if not path.is_dir()))
        run("tar", "-cf", scratch / "new.tar", "--owner=0", "--group=0", "--sort=name", ".", cwd=new)
        guest = Guest(scratch, cache, image, str(number), [scratch / "new.tar"])
        guest.wait_for("guest: changed")
        if guest.process.wait(timeout=BOOT_TIMEOUT_S) != 0:
            sys.exit("guest: QEMU failed")


def make_memory(folder, cache, disk):
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        scratch = pathlib.Path(directory)
        run("cp", "--sparse=always", disk, scratch / "disk")
        guest = Guest(scratch, cache, scratch / "disk", "live")
        try:
            guest.wait_for("guest: warm")
            time.sleep(RAM_WARM_S)
            # Under another name first: ram1.img says that the data set is complete.
            guest.save_memory((folder / "ram0.img", RAM_APART_S), (folder / "ram1.tmp", 0))
        finally:
            guest.end()
    os.rename(folder / "ram1.tmp", folder / "ram1.img")


def blocks_of(image):
    """Of the blocks that are not zero, a hash of each."""
    found = set()
    with open(image, "rb") as file:
        while chunk := file.read(256 * PAGE):
            found.update(hash(block) for block in (chunk[i:i + PAGE] for i in range(0, len(chunk), PAGE)) if block != ZERO)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    folder = options.directory
    folder.mkdir(parents=True, exist_ok=True)
    size = (1024 if options.small else 4096) * MIB
    cache = folder / "packages"
    source = random.Random(1)
    with tempfile.TemporaryDirectory(dir=folder) as root:
        unpack(BASE if options.small else BASE + LARGE, cache, pathlib.Path(root))
        make_first(folder / "gen0.img", pathlib.Path(root), size, source)
    known = blocks_of(folder / "gen0.img")
    print(f"gen0: {len(known) * PAGE // MIB} MiB of different blocks", flush=True)
    for number, added in enumerate(ADDED if options.small else ADDED_LARGE, 1):
        image = folder / f"gen{number}.img"
        change(image, folder / f"gen{number - 1}.img", cache, added, REMOVED[number - 1], number)
        now = blocks_of(image)
        print(f"gen{number}: {100 * len(now - known) / len(now):.1f} % of the blocks in use are new", flush=True)
        known |= now
    make_memory(folder, cache, folder / "gen3.img")


if __name__ == "__main__":
    main()
