"""The lesson on tokens: the spelled language against the grammar's, and the verdict."""

import dataclasses
import itertools
import json
import math
from unittest import mock

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax import GPT2Config
from gpt2_flax.datasets.grammar import GrammarConfig
from gpt2_flax.datasets.pipeline import validation_windows
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import CharTokenizer
from lessons import spelled, tokens
from lessons.spelled import CUTS, SpelledConfig
from lessons.tokens import Result, ROOM
from lessons.training import Trained
from tests.close import assert_close, walk
from tests.lessons.stubs import (
  all_but,
  ByHeart,
  figures,
  Given,
  held,
  picture_size,
  table,
  train_giving,
)


class SpelledTest(chex.TestCase):
  @parameterized.parameters(*CUTS)
  def test_a_text_is_as_probable_in_tokens_as_in_words(self, cut):
    """Word by word: the tokens of a word, and that another word begins after it."""
    language = SpelledConfig(cut, num_words=8, seed=3).make(60)
    grammar = GrammarConfig().make(8)
    for i in range(3):
      line = language.window("validation", i)
      line = line[line >= 0]
      rows = language.next_token_probabilities(line)
      assert_close(rows.sum(-1), np.ones(len(line)))
      text = language.tokenizer.decode(line[1:].tolist()).split()
      words = np.array([0, *grammar.tokenizer.encode(" ".join(text))])
      exact = grammar.next_token_probabilities(words)
      of_words = np.cumprod(exact[np.arange(8), words[1:]])
      of_tokens = np.cumprod(rows[np.arange(len(line) - 1), line[1:]])
      ends = np.cumsum([len(language.spellings[word]) for word in text])
      another = rows[ends][:, sorted(language.firsts)].sum(-1)
      found = of_tokens[ends - 1] * another
      assert_close(np.log(found), np.log(of_words), walk(8 * 60))

  def test_what_comes_within_a_word_by_hand(self):
    language = SpelledConfig("characters").make(60)
    [*said] = language.tokenizer.encode("\n the c")
    row = language.next_token_probabilities(np.array(said))[-1]
    self.assertEqual(row.argmax(), language.tokenizer.encode("a")[0])  # cat, cats
    assert_close(row.max(), 1.0)
    [*said] = language.tokenizer.encode("\n the cat")
    row = language.next_token_probabilities(np.array(said))[-1]
    # every fourth phrase is of "it" and of "they"; a third of either is with "the"; of
    # four nouns and of ten one is a cat
    of = [language.tokenizer.encode(letter)[0] for letter in " s"]
    assert_close(row[of], np.array([0.25, 0.1]) / 0.35)

  def test_after_what_cannot_come_nothing_can(self):
    language = SpelledConfig("characters").make(60)
    said = np.array(language.tokenizer.encode("\n thw c"))
    sums = language.next_token_probabilities(said).sum(-1)
    assert_close(sums, np.array([1.0, 1, 1, 1, 0, 0, 0]))

  @parameterized.parameters(*CUTS)
  def test_lines_are_the_same_text_and_fit(self, cut):
    language = SpelledConfig(cut).make(ROOM[cut])
    words = SpelledConfig("words").make(ROOM["words"])
    for i in range(20):
      line = language.window("train", i)
      tokens = line[line >= 0]
      self.assertEqual(len(line), ROOM[cut] + 1)
      self.assertTrue((line[len(tokens) :] == -1).all())
      text = language.tokenizer.decode(tokens[1:].tolist()).strip()
      self.assertLen(text.split(), 12)
      same = words.window("train", i)
      self.assertEqual(text, words.tokenizer.decode(same.tolist()))
      self.assertEqual(spelled.line_bytes(language, line), 1 + len(text))

  def test_a_line_that_is_too_long_is_cut_off(self):
    line = SpelledConfig("characters").make(10).window("train", 0)
    whole = SpelledConfig("characters").make(ROOM["characters"]).window("train", 0)
    np.testing.assert_array_equal(line, whole[:11])

  def test_refuses_a_cut_that_does_not_show_where_words_begin(self):
    class Bare(CharTokenizer):
      def encode(self, text):
        return super().encode(text.strip(" "))

    cuts = {"bare": lambda: Bare("\n." + "".join(map(chr, range(97, 123))))}
    with (
      mock.patch.object(spelled, "CUTS", cuts),
      self.assertRaisesRegex(InputError, "cut is 'bare': must show where"),
    ):
      SpelledConfig("bare").make(10)


