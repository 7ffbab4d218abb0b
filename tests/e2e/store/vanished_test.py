"""Snapshots whose manifests are gone though nobody has forgotten them."""

import shutil

from repository_case import DAMAGED, MISSING, STATE, RepositoryCase


class Vanishing(RepositoryCase):
    def setUp(self):
        super().setUp()
        self.ids = {name: self.store("web.img", name) for name in ("one", "two")}

    def manifest(self, name):
        identity = self.ids[name]
        return self.repository / "snapshots" / identity[:2] / identity

    def elsewhere(self):
        return self.environment | {"STILL_CACHE_DIR": str(self.folder / "cache of another host")}


class Vanished(Vanishing):
    def test_it_is_told_prune_refuses_and_repair_puts_it_back(self):
        self.manifest("one").unlink()
        self.assertEqual(self.names(), ["two"])
        self.assertIn("vanished", self.stderr)
        self.assertIn(self.ids["one"][:12], self.stderr)
        self.assertEqual(self.run_still("stats")["vanished_snapshots"], 1)
        self.refused(DAMAGED, "still repair", "verify")
        for arguments in (("prune",), ("prune", "--dry-run")):
            self.refused(STATE, "nobody has forgotten it: one (", *arguments)
        self.assertEqual(self.names(), ["two"])
        self.run_still("repair")
        self.assertEqual(self.names(), ["one", "two"])
        self.assertNotIn("vanished", self.stderr)
        self.assertTrue(self.run_still("verify", "--read-data")["ok"])
        self.run_still("prune")

    def test_what_one_host_forgets_or_gives_up_has_vanished_for_none(self):
        self.assertEqual(self.names(environment=self.elsewhere()), ["one", "two"])
        self.run_still("forget", "one")
        self.assertEqual(self.names(environment=self.elsewhere()), ["two"])
        self.assertNotIn("vanished", self.stderr)
        self.manifest("two").unlink()
        self.run_still("list", environment=self.elsewhere())
        self.run_still("list")
        self.assertIn("vanished", self.stderr)
        self.run_still("forget", "two")
        self.run_still("prune", environment=self.elsewhere())

    def test_an_older_copy_of_the_repository_is_told_and_the_newer_one_is_as_it_was(self):
        copy = self.folder / "copy"
        shutil.copytree(self.repository, copy)
        self.ids["three"] = self.store("web.img", "three")
        self.run_still("--repo", copy, "list")
        self.assertIn("three", self.stderr)
        self.refused(STATE, "three (", "--repo", copy, "prune")
        # What is not there is not made up.
        said = self.run_still("--repo", copy, "repair")
        self.assertIn("its data is not in this repository", "".join(said["actions"]))
        self.assertEqual(self.names("--repo", copy), ["one", "two"])
        self.assertEqual(self.names(), ["one", "two", "three"])
        self.assertNotIn("vanished", self.stderr)
        self.run_still("prune")


class GivenUp(Vanishing):
    encrypted = False

    def test_whoever_wants_to_gives_it_up(self):
        self.manifest("one").unlink()
        self.manifest("two").unlink()
        self.assertEqual(self.names(), [])
        self.refused(MISSING, "has vanished though nobody has forgotten it", "show", "one")
        self.assertEqual(self.run_still("forget", "one", "one", "--dry-run")["given_up"], [self.ids["one"]])
        self.assertEqual(self.run_still("forget", "one", "--dry-run")["given_up"], [self.ids["one"]])
        self.assertEqual(self.run_still("stats")["vanished_snapshots"], 2)
        done = self.run_still("forget", "one", self.ids["two"][:12])
        self.assertEqual(done["given_up"], [self.ids["one"], self.ids["two"]])
        self.assertEqual(self.run_still("stats")["vanished_snapshots"], 0)
        self.run_still("prune")

    def test_what_is_held_is_not_given_up_before_it_is_released(self):
        self.run_still("hold", "one", "--reason", "audit")
        self.manifest("one").unlink()
        self.refused(STATE, "held (audit)", "forget", "one")
        self.refused(STATE, "one (", "prune")
        self.run_still("release", "one")
        self.run_still("forget", "one")
        self.run_still("prune")
