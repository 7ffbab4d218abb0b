#!/usr/bin/env python3
"""How long a guest stands still for a snapshot, and how slow it is while memory is drained: Stillpoint against stop + migrate,
savevm, and SIGSTOP + copy + zstd of the disk. One guest at a time, all methods in turn on it, under the same load. Promises:
benchmarks/BUDGETS.md.

    bench-stall [--memory 512M,2G] [--disk 1G,64G] [--load idle,writing] [--repeat N] [--json FILE] [--chart FILE.svg]
    bench-stall --pages small --memory 512M --disk 1G ...   guest memory in 4 KiB pages, or in explicit huge ones
    bench-stall --libvirt --memory 1G                       libvirt's live snapshot with memory, and ours; if it is installed
    bench-stall --incremental 8G                            a disk of which 1 % has changed
    bench-stall --read FILE...                              the summary of earlier runs' JSON together

"pause" is by QEMU's own STOP and RESUME events (SIGSTOP: by our clock). "stall" is the freeze window without the write-back
before it, in which the guest writes on: what the host knows of a writer's wait. "protect" is what the memory engine does in the
pause. "gap" is the longest time for which a writer in
the guest could not write, by the guest's clock, which stands still while QEMU has stopped the guest: what it shows of a pause is
SIGSTOP's only, of a freeze all. "stream" is from RESUME to the end of QEMU's own memory stream; until then the guest's first write
to a page may wait. "late" is how late, at the 99th percentile, a thread in the guest was that sleeps 2 ms and writes to another page
of its memory: during the stream, during the whole drain, and, as "undisturbed", while nothing happens.
"""

import argparse
import ctypes
import json
import math
import os
import pathlib
import random
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

import libvirt  # noqa: E402
from monitor import Monitor, savevm, stop_and_migrate, stream_to_nothing, stream_to_reader, write_wrapper  # noqa: E402
from still_host import GUEST, Host, wait_for  # noqa: E402

OURS, OURS_FIRST, UNDISTURBED = "ours", "ours (first)", "undisturbed"
DIRTY, DIRTY_NO_PRESYNC = "ours, dirty cache", "ours, dirty cache, no pre-sync"
FULL, CHANGED = "disk, first", "disk, 1 % changed"
LIBVIRT = "libvirt --live --memspec"
MIGRATE, SAVEVM, SIGSTOP, NOTHING = "stop+migrate", "savevm", "SIGSTOP+copy+zstd", "QEMU to /dev/null"
READER = "QEMU to a socket and cat"
FILESYSTEM_MIB = 1024
UNDISTURBED_SECONDS = 5
KEYS = ("pause_ms", "protect_ms", "stall_ms", "guest_freeze_ms", "gap_ms", "late_stream_ms", "late_drain_ms", "late_ms", "stream_s", "drain_s")
PR_SET_THP_DISABLE = 41  # prctl(2); children inherit it, also through execve(2).


def mebibytes(size):
    return int(size[:-1]) * {"M": 1, "G": 1024}[size[-1]]


