"""The commands that keep a repository: forget, hold, release, verify, repair, key."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

STILL = pathlib.Path(os.environ["STILL_BUILD"]) / "bin" / "still"
MIB = 1024 * 1024
IN_USE, DAMAGED, DENIED, USAGE = 5, 8, 9, 2


class Repository(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory(prefix="still-commands-")
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        self.environment = {"PATH": os.environ["PATH"], "HOME": scratch.name, "STILL_STATE": f"{scratch.name}/state",
                            "STILL_CACHE_DIR": f"{scratch.name}/cache"}

    def run_still(self, *arguments, code=0, **environment):
        done = subprocess.run([STILL, "--json", *arguments], env=self.environment | environment, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, check=False, timeout=60)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else done.stdout

    def store(self, session, name, *labels):
        """Imports take the file's name as their session."""
        path = self.folder / session
        path.write_bytes(os.urandom(MIB))
        options = [word for label in labels for word in ("--label", label)]
        return self.run_still("import", str(path), "--name", name, *options)["id"]

    def names(self):
        return [snapshot["name"] for snapshot in self.run_still("list")]


class Forget(Repository):
    def setUp(self):
        super().setUp()
        self.run_still("init", "--no-encryption")
        for name in ("a1", "a2", "a3", "a4"):
            self.store("a.img", name, *(["keep=yes"] if name == "a1" else []))
        self.store("b.img", "b1")

    def test_a_dry_run_says_why_and_the_run_does_it(self):
        said = self.run_still("forget", "--keep-last", "2", "--dry-run")
        self.assertEqual(self.names(), ["a1", "a2", "a3", "a4", "b1"])
        done = self.run_still("forget", "--keep-last", "2")
        self.assertEqual(done["decisions"], said["decisions"])
        self.assertEqual({d["name"]: d["keep"] for d in done["decisions"]},
                         {"a1": False, "a2": False, "a3": True, "a4": True, "b1": True})
        self.assertTrue(all(decision["reasons"] for decision in done["decisions"]))
        self.assertIn("last: 2 are newer", done["decisions"][1]["reasons"])
        self.assertEqual(self.names(), ["a3", "a4", "b1"])
        self.assertEqual(self.run_still("forget", "--keep-last", "2")["forgotten"], [])
        self.assertTrue(self.run_still("verify", "--read-data")["ok"])

    def test_rules_labels_and_sessions_combine(self):
        self.run_still("forget", "--session", "a.img", "--keep-daily", "1", "--keep-label", "keep=yes")
        self.assertEqual(self.names(), ["a1", "a4", "b1"])
        self.run_still("forget", "--keep-hourly", "3", "--keep-within", "1h")
        self.assertEqual(self.names(), ["a1", "a4", "b1"])

    def test_what_is_held_stays_until_it_is_released(self):
        self.run_still("hold", "a1", "--reason", "for the audit")
        self.run_still("forget", "a1", code=IN_USE)
        self.run_still("forget", "a2", "a1", code=IN_USE)
        self.assertEqual(self.run_still("forget", "a1", "--dry-run")["forgotten"], [])
        self.run_still("forget", "--keep-last", "1")
        self.assertEqual(self.names(), ["a1", "a4", "b1"])
        self.assertEqual(self.run_still("show", "a1")["labels"]["hold"], "for the audit")
        self.run_still("repair", "catalog")
        self.run_still("forget", "a1", code=IN_USE)
        self.run_still("release", "a1")
        self.run_still("forget", "a1")
        self.assertEqual(self.names(), ["a4", "b1"])

    def test_a_snapshot_may_be_held_from_its_beginning(self):
        self.store("b.img", "b2", "hold=")
        self.store("b.img", "b3")
        self.run_still("forget", "b2", code=IN_USE)
        self.run_still("release", "b2")
        self.run_still("forget", "b2")
        self.assertNotIn("b2", self.names())

    def test_what_would_drop_everything_or_means_nothing_is_refused(self):
        for arguments in ([], ["a1", "--keep-last", "1"], ["--keep-last", "0"], ["--keep-last", "some"], ["--keep-within", "1h"],
                          ["--session", "a.img"], ["--session", "a.img", "a1"]):
            self.run_still("forget", *arguments, code=USAGE)
        self.assertEqual(len(self.names()), 5)


