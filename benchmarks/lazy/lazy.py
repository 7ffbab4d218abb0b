#!/usr/bin/env python3
"""What lazily restored disks cost, against their targets (benchmarks/BUDGETS.md, "Lazy disks").

    lazy.py [--runs N] [--large GIB]

Time to the agent's first answer of a lazy restore, with a disk of 1 GiB and one of 64 GiB, in turns; the same restore with the
disk copied; and sequential reading through NBD. Prints a table, and one JSON object as its last line. Exits with 1 when a target
is missed. Needs the release build and the guest image.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tests/e2e"))

from still_host import Host, wait_for  # noqa: E402

SIZE_RATIO = 1.2
READ_MB_PER_S = 400


def prepare(host, name, mib):
    """A snapshot of a guest with a disk of that size and some data."""
    host.boot(name, disks=[host.disk(name, mib)], workload="counter")
    host.guest(name, "sh", "-c", "head -c 4000000 /dev/urandom > /data/blob && sync")
    host.still("snapshot", name, "--name", f"{name}-point", "--quiesce", "require")
    host.still("stop", name, "--force")


def restore(host, name, *arguments):
    """Milliseconds from the command's start until the agent had answered."""
    started = time.monotonic()
    host.still("restore", f"{name}-point", "--as", "probe", *arguments)
    elapsed = (time.monotonic() - started) * 1000
    host.still("stop", "probe", "--force")
    host.still("rm", "probe")
    return elapsed


def time_to_agent(host, runs, names):
    """Medians, by disk and kind of restore; in turns, so that all meet the same load."""
    kinds = {"lazy, warm": ["--lazy", "--no-hydrate"], "lazy, cold": ["--lazy", "--no-hydrate", "--cold"],
             "copied, warm": []}
    for name in names:
        restore(host, name, "--lazy", "--no-hydrate")  # The hot image is made once.
    times = {kind: {name: [] for name in names} for kind in kinds}
    for _ in range(runs):
        for kind, arguments in kinds.items():
            for name in names:
                times[kind][name].append(restore(host, name, *arguments))
    return {kind: {name: statistics.median(values) for name, values in by.items()} for kind, by in times.items()}


def half_random(path, mib):
    """Data that compresses about two to one, as a disk's does."""
    source = random.Random(7)
    with open(path, "wb") as out:
        for _ in range(mib):
            out.write(b"".join(source.randbytes(2048) + bytes(source.randbytes(1)) * 2048 for _ in range(256)))


def sequential_read(host, mib=1024):
    """MB/s of nbdcopy: first after the server's start, then the best of three more; with many requests under way and with one."""
    image = host.directory / "read.raw"
    half_random(image, mib)
    host.still("import", image, "--name", "read")
    image.unlink()
    address = host.directory / "nbd.sock"
    server = host.start("serve", "read", "--socket", address)
    try:
        wait_for(address.exists, "the server", 30)
        found = {}
        for label, options in (("many requests", []), ("one request", ["--connections=1", "--requests=1"])):
            speeds = []
            for _ in range(4):
                started = time.monotonic()
                subprocess.run(["nbdcopy", *options, f"nbd+unix:///vda?socket={address}", "null:"], check=True)
                speeds.append(mib * 1.048576 / (time.monotonic() - started))
            found[label] = {"first": speeds[0], "best": max(speeds[1:])}
        return found
    finally:
        server.terminate()
        server.communicate()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--large", type=int, default=64, metavar="GIB")
    arguments = parser.parse_args()
    with Host(timeout=900) as host:
        prepare(host, "small", 1 << 10)
        prepare(host, "large", arguments.large << 10)
        times = time_to_agent(host, arguments.runs, ["small", "large"])
        reads = sequential_read(host)
    for kind, by_disk in times.items():
        ratio = by_disk["large"] / by_disk["small"]
        print(f"{kind:14} 1 GiB {by_disk['small']:8.0f} ms   {arguments.large} GiB {by_disk['large']:8.0f} ms   ratio {ratio:.2f}")
    for label, speeds in reads.items():
        print(f"read, {label:14} first {speeds['first']:6.0f} MB/s   warm {speeds['best']:6.0f} MB/s")
    missed = []
    for kind in ("lazy, warm", "lazy, cold"):
        if times[kind]["large"] / times[kind]["small"] > SIZE_RATIO:
            missed.append(f"{kind}: more than {SIZE_RATIO} times slower with {arguments.large} GiB")
    if reads["many requests"]["best"] < READ_MB_PER_S:
        missed.append(f"reading: less than {READ_MB_PER_S} MB/s")
    for line in missed:
        print(f"MISSED {line}")
    print(json.dumps({"to_agent_ms": times, "read_mb_per_s": reads, "cpus": os.cpu_count(), "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
