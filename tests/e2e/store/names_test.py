"""Names and bytes: what a file system or a person can name is taken as bytes or refused with the reason."""

import os
import unittest

from repository_case import MISSING, STATE, USAGE, RepositoryCase


class FileNames(RepositoryCase):
    def test_a_name_that_is_no_utf8_is_stored_escaped_and_found_by_it(self):
        content = self.disk(b"caf\xe9.img")
        stored = self.run_still("import", content, "--name", "one")
        self.assertEqual(stored["session"], "caf\\xe9.img")
        self.store("other.img", "two")
        self.assertEqual(self.names(), ["one", "two"])
        self.assertEqual(self.names("caf\\xe9.img"), ["one"])
        self.assertEqual(self.run_still("show", "caf\\xe9.img@latest")["id"], stored["id"])
        self.assertTrue(self.run_still("verify", "--read-data")["ok"])
        self.run_still("repair", "catalog")
        back = os.fsencode(self.folder) + b"/zur\xfcck"
        self.run_still("export", "one", back)
        with open(back, "rb") as written, open(content, "rb") as given:
            self.assertEqual(written.read(), given.read())
        self.run_still("forget", "one")
        self.assertEqual(self.names(), ["two"])

    def test_what_people_give_is_refused_with_the_reason(self):
        image = self.disk()
        for name, why in ((b"caf\xe9", "not UTF-8"), ("latest", "means the newest"), ("a:b", "no reference could reach it"),
                          ("web@2d", "no reference could reach it"), ("a/b", "no reference could reach it"),
                          ("-x", "taken for an option"), ("n*", "no reference could reach it"), ("a\nb", "control characters"),
                          ("0" * 32, "looks like an id"), ("n" * 300, "longer than 255")):
            argument = b"--name=" + (name if isinstance(name, bytes) else name.encode())
            self.refused(USAGE, why, "import", image, argument)
        for label, why in ((b"k=\xff", "not UTF-8"), ("=v", "write it like key=value"), ("k=a\nb", "control characters")):
            self.refused(USAGE, why, "import", image, "--label", label)
        self.refused(USAGE, "given twice", "import", image, "--label", "k=1", "--label", "k=2")
        self.assertEqual(self.run_still("list"), [])

    def test_a_file_that_no_reference_could_reach_is_told_how(self):
        for name in ("latest", "a:b.img", "x@2d"):
            self.refused(USAGE, "--session NAME", "import", self.disk(name))
            self.assertEqual(self.run_still("import", self.disk(name), "--session", "web")["session"], "web")

    def test_machines_schedules_and_their_commands_have_names_that_can_be_stored(self):
        disk = self.disk(size=1024 * 1024)
        self.refused(USAGE, "means the newest", "run", "latest", "--disk", disk)
        odd = self.disk(b"\xff.img")
        self.refused(USAGE, "its path is not UTF-8", "run", "web", "--disk", odd)
        self.refused(USAGE, "means the newest", "schedule", "add", "latest", "--session", "*", "--every", "1h")
        self.refused(USAGE, "not UTF-8", "schedule", "add", "nightly", "--session", "*", "--every", "1h", "--before", b"echo \xff")
        self.refused(USAGE, "not UTF-8", "schedule", "add", "nightly", "--session", b"\xff*", "--every", "1h")
        self.refused(USAGE, "not UTF-8", "hold", "latest", "--reason", b"\xff")
        self.refused(USAGE, "not UTF-8", "--state", os.fsencode(self.folder) + b"/\xff", "ps")
        self.assertEqual(self.run_still("schedule", "list")["schedules"], [])


class Keys(RepositoryCase):
    def test_keys_are_removed_by_rm_and_for_now_by_its_old_name(self):
        added = [self.run_still("key", "add", environment=self.environment | {"STILL_NEW_PASSPHRASE": word})["key"]
                 for word in ("a", "b", "c")]
        self.run_still("key", "rm", *added[:2])
        self.assertEqual(self.stderr, "")
        self.run_still("key", "remove", added[2])
        self.assertIn("write key rm instead of key remove", self.stderr)
        self.assertEqual(len(self.run_still("key", "list")), 1)


