"""Small members of a sweep, and what is the same of two runs of one."""

import functools
import json
import pathlib
from typing import Any

from configs import markov
from gpt2_flax.datasets import Dataset
from gpt2_flax.training import experiment
from gpt2_flax.training.sweep import Member, ROWS
from tests.reliability.runs import records

NUM_STEPS, SAVE_EVERY = 12, 4
CLOCK = (  # never twice the same
  *("seconds", "tokens_per_second", "data_wait_share", "model_flops_per_second"),
)


def member(**over: Any) -> Member:
  """One of `over`, keys with __ for their dots; it learns with dropout, in pieces."""
  config = markov.get_config()
  config.model.update(num_layers=1, num_heads=2, embed_dim=16, context_length=12)
  config.model.dropout_rate = 0.1
  config.optimizer.update(name="adamw", learning_rate=0.01, warmup_steps=2)
  config.train.update(num_steps=NUM_STEPS, batch_size=8, accumulation_steps=2)
  config.train.log_every_steps = 1
  config.eval.update(every_steps=6, num_windows=20, sample_tokens=0)
  config.checkpoint.every_steps = SAVE_EVERY
  named = {key.replace("__", "."): value for key, value in over.items()}
  config.update_from_flattened_dict(named)
  parsed, _ = experiment.parse(config)
  return Member(named, parsed, _dataset(parsed.data, parsed.model.context_length))


@functools.cache
def _dataset(config: Any, context_length: int) -> Dataset:
  return config.make(context_length)


def rows(folder: pathlib.Path) -> dict[str, dict]:
  """The rows of a sweep by member, without what the clock says."""
  found = [json.loads(line) for line in (folder / ROWS).read_text().splitlines()]
  return {row["member"]: _timeless(row) for row in found}


def metrics(workdir: pathlib.Path) -> list[dict]:
  """The records of a run, without what the clock says."""
  return [_timeless(record) for record in records(workdir)]


def _timeless(values: dict) -> dict:
  return {name: value for name, value in values.items() if name not in CLOCK}


def files(folder: pathlib.Path) -> dict[str, int]:
  """When each file below was last changed."""
  paths = (path for path in folder.rglob("*") if path.is_file())
  return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}
