"""Other models, a run's steps, languages and tokenizers in the page."""

import re
from unittest import mock

from absl.testing import parameterized
from flax import linen as nn
import jax
import numpy as np
import pytest

from gpt2_flax.datasets import CONFIGS
from gpt2_flax.datasets.grammar import GrammarConfig
from gpt2_flax.datasets.induction import InductionConfig
from gpt2_flax.datasets.markov import MarkovConfig
from gpt2_flax.interpret.page import data as page_data_module
from gpt2_flax.interpret.page import History
from gpt2_flax.interpret.page.arrays import decoded, rounded
from gpt2_flax.tokenizer import (
  BPETokenizer,
  ByteTokenizer,
  CharTokenizer,
  NumberTokenizer,
)
from tests.close import assert_close
from tests.interpret.test_page import make
from tests.interpret.workshop import LENGTH, LOGITS, STEPS, Workshop
from tests.reference import reference_logits

SMALL = dict(num_layers=1, num_heads=1)


class OtherShapesTest(Workshop):
  """What the page says and offers where a model is of another kind."""

  def show(self, **shape):
    model, params = make(5, num_layers=1, **shape)
    self.write(model, params, NumberTokenizer(5), [1, 2, 3, 4])
    page = self.open("#token=1")
    for section in ("#step-positions", "#step-rotation", "#step-scores"):
      self.assertIsNotNone(page.locator(section))
    return page

  @parameterized.parameters("rotary", "alibi")
  def test_positions_are_told_as_they_are(self, encoding):
    self.assert_tells_of_positions(encoding)

  @parameterized.parameters("sinusoidal", "none")
  @pytest.mark.slow
  def test_so_are_the_others(self, encoding):
    self.assert_tells_of_positions(encoding)

  def assert_tells_of_positions(self, encoding):
    page = self.show(positional_encoding=encoding)
    said = page.locator("#step-positions").inner_text()
    added = encoding == "sinusoidal"
    self.assertEqual(
      "a vector of its own (sinusoidal)" in " ".join(said.split()), added
    )
    self.assertEqual("adds no vector" in said, not added)
    self.assertEqual("turn their queries" in said, encoding == "rotary")
    rotation = page.locator("#step-rotation")
    self.assertEqual(rotation.is_visible(), encoding == "rotary")
    biased = page.locator("[data-matrix=biased_scores]")
    self.assertEqual(biased.is_visible(), encoding == "alibi")
    columns = page.locator("#row thead th:visible").count()
    self.assertEqual(columns, 6 if encoding == "alibi" else 5)
    self.assertTrue(page.locator("#row-note").is_hidden())

  @pytest.mark.slow  # test_page_model.py has its values
  def test_first_pair_turns_by_its_place_in_radians(self):
    page = self.show(positional_encoding="rotary")
    said = page.locator("#rotation .readout").inner_text().replace("\u2212", "-")
    place, a, b, c, d, _ = map(float, re.findall(r"-?\d+(?:\.\d+)?", said)[1:])
    self.assertEqual(place, 1)
    turned = complex(a, b) * np.exp(1j * place)
    self.assertLess(abs(turned - complex(c, d)), 3e-3)

  def test_without_a_mask_later_tokens_are_looked_at(self):
    page = self.show(causal=False)
    page.evaluate("inside.select({ token: 0, key: 3 })")
    self.assertEqual(page.evaluate("inside.view.key"), 3)
    self.assertEqual(page.locator("#row tbody tr").count(), 4)
    self.assertIn("(3)", page.locator("#cell").inner_text())


class PlaybackTest(Workshop):
  def test_steps_of_a_run_are_played_back(self):
    language = CONFIGS["grammar"]().make(context_length=LENGTH)
    tokens = language.tokenizer.start("the cats that the dog sees")
    vocab_size = language.tokenizer.vocab_size
    model, params = make(vocab_size, context_length=LENGTH, num_layers=1)

    def at(step):
      return jax.tree.map(lambda leaf: leaf * (0.2 + 0.8 * step / 100), params)

    history = History(STEPS, at, [(s, 4 - s / 50) for s in range(0, 101, 10)], 1.5)
    with mock.patch.object(page_data_module, "MAX_SCORED_TOKENS", 4 * LENGTH):
      self.write(
        model,
        params,
        language.tokenizer,
        tokens,
        dataset=language,
        history=history,
        measured=True,
      )
    page = self.open()
    self.assertEqual(page.locator("#step-value").inner_text(), "100")
    page.locator("#step").fill("1")
    self.assertIn("step=40", self.link())
    weights = nn.unbox(at(40))
    kept = jax.tree.map(lambda leaf: decoded(rounded(leaf)), weights)
    expected, whole = (
      reference_logits(params, np.array([tokens]), model.config)[0]
      for params in (kept, weights)
    )
    assert_close(np.array(page.evaluate(LOGITS), "f4"), expected)
    np.testing.assert_allclose(expected, whole, atol=1e-3 * np.abs(whole).max())
    costs = page.locator(".head-card .cost b").all_text_contents()
    self.open("#step=0", fresh=True)
    self.assertEqual(self.page.locator("#step-value").inner_text(), "0")
    self.assertNotEqual(
      self.page.locator(".head-card .cost b").all_text_contents(), costs
    )
    self.page.clock.install()
    self.page.locator("#play").click()
    self.page.clock.run_for(3_000)
    self.assertEqual(self.page.locator("#step-value").inner_text(), "100")
    self.assertEqual(self.page.locator("#play").inner_text(), "play")
    box = self.page.locator("#curve svg").bounding_box()
    self.page.locator("#curve svg").click(position={"x": 0.47 * box["width"], "y": 50})
    self.assertEqual(self.page.locator("#step-value").inner_text(), "40")
    self.assertEqual(self.page.locator("#curve .kept").count(), len(STEPS))
    self.assertEqual(self.trouble, [])

  def test_without_a_run_there_is_nothing_to_play(self):
    model, params = make(5, **SMALL)
    self.write(model, params, NumberTokenizer(5), [1, 2])
    page = self.open()
    self.assertFalse(page.locator("#playback").is_visible())
    self.assertFalse(page.locator("#step-choice").is_visible())