class OneGrammar(RepositoryCase):
    encrypted = False

    def setUp(self):
        super().setUp()
        for name in ("n-1", "n-2", "n-3"):
            self.store("web.img", name, "tier=gold", f"run={name}")
        self.store("db.img", "db-1", "tier=silver")

    def test_retention_is_said_to_forget_as_it_is_to_schedules(self):
        said = self.run_still("forget", "--keep", "last=2 label=tier=silver", "--dry-run")
        self.assertEqual({d["name"]: d["keep"] for d in said["decisions"]},
                         {"n-1": False, "n-2": True, "n-3": True, "db-1": True})
        self.assertEqual(self.stderr, "")
        old = self.run_still("forget", "--keep-last", "2", "--keep-label", "tier=silver", "--dry-run")
        self.assertEqual(old["decisions"], said["decisions"])
        self.assertIn("write --keep last=2 instead of --keep-last 2", self.stderr)
        within = self.run_still("forget", "--keep-last", "1", "--keep-within", "1h", "--dry-run")
        self.assertTrue(all(decision["keep"] for decision in within["decisions"]))
        self.assertIn("--keep min-age=1h", self.stderr)
        self.refused(USAGE, "no such rule", "forget", "--keep", "lately=3")
        self.run_still("forget", "--keep", "last=1", "--keep", "daily=1", "--session", "web.img")
        self.assertEqual(self.names(), ["n-3", "db-1"])

    def test_lists_are_narrowed_by_names_patterns_and_labels(self):
        self.assertEqual(self.names("web.img"), ["n-1", "n-2", "n-3"])
        self.assertEqual(self.names("w*", "db.img"), ["n-1", "n-2", "n-3", "db-1"])
        self.assertEqual(self.names("--label", "tier=gold", "--label", "run=n-2"), ["n-2"])
        self.assertEqual(self.names("--label", "run"), ["n-1", "n-2", "n-3"])
        self.assertEqual(self.names("d*", "--label", "tier=gold"), [])

    def test_several_names_and_patterns_are_taken_where_one_is(self):
        self.assertEqual([one["name"] for one in self.run_still("show", "db-1", "n-*")], ["db-1", "n-1", "n-2", "n-3"])
        self.assertEqual(self.run_still("show", "db-1")["name"], "db-1")
        self.refused(MISSING, "no snapshot's name fits", "show", "x*")
        self.assertEqual(len(self.run_still("hold", "n-*", "--reason", "audit")), 3)
        self.run_still("forget", "n-1", "n-2", code=STATE)
        self.run_still("release", "n-1", "n-2", "n-3")
        self.run_still("forget", "n-[12]", code=MISSING)
        self.run_still("forget", "n-?", "db-1")
        self.assertEqual(self.names(), [])

    def test_schedules_too(self):
        for name, tier in (("nightly-web", "gold"), ("nightly-db", "silver"), ("hourly", "gold")):
            self.run_still("schedule", "add", name, "--session", "*", "--every", "1h", "--label", f"tier={tier}")
        listed = lambda *words: [one["schedule"]["name"] for one in self.run_still("schedule", "list", *words)["schedules"]]
        self.assertEqual(sorted(listed("--label", "tier=gold")), ["hourly", "nightly-web"])
        self.assertEqual(sorted(listed("nightly-*")), ["nightly-db", "nightly-web"])
        self.assertEqual(len(self.run_still("schedule", "pause", "nightly-*")), 2)
        self.assertEqual([one["schedule"]["paused"] for one in self.run_still("schedule", "show", "nightly-*", "hourly")],
                         [True, True, False])
        self.run_still("schedule", "preview", "hourly", "--for", "2d")
        self.run_still("schedule", "preview", "hourly", "--days", "2")
        self.assertIn("write --for 2d instead of --days 2", self.stderr)
        self.run_still("schedule", "rm", "nightly-*", "hourly")
        self.assertEqual(listed(), [])
        self.refused(MISSING, "no schedule fits", "schedule", "rm", "nightly-*")

    def test_numbers_are_numbers_in_every_answer(self):
        listed = self.run_still("list")[0]
        for value in (listed["images"][0]["size"], listed["point_unix_ns"], listed["drain"]["bytes_stored"], listed["sequence"]):
            self.assertIsInstance(value, int)
        self.assertEqual(listed["images"][0]["size"], 1024 * 1024)
        decided = self.run_still("forget", "--keep", "last=9", "--dry-run")["decisions"][0]
        self.assertEqual(decided["point_unix_ns"], listed["point_unix_ns"])
        self.run_still("schedule", "add", "hourly", "--session", "*", "--every", "1h", "--bandwidth", "50M")
        shown = self.run_still("schedule", "show", "hourly")
        self.assertEqual(shown["schedule"]["bandwidth"], 50 * 1024 * 1024)
        self.assertIsInstance(shown["next_unix_ns"], int)


if __name__ == "__main__":
    unittest.main()
