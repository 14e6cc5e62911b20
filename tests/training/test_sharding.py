"""Runs the tests of `eight_devices.py` where there are eight devices."""

import os
import pathlib
import subprocess
import sys

import chex

from tests.reliability.runs import EIGHT_DEVICES


class ShardingTest(chex.TestCase):
  def test_on_eight_devices(self):
    tests = pathlib.Path(__file__).with_name("eight_devices.py")
    done = subprocess.run(
      [sys.executable, "-m", "pytest", "-n", "0", "-s", str(tests)],
      env=os.environ | EIGHT_DEVICES,
      capture_output=True,
      text=True,
      timeout=900,
    )
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    self.assertRegex(done.stdout, r"\d\d passed in")
    # and no activation, [B, T, D], is brought together whole on the way
    told = done.stdout + done.stderr
    self.assertNotRegex(told, r"full rematerialization.* = f32\[\d+,\d+,\d+\]")
