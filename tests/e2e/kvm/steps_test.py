"""What `tools/dev kvm` makes of steps that fail, are skipped or cannot be run, with programs that only seem to be ours."""

import os
import pathlib
import subprocess
import tempfile
import unittest

STEPS = pathlib.Path(__file__).parent / "steps"

# It has the sessions that were run and not removed. FAIL names the commands that fail.
STILL = """
echo "$*" >>"$STILL_STATE.calls"
case " $FAIL " in *" $1 "*) echo "no $1 today"; exit 6 ;; esac
[ "$1" != --json ] || shift
case $1 in
  run) echo "$2" >"$STILL_STATE.sessions"; echo ran ;;
  rm) rm -f "$STILL_STATE.sessions" ;;
  ps) echo NAME; cat "$STILL_STATE.sessions" 2>/dev/null; exit 0 ;;
esac
"""


class Steps(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.room = pathlib.Path(scratch.name)
        self.program("bin/still", STILL)
        self.program("bin/dmesg", "cat \"$STILL_STATE.dmesg\"")
        (self.room / "disk").touch()
        (self.room / "cmdline").touch()
        self.work = self.room / "work"
        self.work.mkdir()
        (self.work / "state.dmesg").write_text("[1.0] WARNING: CPU: 0 PID: 1 at somebody/else.c:1\n", encoding="utf-8")

    def program(self, path, body):
        file = self.room / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        file.chmod(0o755)

    def steps(self, phase, **environment):
        """Exit code, and (outcome, note) of each step."""
        result = subprocess.run(
            [STEPS, phase], stdout=subprocess.PIPE, text=True, check=False,
            env={"PATH": f"{self.room}/bin:{os.environ['PATH']}", "OUTER": "0", "BIN": f"{self.room}/bin", "TESTS": f"{self.room}/tests",
                 "GUEST": str(self.room), "DISK": f"{self.room}/disk", "WORK": str(self.work), "HOT": f"{self.room}/hot",
                 "LIMIT": "60", **environment})
        lines = [line.split("\t") for line in result.stdout.splitlines() if line.startswith("STEP\t")]
        self.assertEqual(len({line[1] for line in lines}), len(lines), "each step has a name of its own")
        return result.returncode, {line[1]: (line[2], line[4]) for line in lines}

    def test_what_needs_a_step_that_failed_is_listed_and_the_sessions_are_ended(self):
        everything = set(self.steps("sessions", MISSING="it is only listed")[1])
        self.assertFalse((self.work / "state.calls").exists(), "it was only listed")
        # The session runs, and is not what was wanted of it.
        code, steps = self.steps("sessions")
        self.assertEqual(code, 1)
        self.assertEqual(set(steps), everything)
        self.assertEqual(steps["run: a guest's agent answers"][0], "failed")
        self.assertEqual(steps["rollback"], ("not run", "needs: run: a guest's agent answers"))
        self.assertEqual(steps["the last one ends"][0], "ok")
        self.assertFalse((self.work / "state.sessions").exists(), "the session lives on")

    def test_nothing_is_tried_without_a_repository(self):
        _, steps = self.steps("sessions", FAIL="init")
        self.assertEqual(steps["run: a guest's agent answers"], ("not run", "needs: init"))
        self.assertNotIn("run ", (self.work / "state.calls").read_text(encoding="utf-8"))

    def test_only_what_the_kernel_says_meanwhile_counts(self):
        self.assertEqual(self.steps("sessions")[1]["the kernel's log"][0], "ok")
        # More when it is asked again.
        self.program("bin/dmesg", "cat \"$STILL_STATE.dmesg\"; echo '[2.0] BUG: soft lockup' >>\"$STILL_STATE.dmesg\"")
        self.assertEqual(self.steps("sessions")[1]["the kernel's log"][0], "failed")

    def test_a_test_program_that_skips_is_no_failure_and_tells_why(self):
        listing = "[ $1 != --gtest_list_tests ] || { printf 'Suite.\\n  One/qemu\\n  One/fake\\n'; exit 0; }\n"
        self.program("tests/qemu_start_test", f"{listing}[ \"$STILL_VSOCK_LIBRARY\" = \"$BIN/libstill-vsock.so\" ]")
        self.program("tests/qemu_confinement_test", f"{listing}echo 'skipped: A.B: not root'; exit 77")
        self.program("tests/vm_contract_test", f"{listing}exit 0")
        self.program("tests/qemu_capture_test", f"{listing}[ $1 = --gtest_filter=Suite.One/qemu ]")
        self.program("tests/qemu_engine_test", f"{listing}[ \"$STILL_MEMORY_PROGRAM\" = \"$BIN/still-memory\" ]")
        self.program("tests/qemu_silence_test", f"{listing}exit 1")
        code, steps = self.steps("contract")
        self.assertEqual(code, 1)
        self.assertEqual({name: step[0] for name, step in steps.items()}, {
            "qemu_start_test: Suite.One/qemu": "ok", "qemu_start_test: Suite.One/fake": "ok",
            "qemu_confinement_test: Suite.One/qemu": "skipped", "qemu_confinement_test: Suite.One/fake": "skipped",
            "vm_contract_test: Suite.One/qemu": "ok",
            "qemu_capture_test: Suite.One/qemu": "ok", "qemu_capture_test: Suite.One/fake": "failed",
            "qemu_broken_pin_test has cases": "failed",
            "qemu_engine_test: Suite.One/qemu": "ok", "qemu_engine_test: Suite.One/fake": "ok",
            "qemu_silence_test: Suite.One/qemu": "failed", "qemu_silence_test: Suite.One/fake": "failed"})
        self.assertIn("A.B: not root", steps["qemu_confinement_test: Suite.One/qemu"][1])
        self.program("tests/qemu_capture_test", f"{listing}exit 0")
        self.program("tests/qemu_broken_pin_test", f"{listing}exit 0")
        self.assertEqual(self.steps("contract", OUTER="1")[0], 0, "skipped steps fail nothing")


if __name__ == "__main__":
    unittest.main()
