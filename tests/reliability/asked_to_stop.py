"""SIGTERM and SIGINT in every phase of a run: nothing lost, a quick end, no noise."""

from concurrent.futures import ThreadPoolExecutor
import pathlib
import random
import shutil
import signal
import time

import jax

from gpt2_flax.files.cache import cache_folder
from tests import forked
from tests.reliability.campaign import Tally
from tests.reliability.runs import (
  complaints,
  digest,
  newest_step,
  TINY,
  train,
  wait_for,
)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SECONDS = 10  # to be gone within
STEP = "gpt2_flax.training.loop:put_batch"  # comes right before a step
# In the order of a run: the function it enters, how often it does so before the signal
# comes, and how many seconds later that is, both at most.
PHASES = {
  "importing": ("gpt2_flax.doors.command_line:keep_compiled_programs", 1, 2.0),
  "building the text cache": ("gpt2_flax.tokenizer:CharTokenizer.encode", 3, 0.1),
  "reading the text": ("gpt2_flax.datasets.token_cache:tokenize", 1, 0.1),
  "compiling": (STEP, 1, 0.1),
  "stepping": (STEP, 9, 0.01),
  "restoring": ("gpt2_flax.training.checkpoints:Checkpoints.restore", 1, 0.1),
  "evaluating": ("gpt2_flax.training.evaluation:Evaluator.losses", 2, 0.01),
  "saving": ("gpt2_flax.training.checkpoints:Checkpoints.save", 2, 0.02),
}
QUICK = [["building the text cache", "stepping"], ["compiling", "saving"]]
# train.py, which leaves a line in a file named as each of these functions whenever it
# enters it. Compiling takes as long as for a large model, and is as deaf to Python.
ANNOUNCING = """
import hashlib, pathlib, pkgutil, runpy, sys

folder, phase, *functions = sys.argv.pop(1).split(",")

def announce(function):
  where, _, name = function.replace(":", ".").rpartition(".")
  owner = pkgutil.resolve_name(where)
  original = getattr(owner, name)

  def announced(*args, **kwargs):
    with (pathlib.Path(folder) / name).open("a") as entered:
      print(file=entered)
    if phase == "compiling":
      hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
    return original(*args, **kwargs)

  setattr(owner, name, announced)

for function in functions:
  announce(function)
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def asked_to_stop(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 4: two runs side by side, each asked by a signal of its own."""
  text = folder / "text.txt"
  text.write_text("".join(chance.choices("abcdefg \n", k=3 << 20)), "utf-8")
  flags = (
    *TINY,
    "--config=configs/text.py",
    f"--config.data.path={text}",
    f"--config.train.num_steps={400 if full else 100}",
    "--config.eval.every_steps=5",
    "--config.checkpoint.every_steps=7",
  )
  runs = [
    _Run(folder / number.name, flags, number, random.Random(chance.random()))
    for number in SIGNALS
  ]
  with ThreadPoolExecutor() as pool:
    going = [
      pool.submit(run.go, [*PHASES] * 4 if full else phases)
      for run, phases in zip(runs, QUICK, strict=True)
    ]
    for done in going:
      done.result()
    ends = set(pool.map(_Run.end, runs)) if full else set()
  tally = Tally()
  for run in runs:
    tally.add(run.tally)
  if full:
    with tally.attempt("where they end"):
      assert len(ends) == 1, "two runs that were stopped elsewhere end otherwise"
  longest, phase = max(second for run in runs for second in [(0.0, ""), *run.seconds])
  tally.measured = f"gone within {longest:.1f} s, which was when {phase}"
  return tally


class _Run:
  """A run that is asked to stop again and again, and each time goes on.

  Attributes:
    tally: a try is a signal.
    seconds: how long it took to be gone, and what it was at.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    flags: tuple[str, ...],
    number: signal.Signals,
    chance: random.Random,
  ):
    self.tally = Tally()
    self.seconds: list[tuple[float, str]] = []
    self._folder, self._workdir, self._cache = folder, folder / "run", folder / "cache"
    self._flags = (*flags, f"--workdir={self._workdir}")
    self._number, self._chance = number, chance
    compiled = jax.config.jax_compilation_cache_dir or cache_folder() / "compiled"
    self._environment = {
      "XDG_CACHE_HOME": str(self._cache),  # for its text alone
      "JAX_COMPILATION_CACHE_DIR": str(compiled),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }

  def go(self, phases: list[str]) -> None:
    """Asks it to stop in each."""
    for number, phase in enumerate(phases):
      with self.tally.attempt(f"{self._number.name} when {phase}"):
        if phase == "building the text cache":
          shutil.rmtree(self._cache, ignore_errors=True)
        self._ask(phase, self._folder / f"entered{number}")

  def end(self) -> str:
    """Lets it go on to the end; the digest of that."""
    ended = train(*self._flags, **self._environment)
    assert (ended.returncode, complaints(ended)) == (0, []), ended.stderr
    return digest(self._workdir)

  def _ask(self, phase: str, entered: pathlib.Path) -> None:
    function, times, seconds = PHASES[phase]
    functions = {function, STEP} if ".training." in function else {function}
    entered.mkdir(parents=True)
    arguments = ",".join((str(entered), phase, *functions))
    before = newest_step(self._workdir)
    begin = forked.unforked if phase == "importing" else forked.start
    process = begin("-c", ANNOUNCING, arguments, *self._flags, **self._environment)
    name = function.replace(":", ".").rpartition(".")[2]
    times = self._chance.randint(1, times)
    wait_for(lambda _: _num_lines(entered / name) >= times, self._workdir, process)
    time.sleep(self._chance.uniform(0, seconds))
    process.send_signal(self._number)
    began = time.monotonic()
    ended = forked.finish(process)
    took = time.monotonic() - began
    self.seconds.append((took, phase))
    assert took <= SECONDS, f"it took {took:.1f} s"
    # a shell shows both as 128 + n
    codes = (128 + self._number, -self._number)
    assert ended.returncode in codes, f"it ended with {ended.returncode}"
    assert complaints(ended) == [], ended.stderr
    begun = before + _num_lines(entered / "put_batch")
    newest = newest_step(self._workdir)
    assert newest >= begun - 1, f"in step {begun}, of which {newest} are saved"
    half_done = [*self._cache.rglob("*.tmp"), *self._workdir.glob("checkpoints/*tmp*")]
    assert not half_done, f"it has left {half_done}"


def _num_lines(path: pathlib.Path) -> int:
  return path.read_text().count("\n") if path.exists() else 0
