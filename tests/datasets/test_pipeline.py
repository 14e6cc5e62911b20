"""A batch is a function of dataset, seed and step, however it is asked for."""

import json
import pathlib
import string
import tempfile

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets import pipeline
from gpt2_flax.datasets.dataset import Dataset
from gpt2_flax.datasets.induction import InductionConfig
from gpt2_flax.datasets.text import TextConfig


class Counting(Dataset):
  """Window i is i, i + 1, ...; the last of the 10 for validation is cut short."""

  context_length = 5

  def num_windows(self, split):
    return {"train": 23, "validation": 10}[split]

  def window(self, split, index):
    window = np.arange(index, index + 6, dtype=np.int32)
    if split == "validation" and index == 9:
      window[3:] = -1
    return window


class Asking(Counting):
  """Asks for a window's last token, and shows all others."""

  def batch(self, windows):
    return {"inputs": windows[:, :-1], "targets": windows[:, -1:]}


def take(batches, num_batches):
  return [next(batches) for _ in range(num_batches)]


class TrainTest(chex.TestCase):
  def test_targets_are_the_inputs_one_later(self):
    batch = pipeline.train_dataset(Counting(), 4, seed=0)[0]
    self.assertCountEqual(batch, ("inputs", "targets"))
    chex.assert_shape((batch["inputs"], batch["targets"]), (4, 5))
    self.assertEqual((batch["inputs"].dtype, batch["targets"].dtype), (np.int32,) * 2)
    starts = batch["inputs"][:, :1]
    chex.assert_trees_all_equal(batch["inputs"], starts + np.arange(5)[None])
    chex.assert_trees_all_equal(batch["targets"], starts + np.arange(1, 6)[None])

  @parameterized.parameters(Counting(), InductionConfig().make(12))
  def test_iterator_gives_the_batch_of_each_step(self, dataset):
    batches = take(pipeline.train_batches(dataset, 4, seed=3), 20)
    by_step = pipeline.train_dataset(dataset, 4, seed=3)
    for step in reversed(range(20)):
      chex.assert_trees_all_equal(batches[step], by_step[step])
    self.assertLen({batch["inputs"].tobytes() for batch in batches}, 20)

  def test_goes_back_to_the_very_next_batch_of_a_position(self):
    batches = pipeline.train_batches(Counting(), 4, seed=3)
    take(batches, 5)
    state = json.loads(json.dumps(batches.get_state()))
    expected = take(batches, 5)
    batches.set_state(state)
    chex.assert_trees_all_equal(take(batches, 5), expected)

  def test_epoch_takes_every_window_of_a_text_once_in_an_order_of_its_own(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    file = folder / "text.txt"
    file.write_text(string.ascii_lowercase, "utf-8")  # each start is another letter
    dataset = TextConfig(str(file)).make(5)  # 23 letters for training
    self.assertEqual(dataset.num_windows("train"), 18)
    batches = take(pipeline.train_batches(dataset, 4, seed=0), 18)
    epochs = np.concatenate([batch["inputs"][:, 0] for batch in batches])
    epochs = epochs.reshape(4, 18)
    for epoch in epochs:
      self.assertEqual(sorted(epoch), list(range(18)))
    self.assertLen({tuple(epoch) for epoch in epochs}, 4)
    self.assertNotIn(tuple(range(18)), {tuple(epoch) for epoch in epochs})

  @parameterized.parameters([[[0, 1], [2, 3]]], [[[0, 3], [1], [2]]], [[[0, 1, 2]] * 2])
  def test_rows_of_a_batch_are_made_alone_and_nothing_else_is_read(self, shares):
    by_step = pipeline.train_dataset(Counting(), 4, seed=3)
    order = [int(i) for step in range(9) for i in by_step[step]["inputs"][:, 0]]
    for rows in shares:
      dataset, read = Counting(), []
      window = dataset.window
      dataset.window = lambda *where, window=window, read=read: (
        read.append(where[1]) or window(*where)
      )
      batches = pipeline.train_batches(dataset, 4, 3, rows)
      for step, batch in enumerate(take(batches, 9)):
        expected = {name: leaf[rows] for name, leaf in by_step[step].items()}
        chex.assert_trees_all_equal(batch, expected)
      expected = [order[4 * step + row] for step in range(9) for row in rows]
      self.assertEqual(read[: len(expected)], expected)

  def test_seed_decides_the_order(self):
    one, again, other = (
      np.stack(
        [pipeline.train_dataset(Counting(), 4, s)[i]["inputs"] for i in range(5)]
      )
      for s in (0, 0, 1)
    )
    chex.assert_trees_all_equal(one, again)
    self.assertGreater((one != other).mean(), 0.5)

  def test_a_dataset_may_ask_something_else(self):
    batch = pipeline.train_dataset(Asking(), 4, seed=0)[0]
    chex.assert_trees_all_equal(batch["targets"], batch["inputs"][:, :1] + 5)
    windows = pipeline.validation_windows(Asking(), 2)
    (batch,) = pipeline.validation_batches(Asking(), windows, 3)
    chex.assert_trees_all_equal(batch["targets"], np.array([[5], [6], [-1]], np.int32))


class ValidationTest(chex.TestCase):
  @parameterized.parameters((0, 10), (3, 3), (10, 10), (99, 10))
  def test_windows_are_the_first_ones(self, asked, given):
    windows = pipeline.validation_windows(Counting(), asked)
    expected = [Counting().window("validation", i) for i in range(given)]
    chex.assert_trees_all_equal(windows, np.array(expected))

  def test_windows_of_some_rows_of_each_batch(self):
    windows = pipeline.validation_windows(Counting(), 9, batch_size=4, rows=[1, 3])
    expected = [Counting().window("validation", i) for i in (1, 3, 5, 7)]
    none = np.full((2, 6), -1, np.int32)  # the third batch has window 8 in row 0 only
    chex.assert_trees_all_equal(windows, np.concatenate([expected, none]))

  @parameterized.parameters((4, 3), (5, 2), (10, 1), (16, 1))
  def test_batches_hold_every_window_and_rows_that_do_not_count(self, size, number):
    windows = pipeline.validation_windows(Counting(), 0)
    batches = list(pipeline.validation_batches(Counting(), windows, size))
    self.assertLen(batches, number)
    inputs, targets = (
      np.concatenate([batch[name] for batch in batches]) for name in batches[0]
    )
    chex.assert_shape((inputs, targets), (number * size, 5))
    chex.assert_trees_all_equal(targets[:10], windows[:, 1:])
    chex.assert_trees_all_equal(inputs[:9], windows[:9, :-1])
    chex.assert_trees_all_equal(inputs[9], np.array([9, 10, 11, 0, 0], np.int32))
    chex.assert_trees_all_equal(targets[10:], np.full_like(targets[10:], -1))
    chex.assert_trees_all_equal(inputs[10:], np.zeros_like(inputs[10:]))
