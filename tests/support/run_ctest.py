#!/usr/bin/env python3
"""Runs ctest, with a list of what was skipped and why before its summary, which stays the last thing that is printed.

    run_ctest.py BUILD-DIRECTORY [CTEST-OPTION..]

On a machine that builds for everybody (CI is set in the environment) only what tests/may_skip.txt names may be skipped: anything
else is a failure there, because nobody reads the list. What tests/on_trial.txt names is left out, and said to be, unless
STILL_ON_TRIAL is set.
"""

import os
import pathlib
import re
import subprocess
import sys

SUMMARY = re.compile(r"\d+% tests passed")
TEST = re.compile(r"\d+/\d+ Test: (\S+)")
MAY_SKIP = pathlib.Path(__file__).parents[1] / "may_skip.txt"
ON_TRIAL = pathlib.Path(__file__).parents[1] / "on_trial.txt"


def names_in(text):
    """The names in tests/may_skip.txt and on_trial.txt: one a line, each with its reason."""
    return {line.split("#")[0].strip() for line in text.splitlines() if line.split("#")[0].strip()}


def skipped_in(log):
    """(ctest's entry, case, reason) of every test in ctest's log that was skipped."""
    entry, found = "", []
    for line in log.splitlines():
        if match := TEST.match(line):
            entry = match[1]
        elif match := re.match(r"skipped: (.*?): (.*)", line):
            found.append((entry, match[1], match[2]))
    return found


def named_in(summary):
    """The entries that ctest's own summary calls skipped."""
    return [match[1] for line in summary if (match := re.match(r"\s*\d+ - (\S+) \(Skipped\)", line))]


def report(skipped, allowed, strict):
    """The lines to print, and whether something was skipped that may not be."""
    lines = [f"  {entry}: {case}: {reason}" for entry, case, reason in skipped]
    if lines:
        lines.insert(0, "\nSkipped here:")
    unnamed = sorted({f"  {entry}: {case}" for entry, case, _ in skipped if entry not in allowed}) if strict else []
    if unnamed:
        lines += ["\nThese may not be skipped in CI (tests/may_skip.txt):", *unnamed]
    return lines, bool(unnamed)


def main():
    build = pathlib.Path(sys.argv[1])
    summary = []
    on_trial = [] if os.environ.get("STILL_ON_TRIAL") else sorted(names_in(ON_TRIAL.read_text(encoding="utf-8")))
    leave_out = ["--exclude-regex", f"^({'|'.join(on_trial)})$"] if on_trial else []
    with subprocess.Popen(["ctest", "--test-dir", build, *leave_out, *sys.argv[2:]], stdout=subprocess.PIPE, text=True) as ctest:
        for line in ctest.stdout:
            if summary or SUMMARY.match(line):
                summary.append(line)
            else:
                print(line, end="", flush=True)
    log = build / "Testing/Temporary/LastTest.log"
    skipped = skipped_in(log.read_text(encoding="utf-8", errors="replace")) if summary and log.exists() else []
    skipped += [(entry, "all", "no reason given") for entry in named_in(summary) if entry not in {known[0] for known in skipped}]
    lines, forbidden = report(skipped, names_in(MAY_SKIP.read_text(encoding="utf-8")), bool(os.environ.get("CI")))
    if on_trial:
        lines.append(f"\nLeft out (tests/on_trial.txt; STILL_ON_TRIAL=1 runs them): {', '.join(on_trial)}")
    print(*lines, "", sep="\n")
    print(*summary, sep="", end="", flush=True)
    return ctest.returncode or int(forbidden)


if __name__ == "__main__":
    sys.exit(main())
