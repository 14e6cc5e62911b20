"""Runs the tests of `eight_devices.py` where there are eight devices."""

import os
import pathlib
import subprocess
import sys

import chex

FLAGS = (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",  # what takes time here is compiling
)


class ShardingTest(chex.TestCase):
  def test_on_eight_devices(self):
    tests = pathlib.Path(__file__).with_name("eight_devices.py")
    done = subprocess.run(
      [sys.executable, "-m", "pytest", "-n", "0", "-s", str(tests)],
      env=os.environ
      | {
        "XLA_FLAGS": " ".join(FLAGS),
        "JAX_PLATFORMS": "cpu",
        # With as many threads as devices, XLA's threads may all wait for one another.
        "NPROC": "16",
      },
      capture_output=True,
      text=True,
      timeout=900,
    )
    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
    self.assertRegex(done.stdout, r"\d\d passed in")
    # and no activation, [B, T, D], is brought together whole on the way
    told = done.stdout + done.stderr
    self.assertNotRegex(told, r"full rematerialization.* = f32\[\d+,\d+,\d+\]")
