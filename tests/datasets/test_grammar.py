"""The oracle equals a sum over derivations; the English that it writes agrees."""

import collections
import pathlib

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets import grammar
from gpt2_flax.datasets.grammar import Automaton, english, english_words, GrammarConfig
from tests.close import assert_close, ROUNDINGS

STEMS = ("sleep", "run", "sing", "wait", "see", "like", "follow", "feed", "hear")
TRANSITIVE = STEMS[4:]
STORY = ("story",)
KEPT = 0.5e-12 / 2**-53  # beliefs are kept to 12 places, and not to float64's 53 bits


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
  def assert_exact(self, automaton, symbol, words):
    state, num_beliefs = automaton.start, 0
    for word in words:
      num_beliefs += len(state.beliefs[word])
      state = automaton.step(state, word)
    expected = next_words(automaton.productions, [symbol], words)
    self.assertCountEqual(state.words, expected)
    expected = np.array([expected[word] for word in state.words])
    roundings = ROUNDINGS + num_beliefs * KEPT
    assert_close(np.array(state.probabilities), expected, roundings)

  def test_is_exact_for_every_prefix_of_an_ambiguous_grammar(self):
    automaton = Automaton(prepositions, ("text",))
    prefixes, num_stacks = [()], []
    for _ in range(9):
      for words in prefixes:
        self.assert_exact(automaton, ("text",), words)
      states = [(words, after(automaton, words)) for words in prefixes]
      prefixes = [(*words, word) for words, state in states for word in state.words]
      num_stacks += [len(b) for _, s in states for b in s.beliefs.values()]
    self.assertGreater(len(prefixes), 50)
    self.assertGreater(max(num_stacks), 2)  # ambiguous indeed

  def test_is_exact_for_english(self):
    dataset = GrammarConfig().make(20)
    automaton = Automaton(english, STORY)
    for i in range(8):
      words = dataset.tokenizer.decode(dataset.window("train", i)).split()
      for n in range(len(words)):
        self.assert_exact(automaton, STORY, words[:n])

  def test_refuses_a_word_that_cannot_come_next(self):
    automaton = Automaton(english, STORY)
    with self.assertRaises(KeyError):
      automaton.step(automaton.start, "sleeps")

  def test_english_has_a_bounded_number_of_states(self):
    automaton = Automaton(english, STORY)
    todo, seen = [automaton.start], {id(automaton.start)}
    while todo and len(seen) < 3000:
      state = todo.pop()
      for word in state.words:
        following = automaton.step(state, word)
        if id(following) not in seen:
          seen.add(id(following))
          todo.append(following)
    self.assertEmpty(todo)  # wherever the words lead, they lead back


class EnglishTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.dataset = GrammarConfig().make(48)

  def next(self, text):
    """Next word -> its probability; a word that cannot come is 0."""
    tokens = np.array([0, *self.dataset.tokenizer.encode(text)])
    row = self.dataset.next_token_probabilities(tokens)[-1]
    assert_close(row.sum(), 1.0)
    return dict(zip(("<s>", *self.dataset.tokenizer.words), row, strict=True))

  def test_productions_sum_to_one(self):
    todo, seen = [STORY], {STORY}
    while todo:
      symbol = todo.pop()
      shares, becomes = zip(*english(symbol), strict=True)
      self.assertGreaterEqual(min(shares), 0.0, symbol)
      assert_close({symbol: sum(shares)}, {symbol: 1.0})
      for share, symbols in zip(shares, becomes, strict=True):
        new = {s for s in symbols if share and isinstance(s, tuple)} - seen
        seen |= new
        todo += new
    self.assertGreater(len(seen), 40)

  def test_every_word_occurs(self):
    windows = np.stack([self.dataset.window("train", i) for i in range(300)])
    occurring = self.dataset.tokenizer.decode(np.unique(windows)).split()
    self.assertCountEqual(occurring, english_words())
    self.assertContainsSubset([*STEMS, *(f"{stem}s" for stem in STEMS)], occurring)

  def test_windows_are_a_story_from_its_beginning(self):
    first_words = set()
    for i in range(300):
      text = self.dataset.tokenizer.decode(self.dataset.window("train", i))
      self.assertTrue(self.dataset.is_grammatical(text), text)
      first_words.add(text.split()[0])
    determiners, names = "the this every these all", "john tom mary anna"
    self.assertCountEqual(first_words, f"{determiners} {names}".split())

  @parameterized.parameters(
    ("every old dog", "singular"),
    ("these small old dogs", "plural"),
    ("the cat near the dogs", "singular"),
    ("the cats near the dog", "plural"),
    ("the cat that the dogs see", "singular"),
    ("the cats that the dog sees", "plural"),
    ("the cat that sees the dogs", "singular"),
    ("the cats that see the dog", "plural"),
    ("the cats that the dog near the boys", "singular"),
    ("the cats that the dog that the boys feed", "singular"),
    ("the cat that the dogs that the boys feed see", "singular"),
    ("the cats that the dog that the boy feeds sees", "plural"),
    ("the cats see the dog . they", "plural"),
    ("the king that hears the cats waits . he", "singular"),
  )
  def test_verb_agrees_with_its_subject(self, text, number):
    probability = self.next(text)
    plural = number == "plural"
    for stem in STEMS:
      self.assertEqual(probability[f"{stem}s" if plural else stem], 0.0)
    for stem in TRANSITIVE:
      self.assertGreater(probability[stem if plural else f"{stem}s"], 0.0)

  @parameterized.parameters(
    ("the king that the girls hear runs .", "he"),
    ("mary sees all boys .", "she"),
    ("the horse near the boys follows anna . it waits .", "it"),
    ("the cats that the dog sees sleep .", "they"),
  )
  def test_pronoun_agrees_with_the_sentence_before(self, text, pronoun):
    probability = self.next(text)
    for other in ("he", "she", "it", "they"):
      self.assertEqual(probability[other] > 0, other == pronoun, other)

  @parameterized.parameters(
    ("tom hears the queen . he sees", "himself", "his"),
    ("the girl near the boys likes", "herself", "her"),
    ("the dog that the cats see feeds", "itself", "its"),
    ("the boys that the girl hears follow", "themselves", "their"),
    ("the boys see the girl that likes", "herself", "her"),
  )
  def test_reflexive_and_possessive_agree_with_the_subject(self, text, *right):
    probability = self.next(text)
    reflexives, possessives = "himself herself itself themselves", "his her its their"
    for word in f"{reflexives} {possessives}".split():
      self.assertEqual(probability[word] > 0, word in right, word)

  @parameterized.parameters(
    "",
    "the",
    "the cats near the dog sleep . they like themselves .",
    "the cats that the dog that the boys feed sees run . they see their king",
    "every happy old girl that hears mary sings . she waits . john follows his king .",
    "anna feeds her dogs . these dogs like anna . they wait .",
  )
  def test_grammatical(self, text):
    self.assertTrue(self.dataset.is_grammatical(text))

  @parameterized.parameters(
    "the cats sleeps .",
    "the cat that the dogs sees",
    "the cats that the dog that the boys feed see",
    "these cat",
    "every dogs",
    "mary likes himself",
    "the boys run . he",
    "they sleep",  # nobody was named before
    "cats sleep",
    "the cat sleeps the dog",
    "the cat purrs .",  # no such word
    "the cat . sleeps",
    "the cat that the dog that the boy that the king hears",  # too deep
  )
  def test_ungrammatical(self, text):
    self.assertFalse(self.dataset.is_grammatical(text))

  def test_example_of_the_module_is_grammatical(self):
    lines = pathlib.Path(grammar.__file__).read_text("utf-8").splitlines()
    example = next(line for line in lines if line.startswith("    ")).strip()
    self.assertEndsWith(example, ".")
    self.assertTrue(self.dataset.is_grammatical(example), example)

  def test_no_row_after_a_word_that_cannot_come(self):
    tokens = np.array([0, *self.dataset.tokenizer.encode("the cats sleeps .")])
    rows = self.dataset.next_token_probabilities(tokens)
    assert_close(rows.sum(axis=1), np.array([1.0, 1.0, 1.0, 0.0, 0.0]))
