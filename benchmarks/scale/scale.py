#!/usr/bin/env python3
"""What a large repository costs: stilld's start, a scrape of its metrics, and the list of one machine.

    build/release/bin/bench-scale [--machines 10000] [--snapshots 100000] [--sessions 1000] [--json FILE]

Machines are of the repository; --sessions of them are also on this host, ended. Times are wall-clock, medians of five after a first
one that does not count. Exits with 1 when a promise of benchmarks/BUDGETS.md is broken.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.request

sys.dont_write_bytecode = True
PROJECT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "tests/e2e"))

from still_host import BUILD, Host, wait_for  # noqa: E402

LIMITS = {"start-up": 5.0, "scrape": 0.1, "list of one machine": 0.1}


def timed(action, times=5):
    """The median of so many, and how long the first one took."""
    def once():
        begin = time.monotonic()
        action()
        return time.monotonic() - begin
    first = once()
    return statistics.median(once() for _ in range(times)), first


def fill(host, options):
    subprocess.run([BUILD / "bin/make-snapshots", host.directory / "repo", str(options.machines), str(options.snapshots)], check=True)
    begin = time.monotonic()
    host.still("list", "machine-00000")  # Reads what its catalog does not know.
    print(f"catalog of {options.snapshots} snapshots made in {time.monotonic() - begin:.1f} s", flush=True)
    for number in range(options.sessions):
        directory = host.state / "sessions" / f"machine-{number:05}"
        directory.mkdir(parents=True)
        config = {"name": directory.name, "id": f"session-{number:05}", "machine_id": f"id-of-machine-{number:05}"}
        (directory / "session.json").write_text(json.dumps(config))
        (directory / "end.json").write_text('{"kind": "STOPPED"}')
    host.still("schedule", "add", "nightly", "--session", "*", "--on", "02:00", "--when-off", "tell", "--max-age", "400d")


def start(host):
    """stilld with its address, and how long it took."""
    log = host.directory / f"stilld-{time.monotonic_ns()}.log"
    begin = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen([BUILD / "bin/stilld", "--config", "", "--http", "127.0.0.1:0"], stdout=out, stderr=out,
                                   env=dict(host.environment, STILL_LOG="json"), stdin=subprocess.DEVNULL)

    def ready():
        if process.poll() is not None:
            raise RuntimeError(log.read_text())
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return next((line for line in lines if line["message"] == "stilld is ready"), None)

    address = wait_for(ready, "stilld to be ready", 600)["http"]
    return process, address, time.monotonic() - begin


def measure(host):
    first, _, _ = start(host)  # What is read for the first time comes from the disk.
    first.terminate()
    first.wait(timeout=60)
    process, address, took = start(host)
    seen = {"start-up": took}

    def scrape():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=120) as answer:
            if b"stillpoint_repository_snapshots" not in answer.read():
                raise RuntimeError("these are no metrics")

    time.sleep(1)  # Its first turn.
    seen["scrape"], seen["first scrape"] = timed(scrape)
    process.terminate()
    process.wait(timeout=60)
    seen["list of one machine"], _ = timed(lambda: host.still("--json", "list", "machine-00042"))
    return seen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=10_000)
    parser.add_argument("--snapshots", type=int, default=100_000)
    parser.add_argument("--sessions", type=int, default=1_000)
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    with Host() as host:
        fill(host, options)
        seen = measure(host)
        for what, seconds in seen.items():
            limit = LIMITS.get(what)
            print(f"{what}: {seconds * 1000:.0f} ms" + (f" of {limit * 1000:.0f}" if limit else ""), flush=True)
    if options.json:
        options.json.write_text(json.dumps(seen))
    return 1 if any(seen[what] > limit for what, limit in LIMITS.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