class TwoHosts(Repository):
    """Two state directories are two hosts, which here have one name and share an encrypted repository."""

    def setUp(self):
        super().setUp()
        self.environment |= {"STILL_PASSPHRASE": "secret", "STILL_REPO": f"{self.folder}/repository"}
        self.other = {"STILL_STATE": f"{self.folder}/other", "STILL_CACHE_DIR": f"{self.folder}/other-cache"}
        self.run_still("init")

    def store_there(self, session, name):
        path = self.folder / session
        path.write_bytes(os.urandom(MIB))
        return self.run_still("import", str(path), "--name", name, **self.other)["id"]

    def test_what_is_newest_is_asked_of_this_host(self):
        self.store("web", "ours")
        self.store_there("web", "theirs")
        self.store_there("db", "theirs-too")
        for reference, name in (("latest", "ours"), ("web@latest", "ours"), ("theirs", "theirs")):
            self.assertEqual(self.run_still("show", reference)["name"], name)
        self.assertEqual(self.run_still("show", "web@latest", **self.other)["name"], "theirs")
        there = self.run_still("show", "theirs")["host_id"]
        self.assertEqual(self.run_still("show", f"{there[:8]}/web@latest")["name"], "theirs")
        self.run_still("show", "db@latest", code=3)

    def test_rules_of_one_leave_the_other_alone(self):
        for name in ("a1", "a2"):
            self.store("web", name)
            self.store_there("web", name + "-there")
        self.run_still("forget", "--keep-last", "1")
        self.assertEqual(self.names(), ["a1-there", "a2", "a2-there"], "no host was named: this one's")
        self.run_still("forget", "--session", "*/*", "--keep-last", "1")
        self.assertEqual(self.names(), ["a2", "a2-there"])

    def test_a_script_that_runs_twice_removes_no_second_one(self):
        for name in ("a1", "a2"):
            self.store("web", name)
        for reference in ("latest", "web@latest", "web@0s"):
            self.run_still("forget", reference, code=IN_USE)
        self.assertEqual(self.names(), ["a1", "a2"])


class Init(Repository):
    def test_the_compression_is_chosen_once_and_shown(self):
        self.run_still("init", "--no-encryption", "--compression", "tiny", code=USAGE)
        self.assertEqual(self.run_still("init", "--no-encryption", "--compression", "small")["compression"], "small")
        self.store("a.img", "one")
        self.assertEqual(self.run_still("stats")["compression"], "small")
        self.assertTrue(self.run_still("verify", "--read-data")["ok"])


class Damage(Repository):
    def test_a_catalog_that_does_not_open_is_rebuilt(self):
        self.run_still("init", "--no-encryption")
        self.store("a.img", "one")
        catalog = self.folder / "state/repository/catalog.db"
        catalog.write_bytes(b"not a database" + catalog.read_bytes()[14:])
        self.assertIn("repair catalog", self.run_still("list", code=DAMAGED)["error"]["message"])
        self.run_still("repair", "catalog")
        self.assertEqual(self.names(), ["one"])


class Keys(Repository):
    def test_keys_are_added_changed_and_removed(self):
        first, second, third = ({"STILL_PASSPHRASE": word} for word in ("first", "second", "third"))
        self.run_still("init", **first)
        old = self.run_still("key", "list", **first)[0]["key"]
        added = self.run_still("key", "add", "--label", "two", STILL_NEW_PASSPHRASE="second", **first)["key"]
        changed = self.run_still("key", "change", added, STILL_NEW_PASSPHRASE="third", **second)["key"]
        self.run_still("key", "list", code=DENIED, **second)
        self.run_still("key", "remove", old, **third)
        self.run_still("key", "list", code=DENIED, **first)
        self.run_still("key", "remove", changed, code=IN_USE, **third)
        self.assertEqual([key["key"] for key in self.run_still("key", "list", **third)], [changed])


if __name__ == "__main__":
    unittest.main()
