"""A run that was stopped once or twice ends bit for bit as one that nobody stopped."""

import pathlib
import random
import signal

from tests.reliability.campaign import Tally
from tests.reliability.runs import (
  complaints,
  digest,
  evaluations,
  logged,
  records,
  reference,
  stop,
  train_to_the_end,
)

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EARLIEST = 11  # there is a checkpoint by then
LATEST = 70  # of NUM_STEPS: whoever waits for the moment may be late by some steps


def resumed(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 1: stopped after random steps, by each signal in turn, and gone on."""
  tally, stopped_after = Tally(), []
  for run in range(32 if full else 1):
    times = 1 + run % 2
    with tally.attempt(f"run {run}, stopped {times} time(s)"):
      workdir = folder / f"run{run}"
      for _ in range(times):
        number = SIGNALS[len(stopped_after) % len(SIGNALS)]
        step = _last_logged(workdir) + chance.randint(EARLIEST, LATEST // times)
        _stop_after(step, number, workdir)
        stopped_after.append(_last_logged(workdir))
      train_to_the_end(workdir)
      where = f"stopped after steps {stopped_after[-times:]}, it"
      assert digest(workdir) == digest(reference()), f"{where} ends in another state"
      measured = evaluations(workdir) == evaluations(reference())
      assert measured, f"{where} was evaluated otherwise"
  tally.measured = f"stopped after {len(set(stopped_after))} different steps"
  return tally


def _last_logged(workdir: pathlib.Path) -> int:
  return records(workdir)[-1]["step"] if workdir.exists() else 0


def _stop_after(step: int, number: signal.Signals, workdir: pathlib.Path) -> None:
  ended = stop(logged(step), number, workdir, "--config.train.log_every_steps=1")
  if number == signal.SIGKILL:
    assert ended.returncode == -number, ended
  else:
    assert ended.returncode == 128 + number, ended
    assert f"stopped by {number.name} after step" in ended.stdout, ended
    assert complaints(ended) == [], ended
