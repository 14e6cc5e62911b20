"""The English that the grammar writes agrees, and so do harder ones like it."""

import hashlib
import json
import pathlib

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets import grammar
from gpt2_flax.datasets.english import English
from gpt2_flax.datasets.grammar import GrammarConfig
from gpt2_flax.errors import InputError
from tests.close import assert_close, ROUNDINGS
from tests.datasets.test_automaton import KEPT

STEMS = ("sleep", "run", "sing", "wait", "see", "like", "follow", "feed", "hear")
TRANSITIVE = STEMS[4:]


class LanguageTest(chex.TestCase):
  def setUp(self, **settings):
    super().setUp()
    self.dataset = GrammarConfig(**settings).make(48)

  def next(self, text):
    """Next word -> its probability; a word that cannot come is 0."""
    tokens = np.array([0, *self.dataset.tokenizer.encode(text)])
    row = self.dataset.next_token_probabilities(tokens)[-1]
    assert_close(row.sum(), 1.0)
    return dict(zip(("<s>", *self.dataset.tokenizer.words), row, strict=True))


class EnglishTest(LanguageTest):
  def test_every_word_occurs(self):
    windows = np.stack([self.dataset.window("train", i) for i in range(300)])
    occurring = self.dataset.tokenizer.decode(np.unique(windows)).split()
    self.assertCountEqual(occurring, self.dataset.tokenizer.words)
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


class DefaultTest(chex.TestCase):
  """Figures of the README, of lessons and of runs are of this very language."""

  def test_windows_are_as_ever(self):
    dataset = GrammarConfig().make(48)
    splits = ("train", "validation")
    windows = np.stack([dataset.window(s, i) for s in splits for i in range(100)])
    digest = hashlib.sha256(windows.astype("<i4").tobytes()).hexdigest()
    self.assertStartsWith(digest, "45e31d37f8d0b16f02d075feedc9e7b4")

  def test_process_is_as_ever(self):
    process = json.dumps(GrammarConfig().make(48).process(), sort_keys=True)
    digest = hashlib.sha256(process.encode()).hexdigest()
    self.assertStartsWith(digest, "80523de3300ea3c5b2fb15ff6eee337a")


class ClassesTest(LanguageTest):
  """Each of six classes agrees, in particular those that are made up."""

  def setUp(self):
    super().setUp(num_classes=6)
    self.english = English(num_classes=6)

  def words(self, *symbol):
    return [word for _, (word,) in self.english(symbol)]

  @parameterized.product(
    subject=list(range(6)),
    text=["{} {}", "{} {} that the dogs see", "{} {} near the dog"],
  )
  def test_verb_agrees_with_its_subject(self, subject, text):
    who = self.english.classes[subject]
    determiner, noun = self.words("determiner", who)[-1], self.words("noun", who)[0]
    probability = self.next(text.format(determiner, noun))
    for other in self.english.classes:
      for verb in self.words("transitive", other):
        agrees = verb in self.words("transitive", who)
        self.assertEqual(probability[verb] > 0, agrees, verb)

  @parameterized.parameters(4, 5)
  def test_pronoun_and_reflexive_agree(self, subject):
    classes = self.english.classes
    who = classes[subject]
    determiner, noun = self.words("determiner", who)[-1], self.words("noun", who)[0]
    verb = self.words("intransitive", who)[0]
    probability = self.next(f"{determiner} {noun} near the dogs {verb} .")
    self.assertEqual([one for one in classes if probability[one] > 0], [who])
    verb = self.words("transitive", who)[0]
    probability = self.next(f"{determiner} {noun} {verb}")
    own = set()
    for one in classes:
      own |= {new[0] for _, new in self.english(("object", one, 0)) if len(new) == 1}
    reflexives = {word for word in own if isinstance(word, str)}
    self.assertLen(reflexives, 6)
    possible = [word for word in reflexives if probability[word] > 0]
    self.assertEqual(possible, [f"{who}self"])

  def test_made_up_classes_share_one_determiner(self):
    shared = set.intersection(
      *(set(self.words("determiner", who)) for who in self.english.classes)
    )
    self.assertEqual(shared, {"the"})


