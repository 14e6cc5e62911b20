"""The oracle equals a sum over derivations, whatever the grammar."""

import collections

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets.automaton import Automaton
from gpt2_flax.datasets.english import English
from gpt2_flax.datasets.grammar import GrammarConfig, STORY
from tests.close import assert_close, ROUNDINGS

# Weights are kept to 40 bits of the 53: so many roundings, two a word (the sum, too).
KEPT = 2 * 2**13


def prepositions(symbol):
  """Ambiguous: in "it saw it with it by", who is by? Endless, as a story is."""
  return {
    ("text",): [(1.0, (("sentence",), ("text",)))],
    ("sentence",): [
      (0.3, (("noun",), "saw", ("noun",))),
      (0.7, (("noun",), "saw", ("noun",), ("phrase",))),
      (0.0, (("never",),)),
    ],
    ("noun",): [(0.6, ("it",)), (0.4, ("it", ("phrase",)))],
    ("phrase",): [(0.5, ("with", ("noun",))), (0.3, ("by",)), (0.2, ())],
  }[symbol]


def letters(symbol):
  """The first of two letters tells of the other: "a" and "e" the same, "u" less.

  "y" comes as a first letter too, and may then be nothing but that.
  """
  return {
    ("text",): [(1.0, (("pair",), ("text",)))],
    ("pair",): [(0.5, (("one",), "x")), (0.5, (("other",), "y"))],
    ("one",): [(0.4, ("a",)), (0.2, ("e",)), (0.4, ("u",))],
    ("other",): [(0.2, ("a",)), (0.1, ("e",)), (0.4, ("u",)), (0.3, ("y",))],
  }[symbol]


def next_words(productions, symbols, words):
  """P(next word | words), summed over every derivation that writes the words."""
  totals = collections.Counter()

  def derive(symbols, words, probability):
    first, *rest = symbols
    if isinstance(first, tuple):
      for share, becomes in productions(first):
        if share:
          derive([*becomes, *rest], words, probability * share)
    elif not words:
      totals[first] += probability
    elif first == words[0]:
      derive(rest, words[1:], probability)

  derive(symbols, words, 1.0)
  return {word: total / totals.total() for word, total in totals.items()}


def after(automaton, words):
  state = automaton.start
  for word in words:
    state = automaton.step(state, word)
  return state


class AutomatonTest(chex.TestCase):
  def assert_exact(self, productions, symbol, words, automaton=None):
    state = after(automaton or Automaton(productions, symbol), words)
    expected = next_words(productions, [symbol], words)
    self.assertCountEqual(state.words, expected)
    expected = np.array([expected[word] for word in state.words])
    assert_close(state.probabilities, expected, ROUNDINGS + KEPT * len(words))

  def assert_exact_for_prefixes(self, productions, symbol, length):
    automaton = Automaton(productions, symbol)
    prefixes = [()]
    for _ in range(length):
      for words in prefixes:
        self.assert_exact(productions, symbol, words, automaton)
      states = [(words, after(automaton, words)) for words in prefixes]
      prefixes = [(*words, word) for words, state in states for word in state.words]
    self.assertGreater(len(prefixes), 50)
    return automaton

  def test_is_exact_for_every_prefix_of_an_ambiguous_grammar(self):
    automaton = self.assert_exact_for_prefixes(prepositions, ("text",), 9)
    self.assertGreater(max(map(len, automaton.states)), 2)  # ambiguous indeed

  def test_is_exact_where_words_tell_of_what_comes(self):
    self.assert_exact_for_prefixes(letters, ("text",), 5)

  @parameterized.named_parameters(
    ("the_toy", {}, 20),
    ("vocabulary", {"vocabulary": 2}, 14),
    ("num_classes", {"num_classes": 6}, 14),
    ("max_depth", {"max_depth": 4}, 20),
    ("num_topics", {"num_topics": 2}, 12),
    ("zipf", {"zipf": 1.0}, 14),
    (
      "all",
      {
        "vocabulary": 2,
        "num_classes": 5,
        "max_depth": 3,
        "num_topics": 3,
        "zipf": 0.7,
      },
      10,
    ),
  )
  def test_is_exact_for_english(self, settings, length):
    english = English(**settings)
    dataset = GrammarConfig(**settings).make(length)
    automaton = Automaton(english, STORY)
    for i in range(8):
      words = dataset.tokenizer.decode(dataset.window("train", i)).split()
      for n in range(len(words)):
        self.assert_exact(english, STORY, words[:n], automaton)

  def test_words_are_those_that_can_be_written(self):
    words = ("by", "it", "saw", "with")  # "never" cannot
    self.assertEqual(Automaton(prepositions, ("text",)).words, words)

  def test_words_that_tell_the_same_lead_to_the_same_state(self):
    automaton = Automaton(letters, ("text",))
    by_a, by_e, by_u = (after(automaton, [word]) for word in "aeu")
    self.assertIs(by_a, by_e)
    self.assertIsNot(by_a, by_u)
    self.assertIs(after(automaton, "ax"), automaton.start)
    self.assertLen(automaton.start.words, 4)
    self.assertLen(automaton.start.masses, 3)  # "a" and "e" are of one kind

  def test_refuses_a_word_that_cannot_come_next(self):
    automaton = Automaton(English(), STORY)
    for word in ("sleeps", "xyz"):
      with self.assertRaises(KeyError):
        automaton.step(automaton.start, word)

  @parameterized.named_parameters(
    ("the_toy", {}, 3000),
    ("harder", {"vocabulary": 3, "num_topics": 2, "max_depth": 1, "zipf": 1.0}, 3000),
  )
  def test_english_has_a_bounded_number_of_states(self, settings, bound):
    automaton = Automaton(English(**settings), STORY)
    todo, seen = [automaton.start], {id(automaton.start)}
    while todo and len(seen) < bound:
      state = todo.pop()
      for word in state.words:
        following = automaton.step(state, word)
        if id(following) not in seen:
          seen.add(id(following))
          todo.append(following)
    self.assertEmpty(todo)  # wherever the words lead, they lead back

  def test_forgets_states_rather_than_keep_more_than_allowed(self):
    english = English()
    automaton, whole = (
      Automaton(english, STORY, max_states=10),
      Automaton(english, STORY),
    )
    words = GrammarConfig().make(400)
    words = words.tokenizer.decode(words.window("train", 0)).split()
    state, other, most = automaton.start, whole.start, 0
    for word in words:
      state, other = automaton.step(state, word), whole.step(other, word)
      self.assertEqual(state.words, other.words)
      assert_close(state.probabilities, other.probabilities)
      self.assertLessEqual(len(automaton.states), 10)
      most = max(most, len(whole.states))
    self.assertGreater(most, 50)  # that is more than one time
    chex.assert_trees_all_equal(
      automaton.start.probabilities, whole.start.probabilities
    )
