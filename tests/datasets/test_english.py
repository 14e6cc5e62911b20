"""Words are as many as the settings say, no two are equal, and shares sum to one."""

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets.automaton import Automaton, reachable
from gpt2_flax.datasets.english import English, made_up
from gpt2_flax.datasets.grammar import STORY
from tests.close import assert_close

HARD = {
  "vocabulary": 3,
  "num_classes": 6,
  "max_depth": 3,
  "num_topics": 4,
  "zipf": 1.2,
}


def num_words(vocabulary, num_classes):
  """Counted by what the settings promise."""
  new = num_classes - 4
  nouns = 2 * 10 * vocabulary + 3 * vocabulary * new  # the old ones have a plural
  verbs = 9 * vocabulary * (2 + new)
  closed = 3 + 2 + 5 + 2 * new + 3 * num_classes  # that, ".", and what agrees
  return nouns + verbs + (4 + 5) * vocabulary + closed


class EnglishTest(chex.TestCase):
  @parameterized.parameters(
    {}, {"num_classes": 7}, {"max_depth": 0}, {"num_topics": 2}, {"zipf": 2.0}, HARD
  )
  def test_productions_sum_to_one(self, **settings):
    english = English(**settings)
    possible = reachable(english, STORY)
    self.assertGreater(len(possible), 40)
    for symbol in possible:
      shares = [share for share, _ in english(symbol)]
      self.assertGreaterEqual(min(shares), 0.0, symbol)
      assert_close({symbol: sum(shares)}, {symbol: 1.0})

  @parameterized.parameters((1, 4, 1), (3, 6, 4), (10, 8, 8), (30, 20, 1))
  def test_words_are_as_many_as_promised(self, vocabulary, num_classes, num_topics):
    english = English(
      vocabulary=vocabulary, num_classes=num_classes, num_topics=num_topics
    )
    self.assertLen(Automaton(english, STORY).words, num_words(vocabulary, num_classes))

  def test_made_up_words_can_be_said(self):
    words = [made_up(number) for number in range(6000)]
    self.assertLen(set(words), 6000)
    for word in words:
      self.assertRegex(word, "^([bdfgklmnprstvz][aeiou]){2,3}$")
    self.assertEqual(list(map(len, words)), [4] * 70**2 + [6] * (6000 - 70**2))

  def test_harder_ones_have_the_words_of_the_toy(self):
    toy, hard = (Automaton(English(**s), STORY).words for s in ({}, HARD))
    self.assertContainsSubset(toy, hard)

  def test_a_word_has_one_topic_in_all_its_forms(self):
    english = English(**HARD)

    def words(name, topic):
      symbols = [s for s in reachable(english, STORY) if s[0] == name]
      about = [s for s in symbols if s[-1] == topic]
      return {word for symbol in about for _, (word,) in english(symbol)}

    for name in ("noun", "name", "adjective", "intransitive", "transitive"):
      of_topic = [words(name, topic) for topic in range(4)]
      self.assertLen(set.union(*of_topic), sum(map(len, of_topic)))
      sizes = sorted(map(len, of_topic))
      self.assertGreater(sizes[0], 0)
    for topic in range(4):
      stems = {new[0] for _, new in english(("transitive", "they", topic))}
      forms = {new[0] for _, new in english(("transitive", "it", topic))}
      self.assertEqual(forms, {f"{stem}s" for stem in stems})
      nouns = {
        f"{new[0]}s"
        for who in ("he", "she", "it")
        for _, new in english(("noun", who, topic))
      }
      plural = {new[0] for _, new in english(("noun", "they", topic))}
      self.assertEqual(plural, nouns)

  @parameterized.parameters(0.0, 0.5, 2.0)
  def test_open_words_come_by_their_rank(self, zipf):
    english = English(vocabulary=2, num_topics=2, zipf=zipf)
    ranks = np.arange(1, 5)
    expected = ranks**-zipf / (ranks**-zipf).sum()
    for symbol in (
      ("noun", "it", 1),  # eight, shared by two topics
      ("intransitive", "they", 0),
      ("intransitive", "she", 1),
    ):
      assert_close(np.array([share for share, _ in english(symbol)]), expected)
    for symbol in (("preposition",), ("determiner", "it")):  # not open
      assert_close(np.array([share for share, _ in english(symbol)]), np.full(3, 1 / 3))

  def test_the_toys_words_come_first(self):
    shares, becomes = zip(*English(vocabulary=3, zipf=1.0)(("noun", "he")), strict=True)
    self.assertEqual([word for (word,) in becomes[:3]], ["boy", "king", "farmer"])
    self.assertEqual(sorted(shares, reverse=True), list(shares))
