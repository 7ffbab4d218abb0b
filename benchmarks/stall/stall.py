#!/usr/bin/env python3
"""How long a guest stands still for a snapshot: Stillpoint against stop + migrate, savevm, and SIGSTOP + copy + zstd of the
disk. One guest at a time, all methods in turn on it, under the same load. Promises: benchmarks/BUDGETS.md.

    bench-stall [--memory 512M,2G] [--disk 1G,64G] [--load idle,writing] [--repeat N] [--json FILE] [--chart FILE.svg]

"pause" is by QEMU's own STOP and RESUME events (SIGSTOP: by our clock), "freeze" from the quiesce to the thaw as the host
sees it, "gap" the longest time for which a writer in the guest could not write, by the guest's clock, which stands still
while QEMU has stopped the guest: what it shows of a pause is SIGSTOP's only, of a freeze all.
"""

import argparse
import json
import math
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
BUILD = pathlib.Path(sys.argv[0]).absolute().parents[1]
if (BUILD / "bin/still").exists():  # Started as build/release/bin/bench-stall.
    os.environ.setdefault("STILL_BUILD", str(BUILD))
sys.path[:0] = [str(HERE), str(PROJECT / "tests/e2e")]

from monitor import Monitor, savevm, stop_and_migrate, stream_to_nothing, write_wrapper  # noqa: E402
from still_host import Host, wait_for  # noqa: E402

OURS, OURS_FIRST, NO_PRESYNC = "ours", "ours (first)", "ours, no pre-sync"
MIGRATE, SAVEVM, SIGSTOP, NOTHING = "stop+migrate", "savevm", "SIGSTOP+copy+zstd", "QEMU to /dev/null"
FILESYSTEM_MIB = 1024


def mebibytes(size):
    return int(size[:-1]) * {"M": 1, "G": 1024}[size[-1]]


