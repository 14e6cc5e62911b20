"""From windows to batches, with grain: deterministic, random-access, resumable."""

from collections.abc import Iterator

import grain
import numpy as np

from gpt2_flax.datasets.dataset import Batch, Dataset


class _TrainWindows:
  """A dataset's training split as a grain random-access source."""

  def __init__(self, dataset: Dataset):
    self._dataset = dataset

  def __len__(self) -> int:
    return self._dataset.num_windows("train")

  def __getitem__(self, index: int) -> np.ndarray:
    return self._dataset.window("train", index)


def train_dataset(dataset: Dataset, batch_size: int, seed: int) -> grain.MapDataset:
  """Batch number `step` is `train_dataset(...)[step]`, whoever asks and when.

  Each epoch is a new shuffle of all windows, without replacement.
  """
  windows = grain.MapDataset.source(_TrainWindows(dataset)).seed(seed).shuffle()
  return windows.repeat().batch(batch_size, drop_remainder=True).map(dataset.batch)


def train_batches(
  dataset: Dataset, batch_size: int, seed: int
) -> grain.DatasetIterator:
  """The batches in order, made ahead by a thread of their own.

  `get_state()` and `set_state()` give and take the position, a dict of JSON values.
  """
  ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
  return iter(train_dataset(dataset, batch_size, seed).to_iter_dataset(ahead))


def validation_windows(dataset: Dataset, num_windows: int) -> np.ndarray:
  """The first validation windows, int32 [N, T + 1]; num_windows = 0 takes all."""
  available = dataset.num_windows("validation")
  num_windows = min(num_windows or available, available)
  return np.stack([dataset.window("validation", i) for i in range(num_windows)])


def validation_batches(
  dataset: Dataset, windows: np.ndarray, batch_size: int
) -> Iterator[Batch]:
  """All windows in order; the last batch is filled up with rows that do not count."""
  for start in range(0, len(windows), batch_size):
    rows = windows[start : start + batch_size]
    missing = batch_size - len(rows)
    rows = np.pad(rows, [(0, missing), (0, 0)], constant_values=-1)
    yield dataset.batch(rows)
