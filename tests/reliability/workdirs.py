"""A second run in a folder is refused, unless the first was killed."""

import contextlib
import multiprocessing
import os
import pathlib
import random
import signal
import socket
import time
from unittest import mock

import jax

from gpt2_flax.errors import InputError
from gpt2_flax.training.source import load_run
from gpt2_flax.training.workdir import locked
from tests import forked
from tests.reliability import runs
from tests.reliability.campaign import Tally


def locked_out(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 12: a second run beside the first, many at one moment, a lock left behind."""
  tally = Tally()
  rounds, num_rivals = (100, 4) if full else (3, 2)
  for number in range(10 if full else 1):
    with tally.attempt(f"run {number}"):
      _second_beside_first(folder / f"run{number}", after=chance.randint(10, 30))
  *races, visits = _rivals(folder / "race", rounds, num_rivals)
  for number, answers in enumerate(races):
    with tally.attempt(f"race {number}"):
      winners = [pid for pid, answer in answers.items() if answer == "in"]
      assert len(winners) == 1, answers
      named = f"is in use by process {winners[0]} on {socket.gethostname()}: "
      refused = [answer for answer in answers.values() if answer != "in"]
      assert all(named in answer for answer in refused), answers
  with tally.attempt("in and out"):
    assert set(visits.values()) == {"always alone"}, visits
  tally.measured = f"{rounds} of them races of {num_rivals} that start at one moment"
  return tally


def _second_beside_first(workdir: pathlib.Path, after: int) -> None:
  flags = (*runs.TINY, f"--workdir={workdir}", "--config.train.log_every_steps=1")
  first = runs.start(*flags)
  runs.wait_for(runs.logged(after), workdir, first)
  first.send_signal(signal.SIGSTOP)  # so that whatever changes now, the second did it
  first.wait_until("T")
  before = _content(workdir)

  second = runs.train(*flags)
  assert second.returncode == 2, second
  line = f"error: --workdir={workdir} is in use by process {first.pid} on "
  assert second.stderr.startswith(line + socket.gethostname()), second
  assert second.stderr.count("\n") == 1, second
  assert _content(workdir) == before, "the second run changed something"
  if runs.checkpoint_steps(workdir):
    load_run(workdir)  # who only reads may come in

  first.kill()
  forked.finish(first)
  assert str(first.pid) in (workdir / "lock").read_text(), "left no lock to take over"
  runs.train_to_the_end(workdir)
  assert not (workdir / "lock").exists(), "the last one out left its lock"


def _content(folder: pathlib.Path) -> dict[pathlib.Path, tuple[int, bytes]]:
  """Every file: when it was changed, and what is in it."""
  files = [path for path in folder.rglob("*") if path.is_file()]
  return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def _rivals(
  workdir: pathlib.Path, rounds: int, num_rivals: int
) -> list[dict[int, str]]:
  """What each process saw, round by round: one that gets in stays until all have tried.

  In one more round they go in and out, as often as they can.
  """
  workdir.mkdir()
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([__name__])
  together, said = context.Barrier(num_rivals), context.Queue()
  arguments = workdir, rounds, together, said
  rivals = [context.Process(target=_rival, args=arguments) for _ in range(num_rivals)]
  for rival in rivals:
    rival.start()
  answers = [{} for _ in range(rounds + 1)]
  for _ in range((rounds + 1) * num_rivals):
    number, pid, answer = said.get(timeout=forked.PATIENCE_SECONDS)
    answers[number][pid] = answer
  for rival in rivals:
    rival.join()
  return answers


def _rival(workdir: pathlib.Path, rounds: int, together, said) -> None:
  jax.devices()  # so that nobody has to wait for them
  for number in range(rounds):
    if together.wait() == 0 and number % 2:
      (workdir / "lock").write_text("process 1 on a machine that is gone\n")
    together.wait()
    try:
      with locked(workdir):
        said.put((number, os.getpid(), "in"))
        together.wait()
    except InputError as error:
      said.put((number, os.getpid(), str(error)))
      together.wait()
  said.put((rounds, os.getpid(), _visits(workdir)))


def _visits(workdir: pathlib.Path) -> str:
  inside = workdir / "inside"
  with mock.patch.object(time, "sleep"):  # so that all try all the time
    for _ in range(300):
      with contextlib.suppress(InputError), locked(workdir):
        try:
          inside.mkdir()
        except FileExistsError:
          return "met another"
        inside.rmdir()
  return "always alone"