class Guest:
    """A session with its memory filled, its disk in a qcow2 file of a given size, and a gap meter in it."""

    def __init__(self, host, memory, disk, load):
        self.host, self.load = host, load
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="stall-"))  # Short, for the socket's path.
        raw = host.disk("disk", FILESYSTEM_MIB)
        self.disk = host.directory / "disk.qcow2"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self.disk], check=True)
        subprocess.run(["qemu-img", "resize", "-q", self.disk, disk], check=True)
        raw.unlink()
        wrapper = self.directory / "qemu"
        write_wrapper(wrapper, self.directory / "qmp")
        workload = "gap-meter,record-writer" if load == "writing" else "gap-meter"
        host.boot("web", disks=[self.disk], memory=memory, workload=workload, STILL_QEMU=str(wrapper))
        self.pid = int(host.session("web")["pid"])
        self.fill(mebibytes(memory) * 3 // 4 - 128)
        self.monitor = Monitor(self.directory / "qmp")

    def close(self):
        self.monitor.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def fill(self, mib):
        """Pages that no compression makes nothing of; with the load, they are rewritten all the time."""
        start = f"counter --state /run/fill --mib {mib} >/dev/null 2>&1 & echo $!"
        pid = self.host.guest("web", "sh", "-c", start).strip()
        report = ("sh", "-c", "test -e /run/fill && counter --report --state /run/fill || echo '{}'")
        wait_for(lambda: json.loads(self.host.guest("web", *report)).get("count", 0) > 0, "a full memory", 300)
        if self.load == "idle":
            self.host.guest("web", "kill", "-STOP", pid)

    def gaps(self, since=0):
        return json.loads(self.host.guest("web", "gap-meter", "--report", "--since", str(since)))

    def measure(self, method):
        since = self.gaps()["now_ns"]
        row = {"method": method} | METHODS[method](self)
        gaps = self.gaps(since)
        return row | {"gap_ms": gaps["write"]["longest_ns"] / 1e6, "schedule_gap_ms": gaps["schedule"]["longest_ns"] / 1e6}

    def ours(self, *options):
        begun = time.monotonic()
        snapshot = self.host.json("snapshot", "web", *options)
        wall = time.monotonic() - begun
        windows = snapshot["windows"]
        if windows["memory_method"] != "background":
            sys.exit("this host cannot save memory while the guest runs (see `still doctor`)")
        phases = {phase["name"]: int(phase.get("duration_us", 0)) / 1e3 for phase in windows["phases"]}
        return {
            "pause_ms": int(windows["pause_us"]) / 1e3,
            "freeze_ms": int(windows.get("freeze_us", 0)) / 1e3,
            "guest_freeze_ms": int(windows.get("guest_freeze_us", 0)) / 1e3,
            "phases_ms": phases,
            "drain_s": int(snapshot["drain"]["duration_us"]) / 1e6,
            "wall_s": wall,
        }

    def sigstop(self):
        copy = self.host.directory / "copy.qcow2"
        begun = time.monotonic()
        os.kill(self.pid, signal.SIGSTOP)
        try:
            subprocess.run(["cp", "--sparse=always", "--reflink=never", self.disk, copy], check=True)
            subprocess.run(["zstd", "-q", "-1", "-T0", "--rm", copy], check=True)
        finally:
            os.kill(self.pid, signal.SIGCONT)
        pause = time.monotonic() - begun
        (self.host.directory / "copy.qcow2.zst").unlink()
        return {"pause_ms": pause * 1e3}

    def migrate(self):
        return {"pause_ms": stop_and_migrate(self.monitor, self.host.directory / "memory") * 1e3}


METHODS = {
    OURS_FIRST: Guest.ours,
    OURS: Guest.ours,
    NO_PRESYNC: lambda guest: guest.ours("--skip-presync"),
    MIGRATE: Guest.migrate,
    SAVEVM: lambda guest: {"pause_ms": savevm(guest.monitor) * 1e3},
    SIGSTOP: Guest.sigstop,
    NOTHING: lambda guest: {"drain_s": stream_to_nothing(guest.monitor)},
}


def run_guest(memory, disk, load, repeat, methods):
    rows = []
    with Host() as host:
        guest = Guest(host, memory, disk, load)
        try:
            for turn in range(repeat):
                for method in METHODS:
                    if methods and method not in methods:
                        continue
                    # The first snapshot is taken once; a pre-sync only means something where somebody writes.
                    if (method == OURS_FIRST and turn > 0) or (method == NO_PRESYNC and load != "writing"):
                        continue
                    row = {"memory": memory, "disk": disk, "load": load, "turn": turn} | guest.measure(method)
                    rows.append(row)
                    shown = " ".join(f"{key} {row[key]:.1f}" for key in ("pause_ms", "freeze_ms", "gap_ms", "drain_s") if key in row)
                    print(f"  {memory:>5} {disk:>4} {load:8} {method:18} {shown}", flush=True)
        finally:
            guest.close()
    return rows


def values(rows, key, **wanted):
    return [row[key] for row in rows if key in row and all(row[name] == value for name, value in wanted.items())]


def percentile(numbers, share):
    ordered = sorted(numbers)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def summary(rows):
    """(memory, disk, load, method, what, its median, p99 and number), sorted."""
    table = []
    for memory, disk, load, method in sorted({(r["memory"], r["disk"], r["load"], r["method"]) for r in rows}):
        for key in ("pause_ms", "freeze_ms", "gap_ms", "drain_s"):
            numbers = values(rows, key, memory=memory, disk=disk, load=load, method=method)
            if numbers:
                of_key = {"median": statistics.median(numbers), "p99": percentile(numbers, 0.99), "n": len(numbers)}
                table.append((memory, disk, load, method, key, of_key))
    return table


def promises(rows):
    """(promise, measured, limit, held) of what this run can tell."""
    found = []

    def check(text, measured, limit, held):
        found.append({"promise": text, "measured": round(measured, 2), "limit": limit, "held": held})

    def median(key, **wanted):
        numbers = values(rows, key, **wanted)
        return statistics.median(numbers) if numbers else None

    for memory, limit in (("512M", 30), ("2G", 60)):
        for method in (OURS_FIRST, OURS):
            pause = median("pause_ms", memory=memory, method=method)
            if pause is not None:
                check(f"pause at {memory}, {method}, ms", pause, limit, pause <= limit)
    small, large = median("pause_ms", disk="1G", method=OURS), median("pause_ms", disk="64G", method=OURS)
    if small and large:
        check("pause, 64 GiB disk : 1 GiB disk", large / small, 1.2, large / small <= 1.2)
    for method in (MIGRATE, SIGSTOP, SAVEVM):
        for memory in ("512M", "2G"):
            ours, other = median("pause_ms", memory=memory, method=OURS), median("pause_ms", memory=memory, method=method)
            if ours and other:
                limit = 15 if memory == "2G" and method != SAVEVM else None
                check(f"{method} : ours, pause at {memory}", other / ours, limit, limit is None or other / ours >= limit)
    with_presync = median("guest_freeze_ms", method=OURS, load="writing")
    without = median("guest_freeze_ms", method=NO_PRESYNC, load="writing")
    if with_presync and without:
        check("freeze in the guest, with pre-sync : without", with_presync / without, 0.5, with_presync / without <= 0.5)
    for memory in ("512M", "2G"):
        ours, qemu = median("drain_s", memory=memory, method=OURS), median("drain_s", memory=memory, method=NOTHING)
        if ours and qemu:
            limit = 1.3 if memory == "2G" else None
            check(f"drain : QEMU to /dev/null, at {memory}", ours / qemu, limit, limit is None or ours / qemu <= limit)
    return found


def chart(table):
    """Bars of the median pause and freeze, a line to the longest; the axis is logarithmic."""
    bars = [entry for entry in table if entry[4] in ("pause_ms", "freeze_ms") and entry[5]["median"] > 0]
    left, width, step = 330, 560, 18
    top = math.ceil(math.log10(max(entry[5]["p99"] for entry in bars)))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 110}" height="{step * len(bars) + 50}" '
        'font-family="sans-serif" font-size="11">'
    ]

    def x(milliseconds):
        return left + width * max(0, math.log10(max(milliseconds, 1))) / top

    for power in range(top + 1):
        at = x(10**power)
        lines.append(f'<line x1="{at}" y1="20" x2="{at}" y2="{step * len(bars) + 24}" stroke="#ccc"/>')
        lines.append(f'<text x="{at}" y="14" text-anchor="middle">{10**power} ms</text>')
    for index, (memory, disk, load, method, key, numbers) in enumerate(bars):
        y = 24 + index * step
        colour = "#2a6f97" if method.startswith("ours") else "#b56576"
        if key == "freeze_ms":
            colour = "#8ab6d6"
        name = f"{memory} RAM, {disk} disk, {load}: {method}, {key.split('_')[0]}"
        lines.append(f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{name}</text>')
        lines.append(f'<rect x="{left}" y="{y}" width="{max(1, x(numbers["median"]) - left)}" height="12" fill="{colour}"/>')
        lines.append(f'<line x1="{x(numbers["median"])}" y1="{y + 6}" x2="{x(numbers["p99"])}" y2="{y + 6}" stroke="#333"/>')
        lines.append(f'<text x="{x(numbers["p99"]) + 4}" y="{y + 11}">{numbers["median"]:.0f}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="512M,2G")
    parser.add_argument("--disk", default="1G,64G")
    parser.add_argument("--load", default="idle,writing")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--method", action="append", default=[], choices=list(METHODS), help="only these; may be repeated")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--chart", type=pathlib.Path)
    arguments = parser.parse_args()
    rows = []
    load_before = os.getloadavg()[0]
    for memory in arguments.memory.split(","):
        for disk in arguments.disk.split(","):
            for load in arguments.load.split(","):
                rows += run_guest(memory, disk, load, arguments.repeat, arguments.method)
    table = summary(rows)
    kept = promises(rows)
    print(f"\n{'RAM':>5} {'disk':>4} {'load':8} {'method':18} {'':10} {'median':>9} {'p99':>9}   n")
    for memory, disk, load, method, key, numbers in table:
        shown = f"{numbers['median']:9.1f} {numbers['p99']:9.1f} {numbers['n']:3}"
        print(f"{memory:>5} {disk:>4} {load:8} {method:18} {key:10} {shown}")
    print(f"\nload of the machine before: {load_before:.1f}")
    for promise in kept:
        verdict = "held  " if promise["held"] else "BROKEN"
        limit = "" if promise["limit"] is None else f" (limit {promise['limit']})"
        print(f"  {verdict} {promise['promise']}: {promise['measured']}{limit}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"load": load_before, "rows": rows, "promises": kept}, indent=1) + "\n")
    if arguments.chart:
        arguments.chart.write_text(chart(table))
    return 0 if all(promise["held"] for promise in kept) else 1


if __name__ == "__main__":
    sys.exit(main())
