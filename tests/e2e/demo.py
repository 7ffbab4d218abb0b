#!/usr/bin/env python3
"""The demonstration: a snapshot with memory of a VM under load, restored to a new session while the source runs on.

Every claim is proven from outside: by the images in the repository, and by programs in the guests that know what they
have written (tests/guest). Exit code 0 means that every proof held.
"""

import sys
import time

from still_host import Host, wait_for


class Proofs:
    def __init__(self):
        self.broken = 0

    def check(self, claim, holds, evidence):
        self.broken += not holds
        print(f"  {'proven' if holds else 'BROKEN':7} {claim}  ({evidence})", flush=True)


def say(text):
    print(f"\n{text}", flush=True)


def milliseconds(microseconds):
    return f"{int(microseconds) / 1000:.1f} ms"


def windows_of(snapshot):
    windows = snapshot["windows"]
    return f"paused {milliseconds(windows['pause_us'])}, frozen {milliseconds(windows['freeze_us'])}"


def prove_point(proofs, host, snapshot, before):
    """The disk of the point against what the guest had acknowledged when it was frozen."""
    frozen_at = int(snapshot["windows"]["guest_frozen_at_ns"])
    image = host.export(snapshot["id"])
    disk = host.check_disk(image)
    image.unlink()
    at_freeze = host.records("web", "--at", str(frozen_at))["acknowledged_at"]
    newest = disk["oldest"] + disk["records"] - 1
    proofs.check("the ext4 of the point is clean", disk["clean"] and not disk["needs_recovery"], "e2fsck, no needs_recovery")
    proofs.check("no record is damaged", disk["damaged"] == 0, f"{disk['records']} records, numbers {disk['oldest']} to {newest}")
    proofs.check(
        "every record acknowledged before the freeze is there",
        newest + 1 >= at_freeze > before["acknowledged"] - 1,
        f"{at_freeze} acknowledged, {newest + 1} on disk",
    )
    proofs.check(
        "none is from after the point",
        disk["newest_written_at_ns"] <= frozen_at,
        f"the newest was written {(frozen_at - disk['newest_written_at_ns']) / 1e6:.1f} ms before the freeze was complete",
    )
    return at_freeze, newest


def prove_restored(proofs, host, snapshot, at_freeze, newest, counted_before):
    frozen_at = snapshot["windows"]["guest_frozen_at_ns"]
    remembered = host.records("copy", "--at", str(frozen_at))
    proofs.check(
        "RAM and disk of the restored session agree",
        remembered["acknowledged_at"] == at_freeze and newest + 1 - at_freeze <= 1,
        f"its memory knows {remembered['acknowledged_at']} records of before the freeze, its disk has {newest + 1}",
    )
    first = host.counter("copy", "--check")
    proofs.check(
        "the counter in memory goes on from the point",
        first["errors"] == 0 and first["count"] >= counted_before,
        f"{counted_before} before the snapshot, {first['count']} now, no page wrong",
    )
    more = wait_for(lambda: (r := host.records("copy"))["acknowledged"] > newest + 5 and r, "the restored writer", 60)
    proofs.check("the restored session writes on", more["failed"] == 0, f"{more['acknowledged']} records by now")


def memory_read(snapshot):
    return next(int(image["bytes_read"]) for image in snapshot["images"] if image["name"] == "ram")


def prove_increment(proofs, host, first, second, counted_before):
    """Of the second snapshot's memory only what was written since the first was read: it must be whole all the same."""
    if second["windows"]["memory_method"] == "engine":
        proofs.check(
            "the second snapshot read only the memory that was written since the first",
            memory_read(second) < memory_read(first) * 3 / 4,
            f"{memory_read(second) / 2**20:.1f} MiB after {memory_read(first) / 2**20:.1f} MiB",
        )
    host.still("restore", "second", "--as", "copy-of-second")
    counter = host.counter("copy-of-second", "--check")
    proofs.check(
        "its memory is whole",
        counter["errors"] == 0 and counter["count"] >= counted_before,
        f"the counter goes on at {counter['count']}, no page wrong",
    )


def prove_source(proofs, host, disk):
    last = host.records("web")
    counter = host.counter("web", "--check")
    host.still("stop", "web")
    found = host.check_disk(disk)
    newest = found["oldest"] + found["records"] - 1
    proofs.check(
        "the source lost nothing",
        last["failed"] == 0 and counter["errors"] == 0 and found["damaged"] == 0 and newest + 1 >= last["acknowledged"],
        f"{last['acknowledged']} acknowledged, {newest + 1} on its disk after the end",
    )


def main():
    proofs = Proofs()
    with Host() as host:
        disk = host.disk("web")
        say("Booting a guest in which a record writer (fsync per record) and a counter in memory run ...")
        begun = time.monotonic()
        host.boot("web", disks=[disk])
        print(f"  its agent answered after {time.monotonic() - begun:.1f} s")
        before = wait_for(lambda: (r := host.records("web"))["acknowledged"] > 20 and r, "the record writer", 60)
        counted = wait_for(lambda: (c := host.counter("web"))["count"] > 0 and c, "the counter", 60)["count"]

        say("Two snapshots with memory, under that load; memory is tracked from the first on ...")
        first, second = (
            host.json("snapshot", "web", "--name", name, "--quiesce", "require", "--track-memory") for name in ("first", "second")
        )
        for snapshot in (first, second):
            stored = int(snapshot["drain"]["bytes_stored"]) / 2**20
            print(f"  {snapshot['name']:7} {windows_of(snapshot)}, memory by {snapshot['windows']['memory_method']}", end="")
            print(f", {memory_read(snapshot) / 2**20:.1f} MiB of it read, {stored:.1f} MiB stored in all")

        say("Restoring the first to a new session, while the source runs on ...")
        restored = host.json("restore", "first", "--as", "copy")
        print(f"  read in {milliseconds(restored['materialise_us'])}, ready {milliseconds(restored['start_us'])} later")

        say("Proofs")
        at_freeze, newest = prove_point(proofs, host, first, before)
        prove_restored(proofs, host, first, at_freeze, newest, counted)
        prove_increment(proofs, host, first, second, counted)
        prove_source(proofs, host, disk)
        verified = host.json("verify", "--read-data", "100")
        proofs.check("the repository is whole", verified["ok"], f"{verified['blocks_read']} blocks read and hashed")

        print()
        print(host.still("list"), end="")
    print("\nEvery proof held." if proofs.broken == 0 else f"\n{proofs.broken} proofs are BROKEN.")
    return 1 if proofs.broken else 0


if __name__ == "__main__":
    sys.exit(main())
