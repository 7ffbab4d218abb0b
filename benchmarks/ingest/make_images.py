#!/usr/bin/env python3
"""Makes the data set of the ingest benchmark from Debian packages: no root rights, no mounts, the same bytes every time
for the same package versions.

    make_images.py DIRECTORY [--full]

gen0.img is an ext4 root image of 4 GiB with about 1.3 GiB in use; gen1..gen3 each change 5 to 9 % of that (packages added
and removed, logs grown, a database updated in place); how much is printed. ram0.img and ram1.img stand for a guest's
memory of 1 GiB: a third of it pages of the disk's files in runs, as the page cache has them, a sixth processes' heaps, the
rest free; ram1 is a little later. They are composed, not taken from a guest. --small: a quarter of everything.
"""

import argparse
import os
import pathlib
import random
import subprocess
import tempfile

MIB = 1024 * 1024
PAGE = 4096
ZERO = bytes(PAGE)
BASE = ["python3.11-minimal", "libpython3.11-stdlib", "libpython3.11-minimal", "perl-base", "perl-modules-5.36", "libperl5.36",
        "git", "vim-runtime", "bash", "coreutils", "libc6", "libc-bin", "locales", "openssl", "libssl3", "systemd", "dpkg", "apt",
        "cpp-12"]
LARGE = ["gcc-12", "g++-12", "libgcc-12-dev", "libstdc++-12-dev", "libicu72", "cmake", "cmake-data", "libllvm14",
                    "groff-base", "python3-docutils", "tzdata", "binutils-x86-64-linux-gnu",
         "libllvm16", "libclang-cpp16", "golang-1.19-src", "golang-1.19-go", "mariadb-server-core"]
ADDED = [["sqlite3", "libsqlite3-0", "rsync"], ["tmux", "libxml2", "nano"], ["wget", "libglib2.0-0", "zstd"]]
ADDED_LARGE = [["postgresql-15", "postgresql-client-15"], ["libstd-rust-1.63", "libqt5core5a", "rustc"],
               ["libwireshark16", "libwireshark-data"]]
REMOVED = [[], ["libpython3.11-stdlib"], ["git"]]


def run(*command, **options):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)


def files_of(folder):
    """Paths of the files below it as the image has them, and where they are here."""
    for directory, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                yield "/" + os.path.relpath(path, folder), path


def unpack(names, cache, root):
    """Downloads what is missing and unpacks it."""
    cache.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not list(cache.glob(f"{name}_*.deb")):
            run("apt-get", "download", "-q", name, cwd=cache, stderr=subprocess.DEVNULL)
        run("dpkg-deb", "-x", str(sorted(cache.glob(f"{name}_*.deb"))[-1]), str(root))


def text(source, size):
    """Log-like text."""
    words = ["session", "opened", "closed", "unit", "started", "failed", "error", "device", "eth0", "root", "kernel:"]
    lines = []
    while size > 0:
        line = f"Nov 21 {source.randrange(24):02}:{source.randrange(60):02} host " + " ".join(source.choices(words, k=9)) + "\n"
        lines.append(line)
        size -= len(line)
    return "".join(lines).encode()


