"""The lock on a run's folder where there is none to be had; else see reliability."""

import errno
import fcntl
import os
import pathlib
import tempfile
from unittest import mock

from absl import logging
import chex

from gpt2_flax.training.workdir import locked


class LockedTest(chex.TestCase):
  def test_a_file_system_without_locks_gives_a_warning(self):
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / "run"
    unknown = OSError(errno.ENOTSUP, "Operation not supported")
    with (
      mock.patch.object(fcntl, "flock", side_effect=unknown),
      mock.patch.object(logging, "warning") as warning,
      locked(workdir),
    ):
      said = (workdir / "lock").read_text()
      self.assertStartsWith(said, f"process {os.getpid()} on ")
    message, *values = warning.call_args.args
    self.assertRegex(message % tuple(values), "run cannot be locked .*not supported")
    self.assertEqual(list(workdir.iterdir()), [])