class MeasureTest(chex.TestCase):
  @parameterized.parameters(0.0, 1.0)
  def test_bits_by_place_of_a_model_that_doubts(self, doubt):
    """A model that gives each token half of its probability loses a bit at each."""
    language = SpelledConfig("characters", num_words=3).make(24)
    windows = validation_windows(language, 16)
    inputs = language.batch(windows)["inputs"]
    exact = np.stack([language.next_token_probabilities(row) for row in inputs])
    said = exact * 2**-doubt
    # the rest is for the newline, which never comes
    said[..., 0] += np.maximum(1 - said.sum(-1), 0)
    with np.errstate(divide="ignore"):
      params = {"texts": inputs, "logits": np.log(said)}
    model = ByHeart(GPT2Config(27, 24, 1, 1, 8))
    trained = Trained(model, params, 0.0, 0.0, [])
    found, floor = tokens.bits_by_place(language, trained, windows)
    texts = [language.tokenizer.decode(w[w > 0].tolist()).split() for w in windows]
    lengths = [1 + len(word) for text in texts for word in text]
    share = np.array([np.mean(np.array(lengths) > i) for i in range(len(floor))])
    assert_close(found - floor, doubt * share, scale=10.0, dtype=np.float32)
    rows = zip(exact, language.batch(windows)["targets"], strict=True)
    total = -sum(
      math.log2(row[t, target])
      for row_of, targets in rows
      for t, target in enumerate(targets)
      if target >= 0
      for row in [row_of]
    )
    assert_close(floor.sum() * len(lengths), total)

  def test_nats_a_token_as_bits_a_byte(self):
    result = Result("words", 1, 1.0, 70, 5.0, [2.0, 3.0], 1.0, [])
    assert_close(result.bits(5 * math.log(2)), 1.0)
    assert_close(result.gaps, [0.2 / math.log(2), 0.4 / math.log(2)])

  def test_an_experiment_is_the_toy_one_on_lines(self):
    seen = []

    def outcome(config, seed):
      seen.append((config.data.cut, config.model.context_length, seed))
      return Given(2.0 + seed, 1.9)

    with mock.patch.object(tokens, "train", train_giving(outcome)):
      result = tokens.measure("words", 40, 8, (0, 1))
    self.assertEqual(seen, [("words", 12, 0), ("words", 12, 1)])
    language = SpelledConfig("words").make(12)
    num_bytes = sum(
      spelled.line_bytes(language, row) for row in validation_windows(language, 8)
    )
    assert_close(result.bytes_a_token, num_bytes / 96)
    self.assertEqual((result.loss, result.floor), ([2.0, 3.0], 1.9))
    # 2 layers of 12 64^2 weights and 2 12 64 for attention, 70 embeddings of 64; twice
    # for an operation pair and thrice for the gradients; 16 lines of 12 tokens
    a_token = 6 * (2 * (12 * 64**2 + 2 * 12 * 64) + 70 * 64)
    self.assertEqual(result.work, 40 * 16 * 12 * a_token)


PLACES = np.array([[0.5, 2.0, 0.4, 0.1], [0.1, 1.5, 0.2, 0.1]])


