"""Every lesson at its reduced size has the verdict that it has at its real one."""

import io
import itertools

from absl.testing import parameterized
import chex
import numpy as np
import pytest

from gpt2_flax.datasets import floor
from lessons import __main__ as door
from lessons import LESSONS, order, outcomes
from tests.close import assert_close
from tests.lessons.stubs import small_report

# (title begins with, row, column) -> the range that a reduced run must meet.
KEY_FIGURES = {
  "positions": {
    ("Gap", 0, "inside"): (0.0, 0.2),  # sinusoidal
    ("Gap", 0, "to four times"): (0.4, 3.0),
    ("Gap", 1, "to four times"): (0.4, 3.0),  # rotary
    ("Gap", 2, "to four times"): (0.0, 0.2),  # ALiBi
  },
  "induction": {
    ("After training", 0, "above the floor"): (1.0, 2.3),  # one layer
    ("After training", 0, "induction score"): (0.0, 0.3),
    ("After training", 1, "above the floor"): (0.0, 0.3),  # two
    ("After training", 1, "induction score"): (0.8, 1.0),
    ("The loss without", 0, "both induction heads"): (2.5, 20.0),
  },
  "relations": {
    ("After training", 0, "loss"): (1.1, 1.5),  # one head
    ("After training", 1, "loss"): (0.6, 0.75),  # two
    ("After training", 2, "loss"): (0.6, 0.8),  # one, where the two relations are one
  },
  "agreement": {("The right", i, "whole"): (0.95, 1.0) for i in range(4)},
  "limit": {("Distance", i, "KL"): (0.0, 0.05) for i in range(2)},
  "scaling": {
    ("A fresh head", -2, "entropy, nats"): (3.6, 3.8),  # ln 64 - 1 / 2 is 3.66
    ("A fresh head", -1, "entropy, nats"): (0.0, 0.01),
    ("A fresh head", -1, "rows lost"): (0.5, 0.7),
  },
  "stacking": {
    ("Gap", 0, "mean"): (0.05, 0.3),
    ("Gap", 1, "mean"): (0.0, 0.05),
    ("The logit lens", 0, "gap"): (3.0, 20.0),
    ("The logit lens", -1, "for the cats"): (1.0, 1.0),
  },
  "feed_forward": {
    ("Gap", 0, "gap"): (0.0, 0.06),  # the table, with feed-forward
    ("Gap", 1, "gap"): (0.1, 0.4),  # without
    ("With it", 0, "loss rises by"): (0.5, 3.0),
  },
  "residual_stream": {
    ("Gap", 0, "gap"): (0.05, 0.3),  # as it is
    ("Gap", 3, "gap"): (1.0, 2.0),  # no additions
    ("The stream", 0, "likeness, last"): (-0.1, 0.2),
    ("The stream", 3, "the same, untrained"): (0.95, 1.0),
  },
  "tied_embeddings": {
    ("Gap", 0, "gap"): (0.0, 0.03),
    ("What is in", 0, "nearest is of the class"): (0.95, 1.0),
    ("What is in", 2, "of boy and girl"): (0.9, 1.0),
  },
  "tokens": {("The same", i, "floor, bits a byte"): (0.5, 0.7) for i in range(6)},
  "learned_when": {
    ("The nearest", 0, "distance then"): (0.02, 0.1),  # unigrams
    ("The nearest", 1, "distance then"): (0.05, 0.3),
    ("The nearest", 2, "distance then"): (0.15, 0.4),
  },
  "sampling": {
    ("Shares", 1, "right texts"): (0.7, 0.93),  # as the model says
    ("Shares", 8, "right texts"): (0.88, 0.99),  # top-p 0.99
    ("Shares", 8, "cut off"): (0.0, 0.001),
  },
  "cache": {
    ("Reading", 0, "difference"): (1e-8, 1e-6),
    ("Reading", 0, "wrong cache"): (0.1, 2.0),
    ("Memory", 1, "bytes a token"): (73_728, 73_728),
  },
  "scaling_law": {
    ("A model four", 0, "gap of the larger model"): (0.010, 0.012),
  },
}


