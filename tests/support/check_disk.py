#!/usr/bin/env python3
"""Reads the ext4 file system of a raw disk image, without mounting it, and tells what the record writer left there.

    check_disk.py [--writer PROGRAM] [--file /records] IMAGE

Prints one JSON object:
    needs_recovery   the journal holds what the file system does not: it was not frozen when the image was taken
    clean            e2fsck finds nothing to mend (after its journal was replayed on a copy, if it needs that)
    records, oldest, newest_written_at_ns, unfinished, damaged, first_damaged_slot
                     see `record-writer --verify`; absent when the file system has no record file
The exit code is 0 when the file system is clean and no record is damaged, 1 when one of that is not so, 2 for the rest.
The image is not changed. --writer defaults to the record-writer beside the release build's test guest.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

PROJECT = pathlib.Path(__file__).resolve().parents[2]


def run(*command, expected=(0,)):
    """The standard output of a command that ended as expected."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode not in expected:
        print(f"{command[0]}: exit code {result.returncode}: {result.stderr.strip()}", file=sys.stderr)
        sys.exit(2)
    return result


def needs_recovery(image):
    header = run("/sbin/dumpe2fs", "-h", str(image)).stdout
    features = next(line for line in header.splitlines() if line.startswith("Filesystem features:"))
    return "needs_recovery" in features.split()


def is_clean(image):
    # 4: errors were left, because -n mends nothing.
    return run("/sbin/e2fsck", "-f", "-n", str(image), expected=(0, 4)).returncode == 0


def replay_journal(image):
    # 1: something was done, which is what it is for.
    run("/sbin/e2fsck", "-p", "-E", "journal_only", str(image), expected=(0, 1))


def read_records(image, path, writer, directory):
    found = directory / "records"
    run("/sbin/debugfs", "-R", f"dump {path} {found}", str(image))
    if not found.exists():
        return {}
    return json.loads(run(str(writer), "--verify", str(found), expected=(0, 1)).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writer", default=PROJECT / "build/release/guest-programs/record-writer")
    parser.add_argument("--file", default="/records")
    parser.add_argument("image", type=pathlib.Path)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="still-check-disk-") as name:
        directory = pathlib.Path(name)
        image = arguments.image
        report = {"needs_recovery": needs_recovery(image)}
        if report["needs_recovery"]:
            image = directory / "replayed"
            run("cp", "--sparse=always", str(arguments.image), str(image))
            replay_journal(image)
        report["clean"] = is_clean(image)
        report.update(read_records(image, arguments.file, arguments.writer, directory))
    print(json.dumps(report))
    return 0 if report["clean"] and report.get("damaged", 0) == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
