#!/usr/bin/env python3
"""Runs ctest, with a list of what was skipped and why before its summary, which stays the last thing that is printed.

    run_ctest.py BUILD-DIRECTORY [--sample] [CTEST-OPTION..]

On a machine that builds for everybody (CI is set in the environment) only what tests/may_skip.txt names may be skipped: anything
else is a failure there, because nobody reads the list.

--sample runs a third of the entries with the label `sampled`: the same scenario on one more hypervisor or in one more way. Which
third is decided by STILL_SEED, or by chance; the seed and what was left out are printed. At least one of them runs. An entry that samples by itself finds
the seed in STILL_SAMPLE_SEED.
"""

import os
import pathlib
import re
import secrets
import subprocess
import sys

SUMMARY = re.compile(r"\d+% tests passed")
TEST = re.compile(r"\d+/\d+ Test: (\S+)")
MAY_SKIP = pathlib.Path(__file__).parents[1] / "may_skip.txt"
SAMPLE = 3


def names_in(text):
    """The names in tests/may_skip.txt: one a line, each with its reason."""
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


def left_out(build, options, seed):
    """Two thirds of the entries labelled `sampled` that these options of ctest select, or all but one where they are fewer than
    three: three seeds in a row run them all, and each runs some."""
    listed = subprocess.run(["ctest", "--test-dir", build, *options, "--show-only"], capture_output=True, text=True, check=True)
    selected = set(re.findall(r"Test\s+#\d+: (\S+)", listed.stdout))
    listed = subprocess.run(["ctest", "--test-dir", build, "--label-regex", "^sampled$", "--show-only"],
                            capture_output=True, text=True, check=True)
    sampled = sorted(selected & set(re.findall(r"Test\s+#\d+: (\S+)", listed.stdout)))
    parts = min(SAMPLE, len(sampled))
    return [name for index, name in enumerate(sampled) if (index + seed) % parts != 0]


def main():
    build, options = pathlib.Path(sys.argv[1]), sys.argv[2:]
    summary, out, seed = [], [], int(os.environ.get("STILL_SEED") or secrets.randbelow(10**6))
    if "--sample" in options:
        options.remove("--sample")
        out = left_out(build, options, seed)
        os.environ["STILL_SAMPLE_SEED"] = str(seed)
    if out:
        options += ["--exclude-regex", f"^({'|'.join(out)})$"]
    with subprocess.Popen(["ctest", "--test-dir", build, *options], stdout=subprocess.PIPE, text=True) as ctest:
        for line in ctest.stdout:
            if summary or SUMMARY.match(line):
                summary.append(line)
            else:
                print(line, end="", flush=True)
    log = build / "Testing/Temporary/LastTest.log"
    skipped = skipped_in(log.read_text(encoding="utf-8", errors="replace")) if summary and log.exists() else []
    skipped += [(entry, "all", "no reason given") for entry in named_in(summary) if entry not in {known[0] for known in skipped}]
    lines, forbidden = report(skipped, names_in(MAY_SKIP.read_text(encoding="utf-8")), bool(os.environ.get("CI")))
    if out:
        lines.append(f"\nLeft out by STILL_SEED={seed} (`tools/dev test` with a label leaves nothing out): {', '.join(out)}")
    print(*lines, "", sep="\n")
    print(*summary, sep="", end="", flush=True)
    return ctest.returncode or int(forbidden)


if __name__ == "__main__":
    sys.exit(main())
