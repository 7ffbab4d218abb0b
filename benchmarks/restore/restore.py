#!/usr/bin/env python3
"""How long a restore takes, what forks cost, and what the alternatives take on the same machine in the same run.

    tools/dev guest-image; build/release/bin/bench-restore [--json FILE] [--runs N] [PART...]

PART: hot (forks of 512 MiB and 2 GiB guests), memory (20 forks against 3 independent guests), decompress (reading memory
from the repository against zstd -d), alternatives (cold boot, QEMU's own restore of a whole stream). Default: all.

Needs some 8 GiB of memory. Guests run as they can here (KVM or emulation); times are wall-clock. Exits with 1 when a
promise of benchmarks/BUDGETS.md is broken.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
PROJECT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests/e2e"))

from still_host import BUILD, GUEST, SCRATCH, Host  # noqa: E402

MIB = 1 << 20
FORKS = 20
INDEPENDENT = 3
# What the guests have in their memory beside the kernel: pages that are not zero.
FILL = {512: 300, 2048: 1600}


def spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "n": len(values)}


def fill(mib):
    """A script that fills the guest's /tmp with its own programs, over and over."""
    return (
        f"i=0; while [ $(du -sm /tmp | cut -f1) -lt {FILL[mib]} ];"
        " do cat /usr/sbin/still-agent /usr/bin/record-writer /usr/bin/counter >/tmp/fill$i; i=$((i+1)); done"
    )


def boot(host, name, mib):
    """A session of that size with its memory in use; the seconds until its agent answered."""
    begun = time.monotonic()
    host.boot(name, disks=[host.disk(name, mib=64)], memory=f"{mib}M", workload="")
    seconds = time.monotonic() - begun
    host.still("exec", "--timeout", "120s", name, "--", "sh", "-c", f"mount -o remount,size=95% /tmp; {fill(mib)}")
    return seconds


def hot(runs):
    """Forks on a hot image, one after the other."""
    result = {}
    for mib in FILL:
        with Host(timeout=600) as host:
            host.environment["STILL_HOT_LIMIT"] = "8192"
            boot(host, "web", mib)
            host.still("snapshot", "web", "--name", "point")
            host.still("stop", "web", "--force")
            host.still("restore", "point", "--as", "first")
            host.still("stop", "first", "--force")
            found = {"running_ms": [], "agent_ms": [], "ready_ms": [], "command_ms": [], "command_to_running_ms": []}
            for i in range(runs):
                begun = time.monotonic()
                fork = host.json("restore", "point", "--as", f"fork{i}")
                wall = (time.monotonic() - begun) * 1000
                host.still("stop", f"fork{i}", "--force")
                # still-session counts from its own beginning; what lies before and after is counted as before.
                before = fork["start_us"] - fork["adopted_us"]
                found["running_ms"].append((fork["running_us"] + before) / 1000)
                found["agent_ms"].append((fork["agent_us"] + before) / 1000)
                found["ready_ms"].append(fork["start_us"] / 1000)
                found["command_ms"].append(wall)
                found["command_to_running_ms"].append(wall - (fork["adopted_us"] - fork["running_us"]) / 1000)
            result[f"{mib}M"] = {name: spread(values) for name, values in found.items()}
    growth = result["2048M"]["running_ms"]["median"] / result["512M"]["running_ms"]["median"]
    return {**result, "growth_running_2048_to_512": growth}


