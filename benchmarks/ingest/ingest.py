#!/usr/bin/env python3
"""Stores generations of a disk and two RAM images with Stillpoint and, where they are installed, zstd, restic and borg, and
compares what it costs. Prints a table of the promises in benchmarks/BUDGETS.md; exit code 1 when one is broken.

    bench-ingest [--data DIRECTORY] [--small] [--json FILE] [--chart FILE]

The images are made (make_images.py) where they are not yet; by default they stay in bench-data of the build directory.
CPU seconds are user + system of the tool and its children; every tool reads from the page cache. What is exported is compared
with the original.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

NEEDED_BYTES = 16 << 30
HERE = pathlib.Path(__file__).resolve().parent
STILL = pathlib.Path(sys.argv[0]).absolute().parent / "still-ingest"
DISKS = ["gen0", "gen1", "gen2", "gen3"]
RAMS = ["ram0", "ram1"]
SECRET = {"RESTIC_PASSWORD": "benchmark", "BORG_PASSPHRASE": "benchmark"}


def measure(*command, env=None):
    """CPU and wall seconds of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    done = subprocess.run([str(part) for part in command], env=os.environ | SECRET | (env or {}), capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command}: {done.stderr.decode()}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": time.monotonic() - begin}
    if done.stdout.startswith(b'{"wall"'):
        cost["rss_mib"] = json.loads(done.stdout)["rss_kib"] / 1024
    return cost


def size_of(path):
    path = pathlib.Path(path)
    files = [path] if path.is_file() else (entry for entry in path.rglob("*") if entry.is_file())
    return sum(file.stat().st_size for file in files)


def bench_still(data, work, passphrase):
    everything = work / "everything"
    repository = everything / "repository"
    everything.mkdir()
    env = {"STILL_CACHE_DIR": str(everything / "cache")} | ({"STILL_INGEST_PASSPHRASE": passphrase} if passphrase else {})
    measure(STILL, "init", repository, env=env)
    result = {}
    parent = {"gen1": "gen0", "gen2": "gen1", "gen3": "gen2", "ram1": "ram0"}
    for name in DISKS + RAMS:
        before = size_of(everything)
        kind = "ram" if name in RAMS else "disk"
        cost = measure(STILL, "import", repository, name, kind, data / f"{name}.img", *([parent[name]] if name in parent else []),
                       env=env)
        result[name] = cost | {"stored": size_of(everything) - before}
    result["export"] = measure(STILL, "export", repository, "gen3", work / "out.img", env=env)
    subprocess.run(["cmp", data / "gen3.img", work / "out.img"], check=True)
    result["open"] = measure(STILL, "stats", repository, env=env)
    stats = subprocess.run([STILL, "stats", repository], env=os.environ | env, capture_output=True, check=True)
    result["stats"] = json.loads(stats.stdout)
    shutil.rmtree(everything)
    (work / "out.img").unlink()
    return result


def bench_zstd(data, work):
    result = {}
    for name in DISKS + RAMS:
        one = measure("zstd", "-1", "-q", "-f", data / f"{name}.img", "-o", work / "one.zst")
        result[name] = one | {"stored": size_of(work / "one.zst")}
    two = measure("zstd", "-1", "-T2", "-q", "-f", data / "gen0.img", "-o", work / "one.zst")
    result["gen0"]["wall"] = two["wall"]
    measure("zstd", "-1", "-q", "-f", data / "gen3.img", "-o", work / "one.zst")
    result["export"] = measure("zstd", "-d", "-q", "-f", "--sparse", work / "one.zst", "-o", work / "out.img")
    (work / "one.zst").unlink()
    (work / "out.img").unlink()
    return result


def bench_peer(data, work, init, store, restore, repository):
    """restic or borg: each image alone in a folder, so that all are versions of one path."""
    measure(*init)
    result = {}
    folder = work / "image"
    folder.mkdir()
    for name in DISKS + RAMS:
        before = size_of(repository)
        target = folder / ("ram" if name in RAMS else "disk")
        os.link(data / f"{name}.img", target)
        result[name] = measure(*store(name, target)) | {"stored": 0}
        result[name]["stored"] = size_of(repository) - before
        target.unlink()
    result["export"] = measure(*restore(work / "restored"))
    for path in (folder, work / "restored", repository):
        shutil.rmtree(path, ignore_errors=True)
    return result


def bench_restic(data, work):
    repository = work / "restic"
    base = ["restic", "-q", "--cache-dir", work / "restic-cache", "-r", repository]
    return bench_peer(data, work, base + ["init"], lambda name, path: base + ["backup", "--tag", name, path],
                      lambda out: base + ["restore", "latest", "--tag", "gen3", "--target", out], repository)


def bench_borg(data, work):
    repository = work / "borg"
    os.environ["BORG_BASE_DIR"] = str(work / "borg-home")
    (work / "restored").mkdir()
    return bench_peer(data, work, ["borg", "init", "-e", "repokey", repository],
                      lambda name, path: ["borg", "create", "--chunker-params", "fixed,65536", "-C", "zstd,1",
                                          f"{repository}::{name}", path],
                      lambda out: ["sh", "-c", f"cd {out} && borg extract --sparse {repository}::gen3"], repository)


