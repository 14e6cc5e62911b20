"""The lock on a run's folder; races for it: `tests/reliability/workdirs.py`."""

import errno
import fcntl
import os
import pathlib
import socket
import tempfile
from unittest import mock

from absl import logging
import chex

from configs import toy
from gpt2_flax.errors import InputError
from gpt2_flax.training import loop
from gpt2_flax.training import workdir as workdir_module
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.workdir import locked
from tests import forked

HOLD = """
import pathlib, sys
from gpt2_flax.training.workdir import locked

with locked(pathlib.Path(sys.argv[1])):
  print("in", flush=True)
  sys.stdin.read()
"""


class LockedTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(folder) / "run"

  def content(self) -> dict[pathlib.Path, tuple[int, bytes]]:
    files = self.workdir.rglob("*")
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

  def test_a_second_run_is_refused_told_of_the_first_and_changes_nothing(self):
    with forked.start("-c", HOLD, str(self.workdir)) as first:
      self.assertEqual(first.stdout.readline(), "in\n")
      before = self.content()
      whose = f"process {first.pid} on {socket.gethostname()}"
      with (
        mock.patch.object(workdir_module, "LOCK_SECONDS", 0.2),
        self.assertRaisesRegex(InputError, f"run is in use by {whose}: wait for its"),
        locked(self.workdir),
      ):
        self.fail("it got in")
      self.assertEqual(self.content(), before)
    with locked(self.workdir):  # it has left
      self.assertIn(f"process {os.getpid()} on", (self.workdir / "lock").read_text())
    self.assertEqual(self.content(), {})

  def test_training_is_refused_before_anything_is_written(self):
    config, dataset = parse(toy.get_config())
    with forked.start("-c", HOLD, str(self.workdir)) as first:
      self.assertEqual(first.stdout.readline(), "in\n")
      before = self.content()
      with (
        mock.patch.object(workdir_module, "LOCK_SECONDS", 0.2),
        self.assertRaisesRegex(InputError, "is in use by"),
      ):
        loop.train(config, dataset, self.workdir)
      self.assertEqual(self.content(), before)

  def test_a_lock_that_a_killed_run_has_left_keeps_nobody_out(self):
    with forked.start("-c", HOLD, str(self.workdir)) as first:
      self.assertEqual(first.stdout.readline(), "in\n")
      first.kill()
    left = f"process {first.pid} on {socket.gethostname()}\n"
    self.assertEqual((self.workdir / "lock").read_text(), left)
    with locked(self.workdir):
      now = (self.workdir / "lock").read_text()
      self.assertEqual(now, f"process {os.getpid()} on {socket.gethostname()}\n")

  def test_an_owner_who_has_just_left_has_taken_its_lock_along(self):
    """The file that was opened is not the one that others see: it locks nothing."""
    stat, times = os.path.samestat, []

    def once_another(*files):
      times.append(files)
      return len(times) > 1 and stat(*files)

    with mock.patch.object(os.path, "samestat", once_another), locked(self.workdir):
      self.assertLen(times, 2)

  def test_a_file_system_without_locks_gives_a_warning(self):
    unknown = OSError(errno.ENOTSUP, "Operation not supported")
    with (
      mock.patch.object(fcntl, "flock", side_effect=unknown),
      mock.patch.object(logging, "warning") as warning,
      locked(self.workdir),
    ):
      said = (self.workdir / "lock").read_text()
      self.assertStartsWith(said, f"process {os.getpid()} on ")
    message, *values = warning.call_args.args
    self.assertRegex(message % tuple(values), "run cannot be locked .*not supported")
    self.assertEqual(list(self.workdir.iterdir()), [])
