"""The lesson on tied embeddings, without its trainings."""

from unittest import mock

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets import GrammarConfig
from lessons import tied_embeddings
from lessons.tied_embeddings import CLASSES
from tests.close import assert_close
from tests.lessons.stubs import (
  all_but,
  figures,
  Given,
  held,
  picture_size,
  table,
  train_giving,
)
from tests.params import shapes_of

NUM_WORDS = sum(map(len, CLASSES.values()))
WORDS = GrammarConfig().make(24).tokenizer
SAME = {"nouns, she": "nouns, he"}
READS, WRITES = "token_embedding", "output_embedding"


def rows(spread=0.01, like=None, seed=0):
  """A row for each word that has a class: its class's direction, and a little noise.

  `like` has one class take the direction of another.
  """
  rng = np.random.default_rng(seed)
  directions = np.linalg.qr(rng.normal(size=(16, 16)))[0][: len(CLASSES)]
  for name, other in (like or {}).items():
    directions[list(CLASSES).index(name)] = directions[list(CLASSES).index(other)]
  table_ND = directions[tied_embeddings.labels()]
  return table_ND + spread * rng.normal(size=table_ND.shape)


def whole(table_ND):
  """The same rows at their places in the vocabulary."""
  table_VD = np.ones((WORDS.vocab_size, table_ND.shape[1]))
  names = " ".join(word for of_class in CLASSES.values() for word in of_class)
  table_VD[WORDS.encode(names)] = table_ND
  return table_VD


class MeasureTest(chex.TestCase):
  def test_classes_are_of_words_that_the_language_has(self):
    words = [word for of_class in CLASSES.values() for word in of_class]
    self.assertLen(set(words), len(words))
    self.assertContainsSubset(words, WORDS.words)

  def test_rows_come_class_by_class(self):
    table_ND = rows()
    chex.assert_trees_all_equal(
      tied_embeddings.class_table(WORDS, whole(table_ND)), table_ND
    )

  def test_nearest(self):
    self.assertEqual(tied_embeddings.nearest_in_class(rows()), 1.0)
    # lengths do not matter, and a word is not its own nearest
    longer = rows() * np.arange(1, NUM_WORDS + 1)[:, None]
    self.assertEqual(tied_embeddings.nearest_in_class(longer), 1.0)
    alone = rows(0.0)
    alone[0] = -alone[0]  # of three boys, one is on the other side
    self.assertAlmostEqual(
      tied_embeddings.nearest_in_class(alone), (NUM_WORDS - 1) / NUM_WORDS
    )

  def test_by_chance(self):
    sizes = [len(of_class) for of_class in CLASSES.values()]
    of_word = [(size - 1) / (NUM_WORDS - 1) for size in sizes for _ in range(size)]
    assert_close(tied_embeddings.by_chance(), np.mean(of_word))

  def test_by_class(self):
    map_CC = tied_embeddings.by_class(rows(0.0, SAME))
    expected = np.eye(len(CLASSES))
    expected[:2, :2] = 1.0
    chex.assert_trees_all_close(map_CC, expected, atol=1e-12)
    longer = rows(0.0, SAME) * np.arange(1, NUM_WORDS + 1)[:, None]
    chex.assert_trees_all_close(tied_embeddings.by_class(longer), expected, atol=1e-12)
    opposite = rows(0.0)
    opposite[0] *= -1  # without itself: -1, -1 and 1
    assert_close(tied_embeddings.by_class(opposite)[0, 0], -1 / 3, dtype=np.float32)


class VerdictTest(chex.TestCase):
  def run_on(self, gaps=None, tables=None, reduced=False, picture=False):
    """Args: (kind, seed) -> gap; (kind, name) -> the rows."""
    given = {
      ("one table", READS): rows(),
      ("two tables", READS): rows(),
      ("two tables", WRITES): rows(like=SAME),
    } | (tables or {})

    def outcome(config, seed):
      kind = kinds.pop(0)
      gap = (gaps or {}).get((kind, seed), 0.012)
      params = {
        name: {"embedding": whole(of)} for (k, name), of in given.items() if k == kind
      }
      return Given(2.0 + gap, 2.0, {"params": params})

    seeds = 1 if reduced else 3
    kinds = ["one table"] * seeds + ["two tables"] * seeds
    with (
      mock.patch.object(tied_embeddings, "new_figure", figures(picture)),
      mock.patch.object(tied_embeddings, "train", train_giving(outcome)),
    ):
      return tied_embeddings.run(reduced)

  def test_holds(self):
    report = self.run_on({("two tables", 2): 0.006}, picture=True)
    self.assertEqual(held(report), [True] * 4)
    self.assertBetween(picture_size(report), 5_000, 150_000)
    one, two = table(report, "Gap")
    self.assertEqual((one["model"], two["model"]), ("one table", "two tables"))
    assert_close(two["gap"], 0.01, dtype=np.float32)
    self.assertEqual(two["parameters"], 2 * one["parameters"])
    alike = table(report, "What is in")
    jobs = [row["the table that"] for row in alike]
    self.assertEqual(jobs, ["reads and writes", "reads", "writes"])
    self.assertGreater(alike[2]["of boy and girl"], 0.9)
    self.assertLess(alike[1]["of boy and girl"], 0.1)

  def test_holds_at_its_reduced_size(self):
    self.assertEqual(held(self.run_on(reduced=True)), [True] * 4)

  @parameterized.parameters(
    (0, {("one table", 1): 0.06}, {}),
    (1, {}, {("one table", READS): rows(1.0)}),
    (2, {}, {("two tables", READS): rows(like={"adjectives": "prepositions"})}),
    (3, {}, {("two tables", WRITES): rows(like={"adjectives": "prepositions"})}),
  )
  def test_does_not_hold(self, finding, gaps, tables):
    self.assertEqual(held(self.run_on(gaps, tables)), all_but(4, finding))


class UntiedTest(chex.TestCase):
  def test_has_a_second_table(self):
    shape = tied_embeddings.GPT2Config(11, 6, 1, 2, 8)
    for make, names in ((tied_embeddings.untied, 2), (tied_embeddings.GPT2, 1)):
      params = shapes_of(make(shape))["params"]
      found = [name for name in params if name.endswith("_embedding")]
      self.assertLen(found, names)
