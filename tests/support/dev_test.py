#!/usr/bin/env python3
"""What tools/dev makes of warnings, with a cmake that only seems to build."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

PROJECT = pathlib.Path(__file__).parents[2]

# STILL_WERROR is kept as the real one keeps it. What is built has a warning where `warning` exists, an error where `error` does.
CMAKE = """#!/bin/sh
cache=build/release/CMakeCache.txt
mkdir -p build/release
echo "$*" >>calls
case $1 in
  --preset)
    for word in "$@"; do
      case $word in -DSTILL_WERROR=*) echo "STILL_WERROR:BOOL=${word#*=}" >"$cache" ;; esac
    done ;;
  --build)
    if [ -e error ]; then echo "FAILED: c++ -Werror a.cc"; echo "a.cc:1: error: expected ;"; exit 1; fi
    if [ -e warning ] && grep -q =ON "$cache"; then echo "a.cc:1: error: unused variable [-Werror=unused-variable]"; exit 1; fi ;;
esac
"""


class Warnings(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.root = pathlib.Path(scratch.name)
        for folder in ("tools", "bin", "build/release"):
            (self.root / folder).mkdir(parents=True)
        shutil.copy(PROJECT / "tools/dev", self.root / "tools/dev")
        (self.root / "bin/cmake").write_text(CMAKE, encoding="utf-8")
        (self.root / "bin/cmake").chmod(0o755)
        self.cache = self.root / "build/release/CMakeCache.txt"

    def build(self, werror):
        """Exit code of `tools/dev build` in a tree where warnings are errors or not, and how often it built and switched."""
        self.cache.write_text(f"STILL_WERROR:BOOL={werror}\n", encoding="utf-8")
        (self.root / "calls").unlink(missing_ok=True)
        environment = dict(os.environ, PATH=f"{self.root / 'bin'}:{os.environ['PATH']}")
        code = subprocess.run([self.root / "tools/dev", "build"], env=environment, capture_output=True, check=False).returncode
        calls = (self.root / "calls").read_text(encoding="utf-8")
        return code, calls.count("--build"), calls.count("-DSTILL_WERROR=")

    def test_a_tree_that_was_tested_is_built_as_it_is(self):
        self.assertEqual(self.build("ON"), (0, 1, 0))

    def test_a_warning_stops_nobody_who_only_builds(self):
        (self.root / "warning").touch()
        self.assertEqual(self.build("ON")[0], 0)
        self.assertIn("STILL_WERROR:BOOL=OFF", self.cache.read_text(encoding="utf-8"))
        self.assertEqual(self.build("OFF"), (0, 1, 0))

    def test_an_error_is_no_reason_to_build_everything_anew(self):
        (self.root / "error").touch()
        self.assertEqual(self.build("ON")[::2], (1, 0))
        self.assertEqual(self.build("OFF"), (1, 1, 0))


if __name__ == "__main__":
    unittest.main()
