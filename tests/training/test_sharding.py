"""Runs the tests that need several devices where there are eight."""

import pathlib

import chex
import pytest

from tests import forked


class ShardingTest(chex.TestCase):
  def test_on_eight_devices(self):
    self.run_tests("not slow")

  @pytest.mark.slow
  def test_every_mesh_of_eight_devices(self):
    self.run_tests("slow")

  def run_tests(self, which: str):
    here = pathlib.Path(__file__).parent
    tests = here / "eight_devices.py", here.with_name("examples") / "mesh.py"
    arguments = "-m", "pytest", "-n", "0", "-s", "-m", which, *map(str, tests)
    done = forked.finish(forked.start(*arguments, **forked.on_devices(8)))
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    self.assertRegex(done.stdout, r"\d passed")
    # and no activation, [B, T, D], is brought together whole on the way
    told = done.stdout + done.stderr
    self.assertNotRegex(told, r"full rematerialization.* = f32\[\d+,\d+,\d+\]")
