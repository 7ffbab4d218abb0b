#!/usr/bin/env python3
"""Runs clang-tidy (the checks of .clang-tidy) over the sources of the product, as many at a time as there are processors.

    tidy.py BUILD-DIRECTORY

What was clean is not looked at again until it, a file of the project that it includes, or .clang-tidy changes. In a unity
build, whose sources each include a dozen of ours, all of it takes a quarter of the time. Where STILL_SAMPLE_SEED is set
(run_ctest.py) a third of the sources is looked at. Tests and benchmarks are left out for time; the compilers' warnings and the
sanitizers see them. Generated code must be there already: build first.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

FOLDERS = ("base", "store", "session", "guest-agent", "snapshot", "schedule", "tools")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def sources(build):
    """What the compiler is called for: files of the product, or those of a unity build that include them."""
    def folder(file):
        return file.relative_to(build if file.is_relative_to(build) else ROOT).parts[0]

    commands = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    return sorted(file for file in {pathlib.Path(command["file"]) for command in commands} if folder(file) in FOLDERS)


def project_files(source, seen):
    """The source and every file of the project that it includes, directly or not."""
    if source in seen or not source.exists():
        return seen
    seen.add(source)
    for include in re.findall(r'^\s*#\s*include\s+"([^"]+)"', source.read_text(encoding="utf-8"), re.MULTILINE):
        project_files(ROOT / include, seen)
        # Generated from it.
        project_files(ROOT / re.sub(r"(\.grpc)?\.pb\.h$", ".proto", include), seen)
    return seen


def key(source):
    digest = hashlib.sha256((ROOT / ".clang-tidy").read_bytes())
    for file in sorted(project_files(source, set())):
        digest.update(f"{file}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def tidy(source, build, stamps):
    """What clang-tidy says about the source; empty when it is clean."""
    stamp = stamps / key(source)
    if stamp.exists():
        return ""
    result = subprocess.run(["clang-tidy", "-p", str(build), "--quiet", str(source)],
                            capture_output=True, text=True, check=False)
    if result.returncode == 0:
        stamp.touch()
        return ""
    return result.stdout + ("" if "error:" in result.stdout else result.stderr)


def main():
    if len(sys.argv) != 2:
        print("usage: tidy.py BUILD-DIRECTORY", file=sys.stderr)
        return 2
    build = pathlib.Path(sys.argv[1]).resolve()
    stamps = build / "tidy-clean"
    stamps.mkdir(exist_ok=True)
    files = sources(build)
    if seed := os.environ.get("STILL_SAMPLE_SEED"):
        files = files[int(seed) % 3::3]  # Three seeds in a row see them all.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        findings = [text for text in pool.map(lambda file: tidy(file, build, stamps), files) if text]
    print("".join(findings).replace(f"{ROOT}/", ""), end="")
    print(f"{len(files)} sources, {len(findings)} with findings")
    return 1 if findings or not files else 0


if __name__ == "__main__":
    sys.exit(main())