class LessonsTest(chex.TestCase):
  @parameterized.parameters(*[(name,) for name in LESSONS])
  @pytest.mark.slow
  def test_what_holds_on_the_page_holds_at_its_reduced_size(self, name):
    outcome = door.load(name).run(reduced=True)
    self.assertNotEmpty(outcome.findings)
    kept, _ = outcomes.kept(name)
    for here, there in zip(outcome.findings, kept.findings, strict=True):
      self.assertTrue(here.holds or not there.holds, here)
    for rows in outcome.tables.values():
      self.assertNotEmpty(rows)
    for (begins, row, column), (low, high) in KEY_FIGURES.get(name, {}).items():
      [rows] = [t for title, t in outcome.tables.items() if title.startswith(begins)]
      self.assertBetween(rows[row][column], low, high, (begins, row, column))
    picture = io.BytesIO()
    outcome.figure.savefig(picture)
    self.assertBetween(picture.tell(), 5_000, 150_000)


class ReportTest(chex.TestCase):
  def test_holds_if_all_findings_do(self):
    for holds, verdict in (
      ((True, True), "holds"),
      ((True, False), "does not hold"),
      ((False, False), "does not hold"),
    ):
      self.assertEqual(small_report(*holds).verdict, verdict)

  def test_text(self):
    report = small_report(True, False)
    self.assertEqual(
      report.markdown_tables(),
      "Title:\n\n| layers | loss   | error   |\n|--------|--------|---------|\n"
      "| 1      | 1.2500 | 3.0e-07 |\n| 12     | 0.5000 | 0.0000  |",
    )
    self.assertEqual(
      report.markdown_findings(), "- holds: figure 0\n- does not hold: figure 1"
    )


class CopyTest(chex.TestCase):
  def windows(self, num_symbols, length):
    """Every sequence of symbols there is, with its labels."""
    rows = []
    for symbols in itertools.product(range(1, num_symbols + 1), repeat=length):
      tokens = [0, *symbols]
      rows.append(np.stack([tokens, [-1, -1, *symbols[:-1]]], axis=1).ravel())
    return np.array(rows, np.int32)

  def test_the_label_is_the_symbol_before(self):
    copy = order.CopyConfig(num_symbols=5).make(9)
    batch = copy.batch(np.stack([copy.window("train", i) for i in range(20)]))
    chex.assert_shape(list(batch.values()), (20, 9))
    self.assertEqual(set(batch["inputs"][:, 0]), {copy.tokenizer.start_id})
    self.assertEqual(set(batch["inputs"][:, 1:].ravel()), {1, 2, 3, 4, 5})
    chex.assert_trees_all_equal(batch["targets"][:, 2:], batch["inputs"][:, 1:-1])
    self.assertTrue((batch["targets"][:, :2] == -1).all())
    self.assertEqual(floor(copy, self.windows(3, 3)), 0.0)

  def test_from_a_bag_it_is_bayes_rule(self):
    """The conditional entropy of the label, counted over all sequences."""
    num_symbols, length = 3, 4
    windows = self.windows(num_symbols, length)
    counts = {}
    for window in windows:
      tokens, labels = window[0::2], window[1::2]
      for i in range(2, length + 1):
        seen = (i, tokens[i], *sorted(tokens[1:i]))
        counts.setdefault(seen, []).append(labels[i])
    total = 0.0
    for labels in counts.values():
      share = np.unique(labels, return_counts=True)[1] / len(labels)
      total -= len(labels) * np.sum(share * np.log(share))
    number = sum(map(len, counts.values()))
    bag = order.CopyFromBag(num_symbols, length + 1)
    assert_close(floor(bag, windows), total / number)
