"""The page's data and its HTML; `test_page_in_browser` sees it at work."""

import base64
import functools
import hashlib
import html
import json
import re
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2, GPT2Config, interpret
from gpt2_flax.datasets import CONFIGS
from gpt2_flax.errors import InputError, RunError
from gpt2_flax.interpret.page import data as page_data_module
from gpt2_flax.interpret.page import page_data, render_page
from gpt2_flax.tokenizer import WordTokenizer
from tests.close import assert_close, ROUNDINGS

TINY = dict(context_length=96, num_layers=2, num_heads=2, embed_dim=8, mlp_dim=12)
# Of a mean over 170 windows of 11 queries there are as many again: 6 sqrt(170 * 11).
OVER_ALL_WINDOWS = 2 * ROUNDINGS


def make(vocab_size: int, **changes):
  """A model with weights large enough for attention to be uneven."""
  model = GPT2(GPT2Config(vocab_size=vocab_size, **(TINY | changes)))
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
  return model, jax.tree.map(lambda leaf: 8 * leaf, params)


def decoded(array: dict) -> np.ndarray:
  values = np.frombuffer(base64.b64decode(array["data"]), "<f4")
  return values.reshape(array["shape"])


def read_data(page: str) -> dict:
  found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page)
  return json.loads(found[1])


class PageDataTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.language = CONFIGS["grammar"]().make(context_length=12)
    cls.tokens = cls.language.window("validation", 0)[:12].tolist()
    cls.model, cls.params = make(cls.language.tokenizer.vocab_size)
    cls.data = page_data(
      cls.model,
      cls.params,
      cls.language.tokenizer,
      cls.tokens,
      title="tiny",
      dataset=cls.language,
    )

  def test_arrays_are_the_trace(self):
    logits, run = interpret.trace(self.model, self.params, jnp.array([self.tokens]))
    self.assertEqual(set(self.data["arrays"]), set(interpret.TAPS))
    expected = {
      name: np.asarray(getattr(run, name)).take(0, interpret.TAPS[name].index("B"))
      for name in self.data["arrays"]
    }
    found = {name: decoded(array) for name, array in self.data["arrays"].items()}
    assert_close(found, expected)
    shown = np.array(self.data["next"]["ids"])
    assert_close(
      decoded(self.data["next"]["logits"]),
      np.take_along_axis(np.asarray(logits[0]), shown, -1),
    )
    self.assertIsNone(self.data["next"]["others"])

  def test_oracle_is_the_languages_own(self):
    exact = self.language.next_token_probabilities(np.array(self.tokens))
    assert_close(decoded(self.data["oracle"]), exact, 1)

  def test_lens_ends_with_the_models_own_probabilities(self):
    logits = np.asarray(self.model.apply(self.params, jnp.array([self.tokens]))[0])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    lens = self.data["lens"]
    # A logit's error is one of a logarithm of probabilities, none of which is above 1.
    close = functools.partial(assert_close, scale=logits)
    close(np.array(lens["probabilities"][-1]), -np.sort(-probabilities)[:, :5])
    close(np.array(lens["of_next"][-1]), probabilities[np.arange(11), self.tokens[1:]])

  def test_cost_of_a_head_is_that_of_a_model_without_it(self):
    windows = np.stack([self.language.window("validation", i) for i in range(170)])
    inputs, targets = windows[:, :-1], windows[:, 1:]
    self.assertIn("170 validation windows", self.data["heads"]["measured_on"])

    def loss(params):
      logits = np.asarray(self.model.apply(params, jnp.asarray(inputs)), np.float64)
      chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
      return (np.log(np.exp(logits).sum(-1)) - chosen).mean()

    for layer, head in ((0, 1), (1, 0)):
      # its rows of the output projection, which reads nothing else of it
      without = jax.tree.map(lambda leaf: leaf, self.params)
      output = without["params"][f"blocks_{layer}"]["attention"]["output"]
      rows = slice(4 * head, 4 * head + 4)
      output["kernel"] = output["kernel"].replace_boxed(
        output["kernel"].unbox().at[rows].set(0.0)
      )
      found = self.data["heads"]["ablation"][layer][head]
      whole = loss(self.params)
      roundings, difference = OVER_ALL_WINDOWS, loss(without) - whole
      assert_close(found, difference, roundings, scale=whole, dtype=np.float32)

  def test_scores_are_of_the_same_windows(self):
    windows = np.stack([self.language.window("validation", i) for i in range(170)])
    _, run = interpret.trace(self.model, self.params, jnp.asarray(windows[:, :-1]))
    weights = np.asarray(run.weights)
    previous = np.diagonal(weights, -1, axis1=-2, axis2=-1).mean((-1, -2))
    first = weights[..., 1:, 0].mean((-1, -2))
    found = (np.array(self.data["heads"][name]) for name in ("previous", "first"))
    assert_close(tuple(found), (previous, first), OVER_ALL_WINDOWS)

  def test_long_text_is_cut_and_says_so(self):
    tokens = [0, *([1, 2, 3] * 30)]
    data = page_data(self.model, self.params, self.language.tokenizer, tokens, title="")
    self.assertLen(data["tokens"], page_data_module.MAX_TOKENS)
    self.assertEqual(data["following"], tokens[64:65])
    self.assertEqual(
      data["notes"], ["The text has 91 tokens; the page shows the first 64."]
    )
    whole = self.model.apply(self.params, jnp.array([tokens]))[0, 63]
    order = data["next"]["ids"][63]
    found = decoded(data["next"]["logits"])[63]
    assert_close(found, np.asarray(whole)[np.array(order)])
    self.assertIsNone(data["oracle"])
    self.assertIn("this text's 64 tokens", data["heads"]["measured_on"])

  def test_big_models_keep_within_the_limit(self):
    def size(config: GPT2Config, tokens: int, layers: int) -> int:
      dim = min(config.embed_dim, 256)
      a_head = tokens * (4 * config.head_dim + 2 * tokens)
      a_layer = config.num_heads * a_head + tokens * (5 * dim + 256)
      return layers * a_layer + 3 * tokens * dim

    for name, kept_layers in (("small", 12), ("medium", 24), ("xl", None)):
      config = GPT2Config.published(name)
      tokens, layers, notes = page_data_module._caps(config, 1024)
      self.assertLessEqual(size(config, tokens, layers), page_data_module.MAX_VALUES)
      self.assertGreaterEqual(tokens, 16)
      self.assertIn(f"the page shows the first {tokens}.", notes[0])
      if kept_layers:
        self.assertEqual(layers, kept_layers)
      else:
        self.assertLess(layers, 48)
        self.assertIn(f"the page opens the first {layers}.", notes[1])

  @parameterized.parameters(
    dict(), dict(scale_attention=False, scale_attention_by_layer=True)
  )
  def test_scores_are_dot_products_over_the_divisors(self, **changes):
    model, params = make(self.language.tokenizer.vocab_size, **changes)
    data = page_data(model, params, self.language.tokenizer, [0, 1, 2], title="")
    query, key, scores = (
      decoded(data["arrays"][name]).astype("f8") for name in ("query", "key", "scores")
    )
    products = np.einsum("lhtk,lhsk->lhts", query, key)
    divisors = np.array(data["divisors"])[:, None, None, None]
    assert_close(scores, products / divisors, dtype=np.float32)

  def test_what_has_no_room_is_cut_and_says_so(self):
    tokens = [0, *([1, 2, 3] * 6)]
    with (
      mock.patch.object(page_data_module, "MAX_FEATURES", 10),
      mock.patch.object(page_data_module, "MAX_VALUES", 3_000),
    ):
      data = page_data(
        self.model, self.params, self.language.tokenizer, tokens, title=""
      )
    _, run = interpret.trace(self.model, self.params, jnp.array([tokens[:16]]))
    self.assertEqual([len(data["tokens"]), data["num_layers"]], [16, 1])
    text, layers, features = data["notes"]
    self.assertIn("the page shows the first 16.", text)
    self.assertIn("The model has 2 layers; the page opens the first 1.", layers)
    self.assertIn("the first 10 features", features)  # of 8 and 12
    hidden, weights = (decoded(data["arrays"][n]) for n in ("mlp_hidden", "weights"))
    assert_close(hidden, run.mlp_hidden[:1, 0, :, :10])
    assert_close(weights, run.weights[:1, :, 0])
    # of whole vectors, in all layers
    for name, lengths in data["norms"].items():
      whole = np.asarray(run[name], np.float64)[:, 0]
      expected = np.sqrt((whole**2).sum(-1))
      assert_close(np.array(lengths), expected, dtype=np.float32)

  def test_what_is_not_known_is_left_out(self):
    """No token repeats, and the language knows no text that begins so."""
    data = page_data(
      self.model,
      self.params,
      self.language.tokenizer,
      [1, 2, 3],
      title="",
      dataset=self.language,
    )
    self.assertIsNone(data["oracle"])
    data = page_data(
      self.model, self.params, self.language.tokenizer, [1, 2, 3], title=""
    )
    self.assertEqual(data["heads"]["induction"], [[None, None], [None, None]])
    json.dumps(data, allow_nan=False)

  def test_other_tokens_weigh_what_they_weigh(self):
    logits = 3 * np.random.default_rng(0).normal(size=(2, 300))
    found = page_data_module._next_tokens(logits)
    self.assertEqual(found["num_others"], 44)
    self.assertEqual(np.shape(found["ids"]), (2, 256))
    for place, temperature in ((0, 0.5), (1, 3.0)):
      rest = np.sort(logits[place])[:44] / temperature
      weight = found["others"][place][page_data_module.TEMPERATURES.index(temperature)]
      assert_close(weight, np.log(np.exp(rest).sum()))

  def test_one_token_has_nothing_to_be_scored_on(self):
    data = page_data(self.model, self.params, self.language.tokenizer, [0], title="")
    self.assertIsNone(data["heads"])
    self.assertEqual(np.shape(data["lens"]["of_next"]), (3, 0))

  def test_model_larger_than_its_tokenizer(self):
    tokenizer = WordTokenizer(["a", "b"])
    names = [page_data_module._name(tokenizer, i) for i in range(4)]
    self.assertEqual(names, ["<s>", "a", "b", "#3"])

  def test_bad_input(self):
    with self.assertRaisesRegex(InputError, "the prompt is empty"):
      page_data(self.model, self.params, self.language.tokenizer, [], title="")
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, self.params)
    with self.assertRaisesRegex(RunError, "not finite"):
      page_data(self.model, broken, self.language.tokenizer, [0, 1], title="")


class RenderTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.words = ("</script><script>alert(1)</script>", "&lt;", "\u2028", "'\"`")
    model, params = make(1 + len(cls.words), num_layers=1)
    # a line separator is white space to str.split
    tokenizer = WordTokenizer([word for word in cls.words if word.split()])
    tokenizer.words = cls.words
    tokenizer.vocab_size = 1 + len(cls.words)
    cls.data = page_data(model, params, tokenizer, [0, 1, 2, 3, 4], title="<b>x</b>")
    cls.page = render_page(cls.data, model.config)

  def test_data_come_back_as_they_went_in(self):
    names = read_data(self.page)["names"]
    self.assertEqual([names[str(i)] for i in range(1, 5)], list(self.words))

  def test_nothing_in_the_data_can_be_markup(self):
    data = re.search(r'id="data">(.*?)</script>', self.page)[1]
    self.assertNotRegex(data, "[<>&\u2028\u2029]")
    self.assertIn("\\u003cscript", data)
    self.assertNotIn("<b>x</b>", self.page)
    self.assertEqual(self.page.count("</script>"), 2)

  def test_policy_allows_this_very_script_and_style_and_nothing_else(self):
    policy = html.unescape(
      re.search(r'Security-Policy" content="([^"]*)"', self.page)[1]
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    self.assertEqual(rules["default-src"], "'none'")
    self.assertEqual(rules["base-uri"], "'none'")
    self.assertEqual(rules["form-action"], "'none'")

    def hashes(tag):
      bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", self.page, re.DOTALL)
      digests = (hashlib.sha256(body.encode()).digest() for body in bodies)
      return [f"'sha256-{base64.b64encode(d).decode()}'" for d in digests]

    self.assertEqual(rules["script-src"].split(), hashes("script"))
    self.assertEqual(rules["style-src"].split(), hashes("style"))

  def test_page_asks_nobody(self):
    own = re.sub(r'xmlns="[^"]*"', "", self.page)
    self.assertNotRegex(own, r"https?:|//[a-z]+\.|@import|url\(|<link|<img|src=")
    self.assertNotRegex(
      own,
      r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|srcdoc"
      r"|DOMParser|createContextualFragment|setHTML",
    )