def compare(results):
    """(promise, value, limit) for everything that can be said with the tools that are here."""
    still, encrypted, zstd = results["still"], results["encrypted"], results.get("zstd")
    restic, borg = results.get("restic"), results.get("borg")
    rows = []

    def add(what, value, peer, limit):
        rows.append({"promise": what, "ratio": round(value / peer, 3), "limit": limit, "kept": value <= limit * peer})

    total = lambda tool, names, key: sum(tool[name][key] for name in names)
    if zstd:
        add("first import, CPU / zstd -1", still["gen0"]["cpu"], zstd["gen0"]["cpu"], 1.2)
        add("first import, wall / zstd -1 -T2", still["gen0"]["wall"], zstd["gen0"]["wall"], 1.1)
        add("export, CPU / zstd -d", still["export"]["cpu"], zstd["export"]["cpu"], 1.3)
    if borg:
        add("next generations, CPU / borg", total(still, DISKS[1:], "cpu"), total(borg, DISKS[1:], "cpu"), 0.5)
    if restic:
        add("next generations, CPU / restic", total(still, DISKS[1:], "cpu"), total(restic, DISKS[1:], "cpu"), 1 / 3)
        add("export, CPU / restic", still["export"]["cpu"], restic["export"]["cpu"], 0.5)
        add("RAM after its disks, stored / restic", still["ram0"]["stored"], restic["ram0"]["stored"], 0.25)
    peers = [peer for peer in (restic, borg) if peer]
    if peers:
        best = min(total(peer, DISKS, "stored") for peer in peers)
        add("four generations, stored / the best peer", total(still, DISKS, "stored"), best, 0.9)
        add("second RAM image, stored / the best peer", still["ram1"]["stored"], min(p["ram1"]["stored"] for p in peers), 1 / 3)
    imports = DISKS + RAMS
    # Each import opens the repository, and with a passphrase that is made slow on purpose (Argon2id).
    opening = len(imports) * (encrypted["open"]["cpu"] - still["open"]["cpu"])
    add("encrypted imports without opening, CPU / plain", total(encrypted, imports, "cpu") - opening,
        total(still, imports, "cpu"), 1.25)
    add("memory of an import, MiB", max(still[name]["rss_mib"] for name in imports), 1, 256)
    add("bookkeeping / stored", still["stats"]["bookkeeping"], still["stats"]["stored"], 0.03)
    return rows


def chart(results, path):
    """Bars of CPU seconds and of stored bytes for each tool."""
    bars, y = [], 20
    for title, key, scale in (("CPU seconds of all imports", "cpu", 1), ("MiB stored", "stored", 1 / 1048576)):
        values = {tool: sum(result[name][key] for name in DISKS + RAMS) * scale for tool, result in results.items()}
        bars.append(f'<text x="10" y="{y}" font-weight="bold">{title}</text>')
        for tool, value in values.items():
            y += 22
            width = 400 * value / max(values.values())
            bars.append(f'<text x="10" y="{y}">{tool}</text><rect x="90" y="{y - 13}" width="{width:.0f}" height="16" '
                        f'fill="{"#2a7" if tool in ("still", "encrypted") else "#999"}"/>'
                        f'<text x="{95 + width:.0f}" y="{y}">{value:.1f}</text>')
        y += 40
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="600" height="{y}" font-family="sans-serif" '
                    f'font-size="13">{"".join(bars)}</svg>\n')


def bench(data):
    tools = {"still": lambda work: bench_still(data, work, ""), "encrypted": lambda work: bench_still(data, work, "benchmark")}
    for name, function in (("zstd", bench_zstd), ("restic", bench_restic), ("borg", bench_borg)):
        if shutil.which(name):
            tools[name] = lambda work, function=function: function(data, work)
    results = {}
    for name, function in tools.items():
        with tempfile.TemporaryDirectory(dir=data, prefix="bench-") as work:
            for image in DISKS + RAMS:  # Everybody reads from the page cache.
                subprocess.run(["cat", data / f"{image}.img"], stdout=subprocess.DEVNULL, check=True)
            results[name] = function(pathlib.Path(work))
            print(f"{name:10}" + "".join(f" {image}: {cost['cpu']:.1f} s" + (f" {cost['stored'] / 1048576:.0f} MiB"
                                         if "stored" in cost else "") for image, cost in results[name].items() if "cpu" in cost))
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--chart", type=pathlib.Path)
    options = parser.parse_args()
    data = (options.data or STILL.parent.parent / "bench-data").absolute()
    if not (data / "ram1.img").exists():
        subprocess.run([HERE / "make_images.py", data] + (["--small"] if options.small else []), check=True)
    if shutil.disk_usage(data).free < NEEDED_BYTES:
        sys.exit(f"{data}: {NEEDED_BYTES >> 30} GiB of free space are needed")
    results = bench(data)
    rows = compare(results)
    for row in rows:
        print(f"{row['promise']:46} {row['ratio']:6.3f}  limit {row['limit']:.3f}  {'kept' if row['kept'] else 'BROKEN'}")
    if options.json:
        options.json.write_text(json.dumps({"results": results, "promises": rows}, indent=1))
    if options.chart:
        chart(results, options.chart)
    return 0 if all(row["kept"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
