"""The batches and their order depend on nothing but the dataset, the seed and the step.

What an epoch is made of, `tests/datasets/test_pipeline.py` counts.
"""

import json
import pathlib
import random
import string

import grain
import numpy as np

from gpt2_flax.datasets import CONFIGS, Dataset
from gpt2_flax.datasets.completions import CompletionsConfig
from gpt2_flax.datasets.dataset import Batch
from gpt2_flax.datasets.pipeline import train_batches, train_dataset
from gpt2_flax.datasets.text import TextConfig
from tests.reliability.campaign import Tally

SEED, BATCH_SIZE, LENGTH = 3, 8, 12
NUM_BATCHES = 16  # of the text, whose 42 windows are no multiple of a batch, 3 epochs
WORKERS = (0, 1, 2, 16)  # threads that make batches ahead
DEVICES = (1, 2, 4, 8)  # that share a batch, each reading its rows alone


def same_batches(folder: pathlib.Path, chance: random.Random, full: bool) -> Tally:
  """Row 2: stopped at every batch, gone on by other numbers of workers and devices."""
  tally = Tally()
  text = folder / "text.txt"
  text.write_text(string.ascii_letters + string.digits[:8], "utf-8")
  lines = folder / "lines.jsonl"
  pairs = [{"prompt": f"{n} and 1?", "completion": f"{n + 1}"} for n in range(50)]
  lines.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), "utf-8")
  of_files = ("array", "completions", "text")
  configs = [TextConfig(str(text))]
  configs += [config() for name, config in CONFIGS.items() if name not in of_files]
  configs += [CompletionsConfig(str(lines), tokenizer="char")]
  for config in configs if full else configs[:2]:
    dataset = config.make(LENGTH)
    expected = _take([train_batches(dataset, BATCH_SIZE, SEED)], NUM_BATCHES)
    for stop in range(NUM_BATCHES + 1):
      for _ in range(8 if full else 1):
        stops = [stop, chance.randint(stop, NUM_BATCHES), NUM_BATCHES]
        ways = [(chance.choice(WORKERS), chance.choice(DEVICES)) for _ in stops]
        what = f"{config.name}, stops {stops}, (workers, devices) {ways}"
        with tally.attempt(what):
          _require_same(_stopped(dataset, stops, ways), expected)
  tally.measured = f"{NUM_BATCHES} batches each, 3 epochs of text, stopped twice"
  return tally


def _stopped(
  dataset: Dataset, stops: list[int], ways: list[tuple[int, int]]
) -> list[Batch]:
  """All batches, made up to each stop in the way of its own."""
  batches, position = [], None
  for stop, (workers, devices) in zip(stops, ways, strict=True):
    ahead = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=16)
    shares = [
      iter(train_dataset(dataset, BATCH_SIZE, SEED, rows).to_iter_dataset(ahead))
      for rows in np.split(np.arange(BATCH_SIZE), devices)
    ]
    for share in shares if position else ():
      share.set_state(position)
    batches += _take(shares, stop - len(batches))
    positions = [json.loads(json.dumps(share.get_state())) for share in shares]
    position = positions[0]
    assert positions == [position] * devices, f"positions differ: {positions}"
  return batches


def _take(shares: list[grain.DatasetIterator], number: int) -> list[Batch]:
  """Whole batches, put together from the rows of each share."""
  parts = ([next(share) for share in shares] for _ in range(number))
  return [
    {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
    for batch in parts
  ]


def _require_same(found: list[Batch], expected: list[Batch]) -> None:
  for step, (batch, same) in enumerate(zip(found, expected, strict=True)):
    assert batch.keys() == same.keys(), f"batch {step} holds {batch.keys()}"
    for name, rows in batch.items():
      assert rows.dtype == same[name].dtype, f"batch {step}: {name} is {rows.dtype}"
      assert np.array_equal(rows, same[name]), f"batch {step}: {name} differ"
