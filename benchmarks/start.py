"""How long until something happens: imports, and train.py's first step.

    python -m benchmarks.start

`python train.py` is started with an empty cache of compiled programs ("first run"),
then again with what that left ("second run"), and watched until its first step stands
in metrics.jsonl.
"""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging

from benchmarks import turns

_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each is timed.")

HERE = pathlib.Path(__file__).parents[1]


def seconds_of(statement: str) -> float:
  """Of a new Python that runs a statement."""
  began = time.perf_counter()
  subprocess.run([sys.executable, "-c", statement], cwd=HERE, check=True)
  return time.perf_counter() - began


def seconds_to_first_step(cache: pathlib.Path, workdir: pathlib.Path) -> float:
  """From the command to the first step's metrics."""
  metrics = workdir / "metrics.jsonl"
  began = time.perf_counter()
  process = subprocess.Popen(
    [
      sys.executable,
      str(HERE / "train.py"),
      "--config.train.log_every_steps=1",
      f"--workdir={workdir}",
    ],
    env=os.environ | {"XDG_CACHE_HOME": str(cache)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  while not (metrics.exists() and metrics.stat().st_size):
    if process.poll() is not None:
      raise SystemExit(f"train.py ended with exit code {process.returncode}")
    time.sleep(0.01)
  seconds = time.perf_counter() - began
  process.send_signal(signal.SIGKILL)
  process.wait()
  return seconds


def main(_) -> None:
  """Times each in turn, prints a table."""
  seconds = {}

  def note(name: str, value: float) -> None:
    seconds.setdefault(name, []).append(value)

  for statement in ("import flax.linen", "import gpt2_flax"):
    seconds_of(statement)  # what is on disk is in memory from now on
  for turn in range(_ROUNDS.value):
    for statement in ("import flax.linen", "import flax", "import gpt2_flax"):
      note(statement, seconds_of(statement))
    with tempfile.TemporaryDirectory() as name:
      root = pathlib.Path(name)
      for run in ("first run", "second run"):
        note(run, seconds_to_first_step(root / "cache", root / f"{run} {turn}"))
  base = seconds["import flax"]
  rows = [
    [
      name,
      turns.spread(values, 2),
      turns.spread([a / b for a, b in zip(values, base, strict=True)], 2),
    ]
    for name, values in seconds.items()
  ]
  print(turns.table(["what", "seconds", "/ import flax"], rows))


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main)
