"""From windows to batches, with grain: deterministic, random-access, resumable."""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from gpt2_flax.datasets.dataset import Batch, Dataset

Rows = Sequence[int] | np.ndarray  # numbers of rows of a batch


class _TrainWindows:
  """A dataset's training split as a grain random-access source."""

  def __init__(self, dataset: Dataset):
    self._dataset = dataset

  def __len__(self) -> int:
    return self._dataset.num_windows("train")

  def __getitem__(self, index: int) -> np.ndarray:
    return self._dataset.window("train", index)


class _Rows:
  """Of an endless sequence of windows, those in some rows of each batch."""

  def __init__(self, windows: grain.MapDataset, batch_size: int, rows: Rows):
    self._windows, self._batch_size, self._rows = windows, batch_size, rows

  def __len__(self) -> int:
    return len(self._windows) // self._batch_size * len(self._rows)

  def __getitem__(self, index: int) -> np.ndarray | None:  # None as grain has it
    batch, row = divmod(index, len(self._rows))
    return self._windows[batch * self._batch_size + int(self._rows[row])]


def train_dataset(
  dataset: Dataset, batch_size: int, seed: int, rows: Rows | None = None
) -> grain.MapDataset:
  """Batch number `step` is `train_dataset(...)[step]`, at any time and anywhere.

  Each epoch is a new shuffle of all windows, without replacement.

  Args:
    rows: which rows of each batch to make, and which windows to read; None for all.
  """
  windows = grain.MapDataset.source(_TrainWindows(dataset)).seed(seed).shuffle()
  windows = windows.repeat()
  if rows is not None:
    windows = grain.MapDataset.source(_Rows(windows, batch_size, rows))
    batch_size = len(rows)
  return windows.batch(batch_size, drop_remainder=True).map(dataset.batch)


def train_batches(
  dataset: Dataset, batch_size: int, seed: int, rows: Rows | None = None
) -> grain.DatasetIterator:
  """The batches in order, made ahead by a thread of their own.

  `get_state()` and `set_state()` give and take the position, a dict of JSON values. It
  counts batches, no matter which rows of them are made here.
  """
  ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=16)
  return iter(train_dataset(dataset, batch_size, seed, rows).to_iter_dataset(ahead))


def validation_windows(
  dataset: Dataset,
  num_windows: int,
  batch_size: int = 1,
  rows: Rows = (0,),
) -> np.ndarray:
  """The first validation windows, int32 [N, T + 1]; num_windows = 0 takes all.

  Args:
    batch_size, rows: only these rows of each batch of this size. A row of the last
      batch is all -1 where there is no window for it.
  """
  available = dataset.num_windows("validation")
  num_windows = min(num_windows or available, available)
  none = np.full_like(dataset.window("validation", 0), -1)
  indices = [start + row for start in range(0, num_windows, batch_size) for row in rows]
  return np.stack(
    [dataset.window("validation", i) if i < num_windows else none for i in indices]
  )


def validation_batches(
  dataset: Dataset, windows: np.ndarray, batch_size: int
) -> Iterator[Batch]:
  """All windows in order; the last batch is filled up with rows that do not count."""
  for start in range(0, len(windows), batch_size):
    rows = windows[start : start + batch_size]
    missing = batch_size - len(rows)
    rows = np.pad(rows, [(0, missing), (0, 0)], constant_values=-1)
    yield dataset.batch(rows)