class Guest:
    """A session with its memory filled, its disk in a qcow2 file of a given size, and a gap meter in it."""

    def __init__(self, host, memory, disk, load, pages, without_engine):
        self.host, self.load = host, load
        self.dirty_mib = 96 if mebibytes(memory) < 1024 else 192  # Of page cache that is not yet written back.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="stall-"))  # Short, for the socket's path.
        raw = host.disk("disk", FILESYSTEM_MIB)
        self.disk = host.directory / "disk.qcow2"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, self.disk], check=True)
        subprocess.run(["qemu-img", "resize", "-q", self.disk, disk], check=True)
        raw.unlink()
        wrapper = self.directory / "qemu"
        write_wrapper(wrapper, self.directory / "qmp", explicit_pages(memory) if pages == "explicit" else "")
        if pages == "small":
            without_large_pages(True)
        workload = "gap-meter,record-writer" if load == "writing" else "gap-meter"
        engine = "off" if pages == "explicit" or without_engine else "on"
        host.boot(
            "web", disks=[self.disk], memory=memory, workload=workload, STILL_QEMU=str(wrapper), STILL_MEMORY_ENGINE=engine
        )
        without_large_pages(False)
        self.pid = int(host.session("web")["pid"])
        # As much dirty page cache as a larger guest may have.
        limit = 4 * self.dirty_mib << 20
        host.guest("web", "sh", "-c", f"cd /proc/sys/vm && echo {limit} | tee dirty_bytes dirty_background_bytes")
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

    def gaps(self, since=0, until=1 << 63):
        return json.loads(self.host.guest("web", "gap-meter", "--report", "--since", str(since), "--until", str(until)))

    def late(self, since, until):
        """How late the memory meter's steps were at the 99th percentile between two moments of the host's clock."""
        before = time.time()
        now = self.gaps()["now_ns"]
        offset = now - (before + time.time()) / 2 * 1e9
        meter = self.gaps(int(since * 1e9 + offset), int(until * 1e9 + offset))["memory"]
        return meter["late_p99_ns"] / 1e6

    def measure(self, method):
        if method in (DIRTY, DIRTY_NO_PRESYNC):
            self.host.guest("web", "dd", "if=/dev/zero", "of=/data/dirty", "bs=1M", f"count={self.dirty_mib}", "conv=notrunc")
        since = self.gaps()["now_ns"]
        row = {"method": method} | METHODS[method](self)
        gaps = self.gaps(since)
        return row | {"gap_ms": gaps["write"]["longest_ns"] / 1e6, "schedule_gap_ms": gaps["schedule"]["longest_ns"] / 1e6}

    def undisturbed(self):
        begun = time.time()
        time.sleep(UNDISTURBED_SECONDS)
        return {"late_ms": self.late(begun, time.time())}

    def ours(self, *options):
        self.monitor.stamps()
        snapshot = self.host.json("snapshot", "web", *options)
        ended = time.time()
        windows = snapshot["windows"]
        if windows["memory_method"] not in ("engine", "background"):
            sys.exit("this host cannot save memory while the guest runs (see `still doctor`)")
        phases = {phase["name"]: int(phase.get("duration_us", 0)) / 1e3 for phase in windows["phases"]}
        stamps = self.monitor.stamps()
        thawed = stamps["RESUME"] + phases["thaw"] / 1e3
        row = {
            "pause_ms": int(windows["pause_us"]) / 1e3,
            "protect_ms": int(windows.get("protecting_us", 0)) / 1e3,
            "stall_ms": (int(windows.get("freeze_us", 0)) - int(windows.get("guest_presync_us", 0))) / 1e3,
            "presync_ms": int(windows.get("guest_presync_us", 0)) / 1e3,
            "guest_freeze_ms": int(windows.get("guest_freeze_us", 0)) / 1e3,
            "phases_ms": phases,
            "drain_s": int(snapshot["drain"]["duration_us"]) / 1e6,
            "late_drain_ms": self.late(thawed, ended),
        }
        if windows["memory_method"] == "background":
            row["stream_s"] = stamps["MIGRATION"] - stamps["RESUME"]
            row["late_stream_ms"] = self.late(thawed, stamps["MIGRATION"])
        return row

    def stream(self, out):
        """QEMU's own background snapshot, without us."""
        begun = time.time()
        pause, seconds = out(self.monitor)
        return {"pause_ms": pause * 1e3, "stream_s": seconds, "late_stream_ms": self.late(begun, time.time())}

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
    DIRTY: Guest.ours,
    DIRTY_NO_PRESYNC: lambda guest: guest.ours("--skip-presync"),
    UNDISTURBED: Guest.undisturbed,
    MIGRATE: Guest.migrate,
    SAVEVM: lambda guest: {"pause_ms": savevm(guest.monitor) * 1e3},
    SIGSTOP: Guest.sigstop,
    NOTHING: lambda guest: guest.stream(stream_to_nothing),
    READER: lambda guest: guest.stream(stream_to_reader),
}
WRITING_ONLY = (DIRTY, DIRTY_NO_PRESYNC)  # A pre-sync only means something where somebody writes.


def without_large_pages(on):
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_THP_DISABLE, int(on), 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")


def explicit_pages(memory):
    """QEMU options for memory of huge pages, under the name that a capture expects; vm.nr_hugepages must have them. Without the
    memory engine, which gives the machine its own memory."""
    return (
        f"-object memory-backend-memfd,id=pc.ram,size={memory},hugetlb=on,x-use-canonical-path-for-ramblock-id=off "
        "-machine memory-backend=pc.ram"
    )


def shown(row):
    print(" ", *(f"{row[key]:{size}}" for key, size in (("memory", 5), ("disk", 4), ("load", 8), ("method", 31))), end=" ")
    print(" ".join(f"{key} {row[key]:.1f}" for key in KEYS if key in row), flush=True)
    return row


def run_guest(memory, disk, load, arguments):
    rows = []
    cell = {"memory": memory, "disk": disk, "load": load, "pages": arguments.pages}
    with Host() as host:
        guest = Guest(host, memory, disk, load, arguments.pages, arguments.without_engine)
        try:
            for turn in range(arguments.repeat):
                for method in METHODS:
                    if arguments.method and method not in arguments.method:
                        continue
                    # The first snapshot is taken once.
                    if (method == OURS_FIRST and turn > 0) or (method in WRITING_ONLY and load != "writing"):
                        continue
                    rows.append(shown(cell | {"turn": turn} | guest.measure(method)))
        finally:
            guest.close()
    return rows


