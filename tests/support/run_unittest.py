#!/usr/bin/env python3
"""Runs Python tests as `python3 -m unittest -v NAME..` does, and says at its end which were skipped and why, a line each
(run_ctest.py collects them). Exit code: 77 when some were skipped and the others passed, which ctest counts as "skipped".

    run_unittest.py MODULE[.CLASS]..

Run in the modules' folder.
"""

import os
import sys
import unittest

SKIPPED = 77


def main():
    sys.path.insert(0, os.getcwd())
    suite = unittest.defaultTestLoader.loadTestsFromNames(sys.argv[1:])
    if suite.countTestCases() == 0:
        print(f"{' '.join(sys.argv[1:])}: no tests", file=sys.stderr)
        return 1
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    if not result.wasSuccessful():
        return 1
    for case, reason in result.skipped:
        print(f"skipped: {case.id()}: {reason}", file=sys.stderr)
    return SKIPPED if result.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
