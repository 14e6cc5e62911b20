"""A run that is killed again and again during saves ends as one that nobody killed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import os
import pathlib
import random
import signal
import time

from tests import forked
from tests.reliability.campaign import Tally
from tests.reliability.runs import (
  complaints,
  digest,
  Moment,
  newest_step,
  start,
  TINY,
  wait_for,
)

ENTRIES = 24  # files and folders, about as many as a checkpoint has
STEPS_A_TRY = 4


def killed(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 3: some runs, each killed many times in a row; two side by side."""
  num_runs, num_tries = (10, 20) if full else (1, 1)
  flags = (
    *TINY,
    "--config.checkpoint.every_steps=1",
    f"--config.train.num_steps={STEPS_A_TRY * num_tries}",
  )
  with ThreadPoolExecutor(2) as pool:
    reference = pool.submit(_uninterrupted, folder / "reference", flags)
    runs = [
      _KilledRun(folder / f"run{number}", flags, random.Random(chance.random()))
      for number in range(num_runs)
    ]
    for done in [pool.submit(run.go, num_tries, reference.result) for run in runs]:
      done.result()
  tally = Tally()
  for run in runs:
    tally.add(run.tally)
  num_amid = sum(run.num_amid_a_save for run in runs)
  num_kills = sum(run.num_kills for run in runs)
  tally.measured = f"{num_amid} of {num_kills} kills came amid a save"
  return tally


def _start(workdir: pathlib.Path, flags: tuple[str, ...]) -> forked.Process:
  return start(*flags, f"--workdir={workdir}")


def _uninterrupted(workdir: pathlib.Path, flags: tuple[str, ...]) -> str:
  ended = forked.finish(_start(workdir, flags))
  assert (ended.returncode, complaints(ended)) == (0, []), ended
  return digest(workdir)


def _unfinished(workdir: pathlib.Path) -> list[pathlib.Path]:
  """Saves that are under way, or were."""
  return list((workdir / "checkpoints").glob("*tmp*"))


def _amid_save(after: int, num_entries: int) -> Moment:
  """A later checkpoint than this is being written, and so much of it is there.

  It has also come when a still later one is whole: some moments are too short to see.
  """

  def moment(workdir: pathlib.Path) -> bool:
    being_written = [
      path for path in _unfinished(workdir) if int(path.name.split(".")[0]) > after
    ]
    return newest_step(workdir) > after + 1 or any(
      sum(len(folders) + len(files) for _, folders, files in os.walk(path))
      >= num_entries
      for path in being_written
    )

  return moment


class _KilledRun:
  """A run, killed again and again.

  Attributes:
    tally: a try is what comes after a kill.
    num_kills, num_amid_a_save: how many there were, and how many left one unfinished.
  """

  def __init__(
    self, workdir: pathlib.Path, flags: tuple[str, ...], chance: random.Random
  ):
    self.tally = Tally()
    self.num_kills = self.num_amid_a_save = 0
    self._workdir, self._flags, self._chance = workdir, flags, chance

  def go(self, num_tries: int, expected: Callable[[], str]) -> None:
    """Kills it so many times, or some more, and lets it go on to the end."""
    self._kill_amid_a_save(_start(self._workdir, self._flags))
    for number in range(1, num_tries + 1):
      with self.tally.attempt(f"{self._workdir.name} after {number} kills"):
        if self._chance.random() < 0.1:  # another one while it starts
          process = _start(self._workdir, self._flags)
          time.sleep(self._chance.uniform(0, 0.5))
          self._kill(process)
        process = _start(self._workdir, self._flags)
        newest, said = newest_step(self._workdir), process.stdout.readline()
        try:
          begins = f"goes on from step {newest} " if newest else "starts at step 0 "
          assert begins in said, f"{newest} is the newest whole one, and it says {said}"
        finally:
          if number < num_tries:
            self._kill_amid_a_save(process)
    ended = forked.finish(process)
    with self.tally.attempt(f"{self._workdir.name} at its end"):
      assert (ended.returncode, complaints(ended)) == (0, []), ended.stderr
      assert digest(self._workdir) == expected(), "it ends in another state"

  def _kill_amid_a_save(self, process: forked.Process) -> None:
    after = newest_step(self._workdir) + self._chance.randint(0, 1)
    moment = _amid_save(after, self._chance.randint(0, ENTRIES))
    wait_for(moment, self._workdir, process)
    self._kill(process)

  def _kill(self, process: forked.Process) -> None:
    process.send_signal(signal.SIGKILL)
    ended = forked.finish(process)
    self.num_kills += 1
    self.num_amid_a_save += bool(_unfinished(self._workdir))
    assert ended.returncode == -signal.SIGKILL, f"it had ended with {ended.returncode}"
    assert complaints(ended) == [], ended.stderr