def proportional(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def memory_of(host):
    """Bytes that all sessions of the host take: their processes' shares, and what of hot images nobody maps."""
    sessions = host.json("ps")
    pids = list(host.pids().values()) + [int(s["pid"]) for s in sessions if "pid" in s]
    total = sum(proportional(pid, "Pss") for pid in pids)
    mapped = sum(proportional(pid, "Pss_Shmem") for pid in pids)
    resident = sum(image["resident"] for image in host.json("hot")["images"])
    return total + max(0, resident - mapped)


def memory():
    """20 forks of a 512 MiB guest against 3 independent ones."""
    with Host(timeout=600) as host:
        for i in range(INDEPENDENT):
            boot(host, f"web{i}", 512)
        independent = memory_of(host)
        host.still("snapshot", "web0", "--name", "point")
        for i in range(INDEPENDENT):
            host.still("stop", f"web{i}", "--force")
        begun = time.monotonic()
        host.still("restore", "point", "--as", "fork", "--count", FORKS)
        seconds = time.monotonic() - begun
        forks = memory_of(host)
    return {
        "independent_mib": independent / MIB,
        "forks_mib": forks / MIB,
        "ratio": forks / independent,
        "forks_ready_s": seconds,
    }


def cost(work):
    """Wall seconds, and processor seconds of the processes that it ran."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.monotonic()
    work()
    wall = time.monotonic() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def payload(path, size):
    """Programs and libraries of this host: bytes as a guest's memory holds them."""
    with open(path, "wb") as out:
        for file in sorted(pathlib.Path("/usr/lib").rglob("*")):
            if out.tell() >= size:
                break
            if file.is_file() and not file.is_symlink():
                out.write(file.read_bytes()[: size - out.tell()])
        if out.tell() < size:
            raise RuntimeError(f"/usr/lib has less than {size} bytes")


def decompress(runs):
    """A 1 GiB memory image out of the repository, against as many zstd -d as there are processors."""
    ingest = str(BUILD / "bin/still-ingest")
    processors = os.cpu_count()
    size = 1024 * MIB
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as disk, tempfile.TemporaryDirectory(dir="/dev/shm") as shm:
        source = pathlib.Path(disk) / "payload"
        payload(source, size)
        repository = f"{disk}/repository"
        subprocess.run([ingest, "init", repository], check=True, capture_output=True)
        subprocess.run([ingest, "import", repository, "ram", "ram", source], check=True, capture_output=True)
        part = size // processors // 4096 * 4096
        for i in range(processors):
            with open(f"{disk}/part{i}.zst", "wb") as out, open(source, "rb") as whole:
                whole.seek(i * part)
                subprocess.run(["zstd", "-q", "-1", "-c"], input=whole.read(part), stdout=out, check=True)

        def zstd(i):
            subprocess.run(["zstd", "-q", "-d", "-f", f"{disk}/part{i}.zst", "-o", f"{shm}/part{i}"], check=True)

        def export():
            subprocess.run([ingest, "export", repository, "ram", f"{shm}/ram"], check=True, capture_output=True)

        def zstd_all():
            with concurrent.futures.ThreadPoolExecutor(processors) as pool:
                list(pool.map(zstd, range(processors)))

        # Alternating, so that both meet the same machine.
        found = {"ours": ([], []), "zstd": ([], [])}
        for _ in range(runs):
            for name, work in (("ours", export), ("zstd", zstd_all)):
                wall, cpu = cost(work)
                found[name][0].append(size / MIB / wall)
                found[name][1].append(cpu)
                for file in pathlib.Path(shm).iterdir():
                    file.unlink()
    return {
        "threads": processors,
        **{f"{name}_mib_s": spread(speeds) for name, (speeds, _) in found.items()},
        **{f"{name}_cpu_s": spread(cpus) for name, (_, cpus) in found.items()},
        "ratio_of_speed": statistics.median(found["ours"][0]) / statistics.median(found["zstd"][0]),
        "ratio_of_cpu": statistics.median(found["zstd"][1]) / statistics.median(found["ours"][1]),
    }


class Qemu:
    """A QEMU of our own, driven over QMP: what one would do without us."""

    def __init__(self, directory, mib, *arguments):
        path = f"{directory}/qmp"
        self.process = subprocess.Popen(
            ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg,thread=multi",
             "-cpu", "max", "-m", f"{mib}M", "-bios", "qboot.rom", "-kernel", GUEST / "vmlinux", "-initrd",
             GUEST / "initrd", "-append", (GUEST / "cmdline").read_text().strip() + " rdinit=/bin/sh",
             "-qmp", f"unix:{path},server=on,wait=off", "-serial", f"unix:{path}-console,server=on,wait=off", *arguments],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.console = self.connect(f"{path}-console")
        self.socket = self.connect(path)
        self.stream = self.socket.makefile("rw")
        self.stream.readline()
        self.run("qmp_capabilities")

    def connect(self, path):
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(path)
                return connection
            except OSError:
                connection.close()
                if self.process.poll() is not None:
                    raise RuntimeError("QEMU has ended") from None
                time.sleep(0.002)

    def shell(self, script):
        """Runs it in the guest's only program, a shell on the console."""
        self.console.settimeout(120)
        seen = b""
        while b"# " not in seen:
            seen += self.console.recv(4096)
        self.console.sendall(f"{script}; echo REA''DY\n".encode())
        while b"READY" not in seen:
            seen += self.console.recv(4096)

    def run(self, command, **arguments):
        self.stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.stream.flush()
        while True:
            answer = json.loads(self.stream.readline())
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def wait(self, command, field, value):
        while self.run(command).get(field) != value:
            time.sleep(0.005)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.stream.close()
        self.socket.close()
        self.console.close()


def full_stream(mib, runs):
    """QEMU's own restore of a stream that holds all memory, from a tmpfs: process start to running."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        state = f"{directory}/state"
        source = Qemu(directory, mib)
        try:
            source.shell(f"mount -t tmpfs -o size=95% tmp /tmp; {fill(mib)}")
            source.run("stop")
            source.run("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            source.run("migrate", uri=f"exec:cat >{state}")
            source.wait("query-migrate", "status", "completed")
        finally:
            source.close()
        times = []
        for _ in range(runs):
            begun = time.monotonic()
            restored = Qemu(directory, mib, "-incoming", f"exec:cat {state}")
            try:
                restored.wait("query-status", "status", "paused")
                restored.run("cont")
                restored.wait("query-status", "status", "running")
                times.append((time.monotonic() - begun) * 1000)
            finally:
                restored.close()
        return {"running_ms": spread(times), "stream_mib": os.stat(state).st_size / MIB}


def alternatives(runs):
    boots = []
    with Host(timeout=600) as host:
        for i in range(min(runs, 3)):
            begun = time.monotonic()
            host.boot(f"web{i}", disks=[host.disk(f"web{i}", mib=64)], memory="512M", workload="")
            boots.append(time.monotonic() - begun)
            host.still("stop", f"web{i}", "--force")
    return {"cold_boot_s": spread(boots), "full_stream_512M": full_stream(512, runs)}


def promises(result):
    """What is promised of the parts that ran: what it is, the value, whether it holds."""
    if "hot" in result:
        for mib in FILL:
            times = result["hot"][f"{mib}M"]
            yield f"hot fork, {mib} MiB, to running, ms", times["running_ms"]["median"], "<=", 150
            yield f"hot fork, {mib} MiB, to the agent's answer, ms", times["agent_ms"]["median"], "<=", 500
        yield "growth from 512 MiB to 2 GiB", result["hot"]["growth_running_2048_to_512"], "<=", 1.2
    if "memory" in result:
        yield f"memory of {FORKS} forks to that of {INDEPENDENT} guests", result["memory"]["ratio"], "<=", 1.5
    if "decompress" in result:
        yield "speed of reading to zstd -d", result["decompress"]["ratio_of_speed"], ">=", 0.8


def main():
    parts = {
        "hot": lambda runs: hot(runs),
        "memory": lambda _: memory(),
        "decompress": lambda runs: decompress(min(runs, 5)),
        "alternatives": lambda runs: alternatives(min(runs, 5)),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the result to this file")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("parts", nargs="*", metavar="PART", help="hot, memory, decompress, alternatives")
    arguments = parser.parse_args()
    wanted = arguments.parts or list(parts)
    if unknown := set(wanted) - set(parts):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    if shutil.which("zstd") is None:
        parser.error("zstd is needed")
    if not (GUEST / "inputs").exists():
        parser.error(f"no guest in {GUEST}; make it with: tools/dev guest-image")
    result = {"processors": os.cpu_count(), "load_before": os.getloadavg()[0]}
    for part in wanted:
        result[part] = parts[part](arguments.runs)
        print(f"{part}: {json.dumps(result[part], indent=2)}", file=sys.stderr, flush=True)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(text + "\n")
    broken = 0
    for what, value, relation, limit in promises(result):
        holds = value <= limit if relation == "<=" else value >= limit
        broken += not holds
        print(f"{'kept' if holds else 'BROKEN':6} {what}: {value:.2f} ({relation} {limit})", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