def run_libvirt(memory, arguments):
    """The same guest with the same writers, one after the other: only one of the two can own a QEMU."""
    rows = []
    cell = {"memory": memory, "disk": "1G", "load": "writing", "pages": "large"}
    with Host() as host:
        raw = host.disk("disk", FILESYSTEM_MIB)
        with libvirt.Domain(GUEST, raw, mebibytes(memory), "gap-meter,record-writer,counter") as domain:
            for turn in range(arguments.repeat):
                rows.append(shown(cell | {"method": LIBVIRT, "turn": turn, "pause_ms": domain.snapshot() * 1e3}))
        host.boot("web", disks=[raw], memory=memory, workload="gap-meter,record-writer,counter")
        for turn in range(arguments.repeat):
            pause = int(host.json("snapshot", "web")["windows"]["pause_us"]) / 1e3
            rows.append(shown(cell | {"method": OURS, "turn": turn, "pause_ms": pause}))
    return rows


PIECE = 64 << 10  # The grain of a bitmap.


def content(number, filler):
    """PIECE bytes that are like no other, and compress well, which spares the repository."""
    return (number.to_bytes(8, "little") + filler[8:]) * (PIECE // len(filler))


def run_incremental(size, repeat):
    """A disk of the guest that it does not use, so that what changes is known exactly: 1 % of it, in pieces all over."""
    rows = []
    pieces = (mebibytes(size) << 20) // PIECE
    filler = os.urandom(4096)
    with Host() as host, tempfile.TemporaryDirectory(prefix="stall-") as directory:
        big, source, wrapper = host.directory / "big.raw", pathlib.Path(directory) / "source", pathlib.Path(directory) / "qemu"
        with big.open("wb", buffering=1 << 20) as file:
            for number in range(pieces):
                file.write(content(number, filler))
        write_wrapper(wrapper, f"{directory}/qmp")
        host.boot("web", disks=[host.disk("web"), big], workload="", STILL_QEMU=str(wrapper))
        monitor = Monitor(f"{directory}/qmp")
        for turn in range(repeat + 1):
            if turn > 0:
                for number in random.Random(turn).sample(range(pieces), pieces // 100):
                    source.write_bytes(content(number + turn * pieces, filler))
                    monitor.write_disk("disk1-dev", number * PIECE, source)
            snapshot = host.json("snapshot", "web", "--disk-only")
            drain = {"drain_s": int(snapshot["drain"]["duration_us"]) / 1e6, "read_bytes": int(snapshot["drain"]["bytes_read"])}
            cell = {"memory": "256M", "disk": size, "load": "idle", "pages": "large", "turn": turn}
            rows.append(shown(cell | {"method": FULL if turn == 0 else CHANGED} | drain))
        monitor.close()
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
        for key in KEYS:
            numbers = values(rows, key, memory=memory, disk=disk, load=load, method=method)
            if numbers:
                of_key = {"median": statistics.median(numbers), "p99": percentile(numbers, 0.99), "n": len(numbers)}
                table.append((memory, disk, load, method, key, of_key))
    return table


def promises(rows):
    """(promise, measured, limit, held) of what this run can tell."""
    found = []

    def check(text, measured, limit, held):
        found.append({"promise": text, "measured": round(measured, 3), "limit": limit, "held": held})

    def median(key, **wanted):
        numbers = values(rows, key, **wanted)
        return statistics.median(numbers) if numbers else None

    for memory, limit in (("512M", 30), ("2G", 60)):
        for method in (OURS_FIRST, OURS):
            pause = median("pause_ms", memory=memory, method=method)
            if pause is not None:
                check(f"pause at {memory}, {method}, ms", pause, limit, pause <= limit)
    for memory in ("512M", "2G"):
        small, large = (median("pause_ms", memory=memory, disk=disk, method=OURS) for disk in ("1G", "64G"))
        if small and large:
            check(f"pause, 64 GiB disk : 1 GiB disk, {memory}", large / small, 1.2, large / small <= 1.2)
    for method in (MIGRATE, SIGSTOP, SAVEVM):
        for memory in ("512M", "2G"):
            ours, other = median("pause_ms", memory=memory, method=OURS), median("pause_ms", memory=memory, method=method)
            if ours and other:
                limit = 15 if memory == "2G" and method != SAVEVM else None
                check(f"{method} : ours, pause at {memory}", other / ours, limit, limit is None or other / ours >= limit)

    for memory in ("512M", "2G", "6G"):
        ours, other = median("pause_ms", memory=memory, method=OURS), median("pause_ms", memory=memory, method=READER)
        if ours and other:
            check(f"QEMU's own background snapshot : ours, pause at {memory}", other / ours, None, True)
        protect = median("protect_ms", memory=memory, method=OURS)
        if protect is not None:
            check(f"protecting inside the pause at {memory}, ms", protect, 1, protect <= 1)
    small, large = (median("pause_ms", memory=memory, method=OURS) for memory in ("512M", "6G"))
    if small and large:
        check("pause, 6 GiB : 512 MiB", large / small, 1.2, large / small <= 1.2)

    def ratio(text, numerator, denominator, limit):
        if numerator and denominator:
            check(text, numerator / denominator, limit, limit is None or numerator / denominator <= limit)

    for key in ("gap_ms", "stall_ms", "guest_freeze_ms"):
        ratio(f"{key[:-3]} with pre-sync : without", median(key, method=DIRTY), median(key, method=DIRTY_NO_PRESYNC), 0.5)
    for memory in sorted({row["memory"] for row in rows if row["method"] == LIBVIRT}):
        ours, other = (median("pause_ms", memory=memory, method=method, load="writing") for method in (OURS, LIBVIRT))
        check(f"{LIBVIRT} : ours, pause at {memory}", other / ours, 5, other / ours >= 5)
    for memory, load in (("512M", "idle"), ("512M", "writing"), ("2G", "idle"), ("2G", "writing")):
        same = {"memory": memory, "load": load}
        qemu, still = median("stream_s", method=NOTHING, **same), median("late_ms", method=UNDISTURBED, **same)
        limit = 1.3 if memory == "2G" else None
        ratio(f"memory stream : QEMU to /dev/null, {memory} {load}", median("stream_s", method=OURS, **same), qemu, limit)
        read = median("stream_s", method=READER, **same)
        ratio(f"memory stream : QEMU to a socket and cat, {memory} {load}", median("stream_s", method=OURS, **same), read, 1.3)
        ratio(f"whole drain : QEMU to /dev/null, {memory} {load}", median("drain_s", method=OURS, **same), qemu, None)
        ratio(f"late in the stream : undisturbed, {memory} {load}", median("late_stream_ms", method=OURS, **same), still, 2)
        ratio(f"late in the drain : undisturbed, {memory} {load}", median("late_drain_ms", method=OURS, **same), still, 2)
    for key in ("drain_s", "read_bytes"):
        ratio(f"1 % changed : full, {key}", median(key, method=CHANGED), median(key, method=FULL), 0.03)
    return found


def chart(table):
    """Bars of the median pause, stall and gap, a line to the 99th percentile; the axis is logarithmic."""
    bars = [entry for entry in table if entry[4] in ("pause_ms", "stall_ms", "gap_ms") and entry[5]["median"] > 0]
    left, width, step = 400, 560, 18
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
        if key != "pause_ms":
            colour = {"stall_ms": "#8ab6d6", "gap_ms": "#c9d6df"}[key]
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
    parser.add_argument("--pages", default="large", choices=("large", "small", "explicit"), help="of the guest's memory")
    parser.add_argument("--without-engine", action="store_true", help="memory is saved by QEMU's own stream")
    parser.add_argument("--libvirt", action="store_true", help="only this: libvirt's live snapshot, and ours")
    parser.add_argument("--incremental", metavar="SIZE", help="only this: a disk of that size, of which 1 %% has changed")
    parser.add_argument("--read", type=pathlib.Path, nargs="+", help="measure nothing: JSON of earlier runs")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--chart", type=pathlib.Path)
    arguments = parser.parse_args()
    load_before = os.getloadavg()[0]
    rows = []
    if arguments.read:
        earlier = [json.loads(path.read_text()) for path in arguments.read]
        rows = [row for run in earlier for row in run["rows"]]
        load_before = max(run["load"] for run in earlier)
    elif arguments.libvirt:
        if not libvirt.installed():
            sys.exit("libvirt is not installed (libvirtd, virsh)")
        for memory in arguments.memory.split(","):
            rows += run_libvirt(memory, arguments)
    elif arguments.incremental:
        rows = run_incremental(arguments.incremental, arguments.repeat)
    else:
        for memory in arguments.memory.split(","):
            for disk in arguments.disk.split(","):
                for load in arguments.load.split(","):
                    rows += run_guest(memory, disk, load, arguments)
    table = summary(rows)
    kept = promises(rows)
    print(f"\n{'RAM':>5} {'disk':>4} {'load':8} {'method':31} {'':15} {'median':>9} {'p99':>9}   n")
    for memory, disk, load, method, key, numbers in table:
        figures = f"{numbers['median']:9.2f} {numbers['p99']:9.2f} {numbers['n']:3}"
        print(f"{memory:>5} {disk:>4} {load:8} {method:31} {key:15} {figures}")
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