def judge(gaps=None, floors=None, places=PLACES, picture=False):
  """The verdict on gaps [in bits a byte] and floors like the page's."""
  page = {
    ("characters", "text"): [0.20, 0.22],
    ("bytes", "text"): [0.21, 0.23],
    ("byte pairs", "text"): [0.10, 0.11],
    ("words", "text"): [0.03, 0.04],
    ("byte pairs", "work"): [0.02, 0.03],
    ("words", "work"): [0.002, 0.003],
  } | (gaps or {})
  length = {"characters": 1.0, "bytes": 1.0, "byte pairs": 2.5, "words": 5.0}

  def result(cut, equal):
    nats = length[cut] * math.log(2)
    floor = (floors or {}).get(cut, 0.59)
    losses = [(floor + gap) * nats for gap in page[cut, equal]]
    steps = 300 if equal == "text" else int(300 * length[cut])
    return Result(cut, steps, 1e10, 70, length[cut], losses, floor * nats, [])

  with mock.patch.object(tokens, "new_figure", figures(picture)):
    return tokens.report(
      [result(cut, "text") for cut in ROOM],
      [result(cut, "work") for cut in ("byte pairs", "words")],
      np.stack([places, places]),
    )


class VerdictTest(chex.TestCase):
  def test_holds(self):
    report = judge(picture=True)
    self.assertEqual(held(report), [True] * 5)
    json.dumps([dataclasses.asdict(finding) for finding in report.findings])
    self.assertBetween(picture_size(report), 5_000, 150_000)
    rows = table(report, "The same")
    self.assertEqual([row["equal"] for row in rows], ["text"] * 4 + ["work"] * 2)
    assert_close(rows[2]["loss, bits a byte"], 0.59 + 0.105)
    assert_close(rows[2]["floor, bits a byte"], 0.59)
    assert_close(rows[3]["floor, nats a token"], 0.59 * 5 * math.log(2))
    self.assertEqual(rows[5]["above it, by seed"], "0.002 0.003")

  @parameterized.parameters(
    (0, {"floors": {"words": 0.6}}),
    (1, {"gaps": {("bytes", "text"): [0.29, 0.30]}}),
    (2, {"gaps": {("words", "text"): [0.03, 0.105]}}),
    (2, {"gaps": {("byte pairs", "text"): [0.10, 0.205]}}),
    (3, {"gaps": {("words", "work"): [0.01, 0.021]}}),
    (3, {"gaps": {("words", "work"): [0.001, 0.031], ("byte pairs", "work"): [0.04]}}),
    (3, {"gaps": {("byte pairs", "work"): [0.04, 0.12]}}),
    (4, {"places": PLACES + np.array([[0.0, 0, 0.6, 0], [0, 0, 0, 0]])}),
  )
  def test_does_not_hold(self, finding, given):
    self.assertEqual(held(judge(**given)), all_but(5, finding))

  def test_equal_work_is_as_many_steps_as_the_work_of_characters_pays(self):
    asked = []

    def measure(cut, num_steps, num_windows, seeds):
      asked.append((cut, num_steps))
      return Result(cut, num_steps, 1.0, 1, 1.0, [1.0], 1.0, [None])

    work = dict(zip(ROOM, (60.0, 70.0, 25.0, 10.0), strict=True))
    with (
      mock.patch.object(tokens, "measure", measure),
      mock.patch.object(tokens, "work_a_step", work.get),
      mock.patch.object(tokens, "bits_by_place", return_value=PLACES),
      mock.patch.object(tokens, "report", lambda *args: args),
    ):
      text, more, by_place = tokens.run(reduced=True)
    steps = text[0].num_steps
    self.assertEqual(asked[:4], [(cut, steps) for cut in ROOM])
    self.assertEqual(
      asked[4:], [("byte pairs", round(steps * 2.4)), ("words", steps * 6)]
    )
    self.assertLen(list(itertools.chain(text, more)), 6)
    self.assertEqual(by_place.shape, (1, 2, 4))
    self.assertTrue(dataclasses.is_dataclass(more[0]))
