"""A repository of its own for each test, and the real command on it."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

STILL = pathlib.Path(os.environ["STILL_BUILD"]) / "bin" / "still"
MIB = 1024 * 1024
USAGE, MISSING, EXISTS, STATE, BUSY, FULL, DAMAGED, DENIED = 2, 3, 4, 5, 6, 7, 8, 9
PASSPHRASE = {"STILL_PASSPHRASE": "secret"}


class RepositoryCase(unittest.TestCase):
    """Encrypted, as users have it; plain where that is not the point, because each opening of an encrypted one derives a key."""

    encrypted = True

    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="still-careful-")
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        self.environment = {"PATH": os.environ["PATH"], "HOME": scratch.name, "STILL_STATE": f"{scratch.name}/state",
                            "STILL_CACHE_DIR": f"{scratch.name}/cache"} | (PASSPHRASE if self.encrypted else {})
        self.repository = self.folder / "state/repository"
        self.run_still("init", *([] if self.encrypted else ["--no-encryption"]))

    def start(self, *arguments, environment=None, **options):
        """The finished process, with its output as text."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        done = subprocess.run([STILL, *arguments], env=self.environment if environment is None else environment,
                              check=False, timeout=240, **options)
        done.stdout = (done.stdout or b"").decode(errors="surrogateescape")
        done.stderr = (done.stderr or b"").decode(errors="surrogateescape")
        return done

    def run_still(self, *arguments, code=0, **options):
        """What it said as JSON; `stderr` of the last call is kept."""
        done = self.start("--json", *arguments, **options)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stdout}{done.stderr}")
        self.stderr = done.stderr
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout

    def refused(self, code, why, *arguments, **options):
        self.run_still(*arguments, code=code, **options)
        self.assertIn(why, self.stderr)
        self.stderr.encode("utf-8")  # Also what is said about bytes is text.

    def disk(self, name="disk.img", size=MIB):
        path = os.fsencode(self.folder) + b"/" + (name if isinstance(name, bytes) else name.encode())
        with open(path, "wb") as file:
            file.write(os.urandom(min(size, MIB)))
            file.truncate(size)
        return path

    def store(self, session, name, *labels):
        options = [word for label in labels for word in ("--label", label)]
        return self.run_still("import", self.disk(session), "--name", name, *options)["id"]

    def names(self, *arguments, **options):
        return [snapshot["name"] for snapshot in self.run_still("list", *arguments, **options)]
