#!/usr/bin/env python3
"""What run_ctest.py and run_unittest.py make of tests that are skipped, with a real ctest."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).parent


class RunCtest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.directory = pathlib.Path(scratch.name)
        self.entries = []

    def add(self, name, script, label="unit"):
        self.entries.append(f'add_test({name} sh -c "{script}")\n'
                            f'set_tests_properties({name} PROPERTIES SKIP_RETURN_CODE 77 LABELS "{label}")\n')

    def run_ctest(self, *options, ci=False, seed="1"):
        (self.directory / "CTestTestfile.cmake").write_text("".join(self.entries), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name != "CI"}
        environment["STILL_SEED"] = seed
        if ci:
            environment["CI"] = "true"
        return subprocess.run([sys.executable, "-B", HERE / "run_ctest.py", self.directory, *options], env=environment,
                              capture_output=True, text=True, check=False)

    def test_what_was_skipped_is_listed_before_the_summary(self):
        self.add("good", "true")
        self.add("partly", "echo 'skipped: A.B: there is no moon'; exit 77")
        self.add("silent", "exit 77")
        result = self.run_ctest()
        self.assertEqual(result.returncode, 0, result.stdout)
        listed = result.stdout.index("Skipped here:")
        self.assertIn("  partly: A.B: there is no moon\n  silent: all: no reason given\n", result.stdout[listed:])
        self.assertLess(listed, result.stdout.index("% tests passed"))
        self.assertIn("Skipped", result.stdout.splitlines()[-1])

    def test_a_case_that_was_skipped_hides_no_failure(self):
        self.add("both", "echo 'skipped: A.B: there is no moon'; exit 1")
        self.assertNotEqual(self.run_ctest().returncode, 0)

    def test_in_ci_only_what_is_named_may_be_skipped(self):
        self.add("process_vm_test", "echo 'skipped: A.B: named'; exit 77")
        self.assertEqual(self.run_ctest(ci=True).returncode, 0)
        self.add("other", "exit 77")
        self.assertEqual(self.run_ctest().returncode, 0)
        result = self.run_ctest(ci=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("may not be skipped in CI (tests/may_skip.txt):\n  other: all\n", result.stdout)

    def test_a_sample_is_a_third_by_seed_and_says_what_it_left_out(self):
        self.add("always", "true")
        for number in range(6):
            self.add(f"sampled_{number}", "true", label="e2e;sampled")
        whole = self.run_ctest()
        self.assertEqual(whole.stdout.count("Passed"), 7, whole.stdout)
        self.assertNotIn("Left out", whole.stdout)
        taken = set()
        for seed in range(3):
            result = self.run_ctest("--sample", seed=str(seed))
            self.assertEqual(result.stdout.count("Passed"), 3, result.stdout)
            self.assertIn(f"Left out by STILL_SEED={seed} ", result.stdout)
            ran = set(re.findall(r"Test +#\d+: (\S+)", result.stdout))
            self.assertIn("always", ran)
            taken |= ran
        self.assertEqual(len(taken), 7, "three seeds in a row run everything")
        again = self.run_ctest("--sample", seed="2"), self.run_ctest("--sample", seed="2")
        self.assertEqual(*(re.findall("Left out.*", result.stdout) for result in again))

    def test_no_seed_leaves_out_all_that_is_sampled(self):
        for number in range(2):
            self.add(f"sampled_{number}", "true", label="e2e;sampled")
            for seed in range(3):
                self.assertEqual(self.run_ctest("--sample", seed=str(seed)).stdout.count("Passed"), 1, (number, seed))

    def test_a_python_test_that_is_skipped_is_counted_as_such(self):
        for body, code in (("pass", 0), ("self.skipTest('no moon')", 77), ("self.fail()", 1)):
            (self.directory / "moon.py").write_text(
                f"import unittest\nclass Moon(unittest.TestCase):\n    def test_it(self):\n        {body}\n", encoding="utf-8")
            result = subprocess.run([sys.executable, "-B", HERE / "run_unittest.py", "moon.Moon"], cwd=self.directory,
                                    capture_output=True, text=True, check=False)
            self.assertEqual(result.returncode, code, result.stderr)
            self.assertEqual("skipped: moon.Moon.test_it: no moon" in result.stderr, code == 77)


if __name__ == "__main__":
    unittest.main()