class DepthTest(LanguageTest):
  def test_clauses_nest_as_deep_as_allowed_and_more_rarely(self):
    super().setUp(max_depth=3)
    text = "the boy"
    for depth in range(4):
      share = (0.3, 0.15, 0.075, 0.0)[depth]  # of noun phrases, a fifth of them names
      roundings = ROUNDINGS + KEPT * len(text.split())
      assert_close(self.next(text)["that"], share / 0.8, roundings)
      text += " that the boy"

  def test_of_depth_0_has_no_clauses(self):
    super().setUp(max_depth=0)
    self.assertNotIn("that", self.dataset.tokenizer.words)


class TopicsTest(LanguageTest):
  """Words are dealt out in turn: "boy" to the first topic, "king" to the second."""

  def setUp(self):
    super().setUp(num_topics=2)

  def share(self, text, first, second):
    probability = self.next(text)
    total = sum(probability[word] for word in f"{first} {second}".split())
    return sum(probability[word] for word in first.split()) / total

  @parameterized.parameters(
    ("the boy sees this", "boy farmer girl singer cat horse", "king queen dog bird"),
    ("the boy", "sleeps sings sees follows hears", "runs waits likes feeds"),
    ("anna", "runs waits likes feeds", "sleeps sings sees follows hears"),
    ("the young dog that", "tom anna", "john mary"),
    ("the big cat sees these", "boys cats big old happy", "kings dogs small young"),
  )
  def test_a_word_tells_the_topic_of_its_sentence(self, text, own, other):
    probability = self.next(text)
    for word in own.split():
      self.assertGreater(probability[word], 0.0, word)
    for word in other.split():
      self.assertEqual(probability[word], 0.0, word)

  @parameterized.parameters(
    ("the", "boy farmer girl singer cat horse", "king queen dog bird", 0.5),
    ("", "john mary", "tom anna", 0.5),
    ("the boy sings . he", "sleeps sings", "runs waits", 0.95),
    ("the king runs . he", "sleeps sings", "runs waits", 0.05),
    ("the boy sings .", "john mary", "tom anna", 0.95),
    ("tom runs . john sings . he", "sleeps sings", "runs waits", 0.95),
  )
  def test_a_story_keeps_its_topic_nine_times_of_ten(self, text, one, other, share):
    roundings = ROUNDINGS + KEPT * len(text.split())
    assert_close(self.share(text, one, other), share, roundings)


class SettingsTest(chex.TestCase):
  @parameterized.parameters(
    ({"vocabulary": 0}, "data.vocabulary is 0: must be 1 to 100"),
    ({"vocabulary": 101}, "data.vocabulary is 101: must be 1 to 100"),
    ({"num_classes": 3}, "data.num_classes is 3: must be 4 to 20"),
    ({"num_classes": 21}, "data.num_classes is 21: must be 4 to 20"),
    ({"max_depth": -1}, "data.max_depth is -1: must be 0 to 8"),
    ({"max_depth": 9}, "data.max_depth is 9: must be 0 to 8"),
    (
      {"num_topics": 0},
      r"data.num_topics is 0: must be 1 to 2, which is 2 \* data.vocabulary",
    ),
    (
      {"num_topics": 7, "vocabulary": 3},
      r"data.num_topics is 7: must be 1 to 6, which is 2 \* data.vocabulary",
    ),
    ({"zipf": -0.1}, "data.zipf is -0.1: must be 0.0 to 4.0"),
    ({"zipf": 4.1}, "data.zipf is 4.1: must be 0.0 to 4.0"),
    ({"seed": -1}, "data.seed is -1: must be 0 or more"),
  )
  def test_bad_ones_are_named(self, settings, message):
    with self.assertRaisesRegex(InputError, f"^{message}$"):
      GrammarConfig(**settings)

  def test_the_hardest_makes_a_language(self):
    hardest = GrammarConfig(  # but for its words
      vocabulary=3, num_classes=20, max_depth=8, num_topics=6, zipf=4.0
    ).make(30)
    for i in range(20):
      tokens = hardest.window("train", i)
      rows = hardest.next_token_probabilities(tokens[:-1])
      assert_close(rows.sum(axis=1), np.ones(30))
      self.assertGreater(rows[np.arange(30), tokens[1:]].min(), 0.0)