def database(source, size):
    """Pages of half-filled records."""
    return b"".join(source.randbytes(PAGE // 4) + bytes(PAGE // 4) + b"record " * (PAGE // 14) + bytes(PAGE // 2 - PAGE // 14 * 7)
                    for _ in range(size // PAGE))


def make_first(image, root, size, source):
    (root / "var/log").mkdir(parents=True, exist_ok=True)
    (root / "var/lib/app").mkdir(parents=True, exist_ok=True)
    (root / "var/log/syslog").write_bytes(text(source, size // 200))
    (root / "var/lib/app/data.db").write_bytes(database(source, size // 100))
    with open(image, "wb") as file:
        file.truncate(size)
    run("mke2fs", "-q", "-t", "ext4", "-U", "6b8b4567-327b-23c6-643c-986966334873", "-E", "hash_seed="
        "6b8b4567-327b-23c6-643c-986966334874", "-d", str(root), str(image), env=os.environ | {"E2FSPROGS_FAKE_TIME": "1700000000"})


def debugfs(image, commands):
    run("debugfs", "-w", "-f", "/dev/stdin", str(image), input="\n".join(commands).encode(), stderr=subprocess.DEVNULL)


def ask_debugfs(image, question):
    return subprocess.run(["debugfs", "-R", question, str(image)], check=True, capture_output=True).stdout.decode()


def update_database(image, source):
    """Writes to a quarter of the database's pages where they are."""
    blocks = [int(word) for word in ask_debugfs(image, "blocks /var/lib/app/data.db").split()]
    with open(image, "r+b") as file:
        for block in source.sample(blocks, len(blocks) // 4):
            file.seek(block * PAGE)
            file.write(source.randbytes(PAGE // 4))


def change(image, base, cache, added, removed, source, size):
    """What a few days do to a root image, written with debugfs into a copy of it."""
    run("cp", "--sparse=always", str(base), str(image))
    with tempfile.TemporaryDirectory(dir=image.parent) as scratch:
        new, old, log = (pathlib.Path(scratch) / name for name in ("new", "old", "log"))
        for folder, packages in ((new, added), (old, removed)):
            folder.mkdir()
            unpack(packages, cache, folder)
        commands = [f"rm {inside}" for inside, _ in files_of(old)]
        folders = sorted({os.path.dirname(inside) for inside, _ in files_of(new)})
        every = sorted({str(parent) for folder in folders for parent in [pathlib.Path(folder), *pathlib.Path(folder).parents]})
        commands += [f"mkdir {folder}" for folder in every if folder != "/"]
        commands += [f"write {path} {inside}" for inside, path in files_of(new)]
        ask_debugfs(image, f"dump /var/log/syslog {log}")
        with open(log, "ab") as file:
            file.write(text(source, size // 200))
        debugfs(image, commands + ["rm /var/log/syslog", f"write {log} /var/log/syslog"])
    update_database(image, source)


def make_ram(path, disk, size, source):
    runs, count = [], 0
    with open(disk, "rb") as file:
        disk_pages = os.path.getsize(disk) // PAGE
        while count < size // PAGE // 3:
            file.seek(source.randrange(disk_pages) * PAGE)
            pages = file.read(PAGE * source.choice((1, 4, 8, 16, 32)))
            pages = b"".join(pages[i:i + PAGE] for i in range(0, len(pages), PAGE) if pages[i:i + PAGE] != ZERO)
            runs.append(pages)
            count += len(pages) // PAGE
    for _ in range(size // PAGE // 6):
        pointers = b"".join(source.randrange(1 << 46).to_bytes(8, "little") for _ in range(32))
        runs.append(pointers * 8 + bytes(PAGE // 2))
        count += 1
    while count < size // PAGE:
        free = min(source.choice((1, 16, 64)), size // PAGE - count)
        runs.append(bytes(free * PAGE))
        count += free
    source.shuffle(runs)
    with open(path, "wb") as ram:
        ram.write(b"".join(runs)[:size])


def change_ram(path, base, source):
    content = bytearray(base.read_bytes())
    for _ in range(len(content) // PAGE // 25):
        at = source.randrange(len(content) // PAGE) * PAGE
        content[at:at + 512] = source.randbytes(512)
    path.write_bytes(content)


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
        change(image, folder / f"gen{number - 1}.img", cache, added, REMOVED[number - 1], source, size)
        now = blocks_of(image)
        print(f"gen{number}: {100 * len(now - known) / len(now):.1f} % of the blocks in use are new", flush=True)
        known |= now
    make_ram(folder / "ram0.img", folder / "gen0.img", size // 4, source)
    change_ram(folder / "ram1.img", folder / "ram0.img", source)


if __name__ == "__main__":
    main()
