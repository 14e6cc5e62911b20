"""Runs the tests of `eight_devices.py` where there are eight devices."""

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
    tests = pathlib.Path(__file__).with_name("eight_devices.py")
    arguments = "-m", "pytest", "-n", "0", "-s", "-m", which, str(tests)
    done = forked.finish(forked.start(*arguments, **forked.on_devices(8)))
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    self.assertRegex(done.stdout, r"\d\d passed")
    # and no activation, [B, T, D], is brought together whole on the way
    told = done.stdout + done.stderr
    self.assertNotRegex(told, r"full rematerialization.* = f32\[\d+,\d+,\d+\]")
