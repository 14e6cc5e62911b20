"""A save that fails in the background ends the run, soon and aloud."""

from collections.abc import Callable
import errno
import functools
import pathlib
import random
import resource
import shutil
from unittest import mock

import jax

from gpt2_flax.errors import RunError
from gpt2_flax.training import checkpoints
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.mesh import one_device_mesh
from gpt2_flax.training.step import abstract_state, init_state, TrainState
from tests import forked
from tests.reliability.campaign import Tally
from tests.reliability.damage import KEEP, MODEL, OPTIMIZER
from tests.reliability.runs import (
  assert_whole,
  checkpoint_steps,
  digest,
  logged,
  records,
  reference,
  start,
  TINY,
  train_to_the_end,
  wait_for,
)

EVERY_STEPS = 10  # as TINY saves


def raised_by_the_next(
  folder: pathlib.Path, chance: random.Random, full: bool
) -> Tally:
  """Row 7: whatever fails, the next save, the wait, or the end raises one line."""
  tally = Tally()
  for fault in (_disk_error, _defect, _gone, _in_the_way, _no_folder):
    for noticed_by in (_next_save, Checkpoints.wait, Checkpoints.__exit__):
      with tally.attempt(f"{fault.__name__}, noticed by {noticed_by.__name__}"):
        place = folder / f"{fault.__name__}{noticed_by.__name__}"
        _assert_raised(place / "checkpoints", fault, noticed_by)
  for number in range(12 if full else 0):
    with tally.attempt(f"run {number}"):
      workdir = folder / f"run{number}"
      _assert_ends(workdir, after=chance.randint(1, 14) * 5)
      train_to_the_end(workdir)
      same = digest(workdir) == digest(reference())
      assert same, "gone on, it ends in another state"
  return tally


def _assert_raised(
  folder: pathlib.Path,
  fault: Callable[[pathlib.Path], None],
  noticed_by: Callable[[Checkpoints], None],
) -> None:
  before = checkpoints.manifest

  def failing(temporary: pathlib.Path) -> bytes:
    if temporary.name.startswith("2"):
      fault(temporary)
    return before(temporary)

  with mock.patch.object(checkpoints, "manifest", failing):
    saver = Checkpoints(folder, KEEP)
    _save(saver, 1)
    saver.wait()
    _save(saver, 2)
    try:
      noticed_by(saver)
    except RunError as error:
      line = str(error)
    else:
      raise AssertionError("nothing was raised")
  assert line.startswith(f"checkpoint {folder / '2'} cannot be written: "), line
  assert "\n" not in line, line
  if fault is not _no_folder:
    assert_whole(folder / "1")
    assert checkpoints.damage(folder / "2"), "what is not whole counts"


@functools.cache
def _state() -> TrainState:
  abstract = abstract_state(MODEL, OPTIMIZER, one_device_mesh())
  return init_state(MODEL, OPTIMIZER, jax.random.key(0), abstract)


def _save(saver: Checkpoints, step: int) -> None:
  saver.save(_state().replace(step=_state().step + step), {}, {})


def _next_save(saver: Checkpoints) -> None:
  _save(saver, 3)


# What happens to the folder that is being written


def _disk_error(temporary: pathlib.Path) -> None:
  raise OSError(errno.EIO, "Input/output error")


def _defect(temporary: pathlib.Path) -> None:
  raise KeyError("two\nlines")


def _gone(temporary: pathlib.Path) -> None:
  shutil.rmtree(temporary)


def _in_the_way(temporary: pathlib.Path) -> None:
  (temporary.with_name("2") / "else").mkdir(parents=True)


def _no_folder(temporary: pathlib.Path) -> None:
  shutil.rmtree(temporary.parent)
  temporary.parent.write_text("a file")


def _assert_ends(workdir: pathlib.Path, after: int) -> None:
  """From some step on, the system lets train.py write no file larger than 20 kB."""
  # jax would warn of each compiled program that it cannot keep
  keep_no_programs = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
  process = start(*TINY, f"--workdir={workdir}", **keep_no_programs)
  wait_for(logged(after), workdir, process)
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
  ended = forked.finish(process)
  assert ended.returncode == 1, ended
  assert ended.stderr.count("\n") == 1, ended
  line = ended.stderr.strip()
  assert line.startswith(f"error: checkpoint {workdir}/checkpoints/"), line
  assert line.endswith(" cannot be written: File too large"), line
  failed = int(line.split("/checkpoints/")[1].split()[0])
  assert records(workdir)[-1]["step"] <= failed + EVERY_STEPS, "it was noticed late"
  for step in checkpoint_steps(workdir):
    assert step < failed, f"{step} counts, though {failed} failed"
    assert_whole(workdir / "checkpoints" / str(step))