class LanguagesTest(Workshop):
  """The oracles in the page beside those of the datasets."""

  @parameterized.parameters(
    (CONFIGS["grammar"](),),
    (GrammarConfig(vocabulary=2, num_classes=5, max_depth=3, num_topics=3, zipf=0.8),),
    (MarkovConfig(num_symbols=4, order=2, seed=3),),
    (InductionConfig(num_symbols=5, min_period=2, max_period=6),),
  )
  def test_distributions_are_exact_for_any_text(self, config):
    language = config.make(context_length=20)
    vocab_size = language.tokenizer.vocab_size
    model, params = make(vocab_size, **SMALL)
    self.write(model, params, language.tokenizer, [0, 1], dataset=language)
    page = self.open()
    rng = np.random.default_rng(0)
    texts = [language.window("validation", i).tolist() for i in range(20)]
    for i in range(10):  # and texts that it cannot have written
      text = language.window("validation", i).tolist()
      text[rng.integers(1, 20)] = int(rng.integers(0, vocab_size))
      texts.append(text)
    found = page.evaluate(
      "texts => texts.map(text => inside.language(text).map(row => row && [...row]))",
      texts,
    )
    impossible = 0
    for text, rows in zip(texts, found, strict=True):
      exact = language.next_token_probabilities(np.array(text))
      impossible += rows[-1] is None
      ours = np.array([row or np.zeros(vocab_size) for row in rows])
      # states of the grammar are rounded to 12 digits in Python
      np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-11)
    self.assertGreater(impossible, 0)
    self.assertIsNone(page.evaluate("inside.language([1, 2])[1]"))

  def test_two_derivations_of_the_same_words_count_together(self):
    language = CONFIGS["grammar"]().make(context_length=4)
    productions = {
      "s": [[0.5, [1, 2]], [0.25, ["x", 2]], [0.25, [3]]],
      "x": [[1.0, [1]]],
    }
    process = {"kind": "grammar", "start": "s", "productions": productions}
    model, params = make(language.tokenizer.vocab_size, **SMALL)
    with mock.patch.object(language, "process", return_value=process):
      self.write(model, params, language.tokenizer, [0, 1], dataset=language)
    rows = self.open().evaluate(
      "inside.language([0, 1]).map(row => [...row].slice(0, 4))"
    )
    self.assertEqual(rows, [[0, 0.75, 0, 0.25], [0, 0, 1, 0]])


class TokenizersTest(Workshop):
  @parameterized.parameters(
    (CharTokenizer("abc é\n"), "a cé\nb"),
    (ByteTokenizer(), "né <b>&"),
    (NumberTokenizer(40), "3 17  0"),
  )
  def test_typed_text_is_cut_as_in_python(self, tokenizer, text):
    model, params = make(tokenizer.vocab_size, **SMALL)
    self.write(model, params, tokenizer, [1, 2])
    page = self.open()
    page.locator("#prompt").fill(text)
    self.assertEqual(self.tokens(), tokenizer.start(text))
    self.open(f"#{self.link()}")
    again = self.page.locator("#prompt").input_value()
    self.assertEqual(tokenizer.start(again), tokenizer.start(text))
    self.assertEqual(self.trouble, [])

  def test_unknown_characters_and_numbers_are_named(self):
    for tokenizer, text, wrong in (
      (CharTokenizer("abc"), "abxc", "x"),
      (NumberTokenizer(40), "3 40", "40"),
    ):
      model, params = make(tokenizer.vocab_size, **SMALL)
      self.write(model, params, tokenizer, [1, 2])
      self.open().locator("#prompt").fill(text)
      said = self.page.locator("#prompt-says").inner_text()
      self.assertIn(f"“{wrong}” is not in the vocabulary", said)

  def test_byte_pairs_are_changed_token_by_token(self):
    tokenizer = BPETokenizer.train(["the cat sat on the mat"], 262)
    tokens = tokenizer.encode("the cat")
    model, params = make(tokenizer.vocab_size, **SMALL)
    self.write(model, params, tokenizer, tokens)
    page = self.open()
    self.assertFalse(page.locator("#prompt").is_visible())
    self.assertIn("token by token", page.locator("#prompt-says").inner_text())
    page.locator("#token-name").fill("s")
    page.locator("#token-replace").click()
    self.assertEqual(self.tokens(), [*tokens[:-1], *tokenizer.encode("s")])
