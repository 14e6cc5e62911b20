"""Trains many runs as one: each value of some keys, and says what they came to.

    python sweep.py --over=train.seed=0:8                    the toy, from eight seeds
    python sweep.py --over=train.seed=0:8 --over=optimizer.learning_rate=0.01,0.02,0.04
    python sweep.py --config=configs/depth.py --over=config=1,2,4
                                                             the file's own argument
    python sweep.py --over=optimizer.name=adamw,muon --workdir=runs/optimizers

Each combination is a run in a folder of its own, which sample.py and explain.py open.
The table and the picture average over the keys that end in seed. The same command again
goes on where an interrupted sweep stopped.
"""

from collections.abc import Sequence
import itertools
import math
import pathlib
import re
from typing import Any

from absl import flags

from gpt2_flax.doors import command_line, config_flag, own_modules
from gpt2_flax.errors import InputError
from gpt2_flax.files.atomic import write_text

MOST_MEMBERS = 10_000

config_flag.define_config_flag()
_IMPORT = command_line.define_import_flag()
_OVER = flags.DEFINE_multi_string(
  "over",
  [],
  "KEY=VALUES: any key of the config, or config for the argument of its file; values"
  " are listed as in 1,2,4, or integers from 0 to 7 as in 0:8. May be given several"
  " times.",
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the sweep lives; default runs/<config name>-sweep."
)
_TOGETHER = flags.DEFINE_integer(
  "together",
  0,
  "The most runs that are compiled as one program, where their shapes agree; 1: all in"
  " turn; 0: in turn on CPUs, 64 elsewhere.",
)


def main() -> int:
  """Checks all members, runs them, writes the table and the picture."""
  from gpt2_flax.training import cpu, sweep, sweep_summary  # slow: after the flags

  default = f"runs/{config_flag.config_name()}-sweep"
  folder = pathlib.Path(_WORKDIR.value or default)
  own_modules.import_own(_IMPORT.value)
  members = _members()
  cpu.set_up(*(member.config for member in members))
  command_line.leave_on_signals(on_the_spot=True)  # as train.py
  rows, stopped_by = sweep.run_sweep(members, folder, together=_TOGETHER.value)
  if rows:
    lines = sweep_summary.summarise(rows, ("val/loss", "val/floor", "val/gap"))
    table = sweep_summary.as_markdown(lines)
    write_text(folder / "summary.md", table)
    sweep_summary.plot(rows, folder, folder / "sweep.png")
    print(f"\n{table}")
  if stopped_by:
    print(f"stopped by {stopped_by.name}; the same command goes on from there")
    return 128 + stopped_by
  print(f"in {folder}: summary.md, sweep.png, {sweep.ROWS}, and a folder a run")
  return 0


def _members() -> list[Any]:
  from gpt2_flax.training import experiment
  from gpt2_flax.training.sweep import Member

  axes = [_axis(text) for text in _OVER.value]
  keys = [key for key, _ in axes]
  for key in keys:
    if keys.count(key) > 1:
      raise InputError(f"--over={key}=... is given twice: must be given once")
  if not axes:
    raise InputError("--over is missing: must be given, as in --over=train.seed=0:8")
  if math.prod(len(values) for _, values in axes) > MOST_MEMBERS:
    raise InputError(f"--over makes too many runs: must be {MOST_MEMBERS:,} at most")
  members, datasets = [], {}
  for values in itertools.product(*(values for _, values in axes)):
    texts = dict(zip(keys, map(str, values), strict=True))
    config, over = config_flag.changed(texts)
    parsed, dataset = experiment.parse(config)
    # one for all that have the same, with what it has worked out
    alike = repr(parsed.data), parsed.init_from, parsed.model.context_length
    members.append(Member(over, parsed, datasets.setdefault(alike, dataset)))
  return members


def _axis(text: str) -> tuple[str, Sequence[Any]]:
  """The key and the values of an --over."""
  key, _, listed = text.partition("=")
  if not key or not listed:
    raise InputError(f"--over={text}: must be KEY=VALUES, as in train.seed=0:8")
  if not (ends := re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", listed)):
    return key, listed.split(",")
  first, end = map(int, ends.groups())
  if first >= end:
    raise InputError(f"--over={text}: {first} must be below {end}")
  return key, range(first, end)
