"""The lesson on positions, without its trainings: what it measures, and its verdict."""

from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.datasets import GrammarConfig
from gpt2_flax.datasets.pipeline import validation_windows
from lessons import positions
from lessons.positions import LENGTH, LONGEST
from lessons.training import Trained
from tests.close import assert_close
from tests.lessons.stubs import (
  all_but,
  ByHeart,
  figures,
  Given,
  held,
  picture_size,
  table,
  train_giving,
  with_gap,
)

# Encoding -> gap within the trained length, to twice and to four times: the page's.
PAGE = {
  "sinusoidal": (0.02, 0.76, 0.94),
  "learned": (0.02, np.nan, np.nan),
  "rotary": (0.02, 0.16, 1.19),
  "alibi": (0.02, 0.04, 0.04),
  "none": (0.04, 0.14, 0.32),
}


def few(dataset, num_windows):
  assert num_windows in (32, 256)
  return validation_windows(dataset, 4)


def run_on(gaps=None, reduced=False, picture=False):
  """Runs the lesson on models with these gaps: {(encoding, seed): three parts}."""
  dataset = GrammarConfig().make(LONGEST)
  batch = dataset.batch(few(dataset, 32))
  oracle = np.stack([dataset.next_token_probabilities(x) for x in batch["inputs"]])

  def outcome(config, seed):
    encoding = config.model.positional_encoding
    parts = (gaps or {}).get((encoding, seed), PAGE[encoding])
    gap_T = np.repeat(np.nan_to_num(parts), [LENGTH, LENGTH, 2 * LENGTH])
    said = with_gap(oracle, batch["targets"], gap_T)
    with np.errstate(divide="ignore"):
      params = {"texts": batch["inputs"], "logits": np.log(said)}
    return Given(loss=0.0, params=params)

  with (
    mock.patch.object(positions, "new_figure", figures(picture)),
    mock.patch.object(positions, "validation_windows", few),
    mock.patch.object(positions, "GPT2", ByHeart),
    mock.patch.object(positions, "train", train_giving(outcome)),
    jax.disable_jit(),  # each model would be compiled anew
  ):
    return positions.run(reduced)


class LengthenedTest(chex.TestCase):
  def test_takes_as_many_positions_as_there_are_parameters_for(self):
    for encoding in positions.ENCODINGS:
      config = GPT2Config(69, LENGTH, 1, 1, 8, positional_encoding=encoding)
      long = positions.lengthened(Trained(GPT2(config), None, 0.0, 0.0, []))
      expected = LENGTH if encoding == "learned" else LONGEST
      self.assertEqual(long.config.context_length, expected)
      self.assertEqual(long.config.positional_encoding, encoding)


LOSS = 2.0  # of which a gap is what is left above the floor


class VerdictTest(chex.TestCase):
  """On the figures of the page, and on some that one finding does not bear."""

  def test_holds(self):
    report = run_on(picture=True)
    self.assertEqual(held(report), [True] * 4)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "Gap")
    self.assertEqual([row["encoding"] for row in rows], list(PAGE))
    for row in rows:
      measured = [row[part] for part in ("inside", "to twice", "to four times")]
      if row["encoding"] == "learned":
        self.assertEqual(measured[1:], ["not defined"] * 2)
        self.assertEqual(row["seeds, to four times"], "not defined")
        measured[1:] = [np.nan] * 2
      found, expected = np.array(measured), np.array(PAGE[row["encoding"]])
      assert_close(found, expected, scale=LOSS, dtype=np.float32)

  def test_a_row_is_the_mean_of_its_seeds(self):
    [*_, row] = table(run_on({("none", 2): (0.1, 0.2, 0.62)}), "Gap")
    self.assertEqual(row["seeds, to four times"], "0.32 0.32 0.62")
    found = row["to four times"], row["inside"]
    assert_close(found, (0.42, 0.06), scale=LOSS, dtype=np.float32)

  def test_holds_at_its_reduced_size(self):
    report = run_on(reduced=True)
    self.assertEqual(held(report), [True] * 4)
    self.assertLen(table(report, "Gap"), 4)

  @parameterized.parameters(
    (0, {("learned", seed): (0.13, np.nan, np.nan) for seed in range(3)}),
    (1, {("none", seed): (0.55, 0.6, 0.7) for seed in range(3)}),
    (2, {("alibi", 1): (0.02, 0.13, 0.05)}),
    (2, {("alibi", 2): (0.02, 0.05, 0.13)}),
    (3, {("rotary", 2): (0.02, 0.1, 0.07)}),
    (3, {("none", 0): (0.02, 0.1, 0.07)}),
  )
  def test_does_not_hold(self, finding, gaps):
    self.assertEqual(held(run_on(gaps)), all_but(4, finding))
