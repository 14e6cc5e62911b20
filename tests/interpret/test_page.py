"""The page's data and its HTML; `test_page_in_browser` sees it at work."""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import html
import json
import re
from unittest import mock

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import GPT2, GPT2Config, interpret
from gpt2_flax.datasets import CONFIGS
from gpt2_flax.errors import InputError, RunError
from gpt2_flax.interpret import heads
from gpt2_flax.interpret.page import data as page_data_module
from gpt2_flax.interpret.page import History, live, page_data, render_page, stored
from gpt2_flax.interpret.page.arrays import decoded
from gpt2_flax.layers.layer_stacking import stack_layers
from gpt2_flax.self_attention import SelfAttention
from gpt2_flax.tokenizer import WordTokenizer
from gpt2_flax.transformer import FeedForward, num_params
from tests.close import assert_close, ROUNDINGS
from tests.params import shapes_of
from tests.reference import reference_logits

TINY = dict(context_length=96, num_layers=2, num_heads=2, embed_dim=8, mlp_dim=12)
# Of a mean over 170 windows of 11 queries there are as many again: 6 sqrt(170 * 11).
OVER_ALL_WINDOWS = 2 * ROUNDINGS


def make(vocab_size: int, **changes):
  """A model with weights large enough for attention to be uneven."""
  model = GPT2(GPT2Config(vocab_size=vocab_size, **(TINY | changes)))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    """Eight times what `init` would give; to draw it there takes long to compile."""
    name = jax.tree_util.keystr(path)
    if "bias" in name or "scale" in name:
      return np.full(leaf.shape, 8.0 if "scale" in name else 0.0, "f4")
    return rng.normal(0, 8 * 0.02, leaf.shape).astype("f4")

  return model, jax.tree_util.tree_map_with_path(draw, shapes_of(model))


def stored_page_data(*args, **kwargs) -> dict:
  """As for a model that is too big for the page."""
  with mock.patch.object(live, "MAX_BYTES", 100):
    return page_data(*args, **kwargs)


def unmeasured():
  """What heads are worth takes seconds to compile, and is left out."""
  return mock.patch.object(page_data_module, "_head_scores", return_value=None)


def unread():
  """Without the pass that `page_data` makes to see that the logits are finite.

  Only around `page_data`: `render_page` draws what a pass is made of.
  """
  apply = GPT2.apply

  def no_pass(model, params, *args, **kwargs):
    if kwargs:  # as of a trace, or of the pass that a loss is computed from
      return apply(model, params, *args, **kwargs)
    return jnp.zeros((1, 1, 1))

  return mock.patch.object(GPT2, "apply", no_pass)


def read_data(page: str) -> dict:
  found = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page)
  return json.loads(found[1])


class StoredDataTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.language = CONFIGS["grammar"]().make(context_length=12)
    cls.tokens = cls.language.window("validation", 0)[:12].tolist()
    cls.model, cls.params = make(cls.language.tokenizer.vocab_size)
    cls.data = cls.page(cls.tokens, dataset=cls.language)
    cls.run_ = staticmethod(jax.jit(functools.partial(interpret.trace, cls.model)))

  @classmethod
  def page(cls, tokens, **kwargs):
    tokenizer = cls.language.tokenizer
    with unread():
      return stored_page_data(
        cls.model, cls.params, tokenizer, tokens, title="tiny", **kwargs
      )

  def traced(self, tokens):
    """Logits [T, V] and trace; what comes later changes nothing before it, so that one
    program serves all texts."""
    padded = np.array([[*tokens, *[1] * (16 - len(tokens))]])
    logits, run = jax.tree.map(np.asarray, self.run_(self.params, padded))

    def cut(value, axes):
      index = [slice(len(tokens)) if axis in "TS" else slice(None) for axis in axes]
      return value[tuple(index)]

    cut_run = {name: cut(run[name], interpret.TAPS[name]) for name in run}
    return cut(logits[0], "TV"), interpret.Trace(**cut_run)

  def test_arrays_are_the_trace(self):
    logits, run = self.traced(self.tokens)
    self.assertEqual(set(self.data["reading"]["arrays"]), set(interpret.TAPS))
    expected = {
      name: run[name].take(0, interpret.TAPS[name].index("B"))
      for name in self.data["reading"]["arrays"]
    }
    found = {
      name: decoded(array) for name, array in self.data["reading"]["arrays"].items()
    }
    assert_close(found, expected)
    shown = np.array(self.data["reading"]["next"]["ids"])
    assert_close(
      decoded(self.data["reading"]["next"]["logits"]),
      np.take_along_axis(logits, shown, -1),
    )
    self.assertIsNone(self.data["reading"]["next"]["others"])

  def test_oracle_is_the_languages_own(self):
    exact = self.language.next_token_probabilities(np.array(self.tokens))
    assert_close(decoded(self.data["oracle"]), exact, 1)

  def test_lens_ends_with_the_models_own_probabilities(self):
    logits, _ = self.traced(self.tokens)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    lens = self.data["reading"]["lens"]
    # A logit's error is one of a logarithm of probabilities, none of which is above 1.
    close = functools.partial(assert_close, scale=logits)
    close(np.array(lens["probabilities"][-1]), -np.sort(-probabilities)[:, :5])
    close(np.array(lens["of_next"][-1]), probabilities[np.arange(11), self.tokens[1:]])

  def test_cost_of_a_head_is_that_of_a_model_without_it(self):
    windows = np.stack([self.language.window("validation", i) for i in range(170)])
    inputs, targets = windows[:, :-1], windows[:, 1:]
    self.assertIn("170 validation windows", self.data["heads"]["measured_on"])

    def loss(params):
      logits = reference_logits(nn.unbox(params), inputs, self.model.config)
      chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
      return (np.log(np.exp(logits).sum(-1)) - chosen).mean()

    for layer, head in ((0, 1), (1, 0)):
      # its rows of the output projection, which reads nothing else of it
      without = jax.tree.map(lambda leaf: leaf, self.params)
      output = without["params"][f"blocks_{layer}"]["attention"]["output"]
      rows = slice(4 * head, 4 * head + 4)
      kernel = output["kernel"].unbox().copy()
      kernel[rows] = 0
      output["kernel"] = output["kernel"].replace_boxed(kernel)
      found = self.data["heads"]["ablation"][layer][head]
      whole = loss(self.params)
      roundings, difference = OVER_ALL_WINDOWS, loss(without) - whole
      assert_close(found, difference, roundings, scale=whole, dtype=np.float32)

  def test_scores_are_of_the_same_windows(self):
    windows = np.stack([self.language.window("validation", i) for i in range(170)])
    run = jax.jit(functools.partial(interpret.trace, self.model, taps=["weights"]))
    _, run = run(self.params, windows[:, :-1])
    weights = np.asarray(run.weights)
    previous = np.diagonal(weights, -1, axis1=-2, axis2=-1).mean((-1, -2))
    first = weights[..., 1:, 0].mean((-1, -2))
    found = (np.array(self.data["heads"][name]) for name in ("previous", "first"))
    assert_close(tuple(found), (previous, first), OVER_ALL_WINDOWS)

  def test_long_text_is_cut_and_says_so(self):
    tokens = [0, *([1, 2, 3] * 30)]
    with (
      mock.patch.object(page_data_module, "_scores", return_value={}),
      mock.patch.object(heads, "head_ablation", return_value=np.zeros((2, 2))),
    ):
      data = self.page(tokens)
    self.assertLen(data["tokens"], stored.MAX_TOKENS)
    self.assertEqual(data["following"], tokens[64:65])
    self.assertIn("its weights would take", data["notes"][0])
    self.assertEqual(
      data["notes"][1:], ["The text has 91 tokens; the page shows the first 64."]
    )
    params = nn.unbox(self.params)
    whole = reference_logits(params, np.array([tokens]), self.model.config)
    order = data["reading"]["next"]["ids"][63]
    found = decoded(data["reading"]["next"]["logits"])[63]
    assert_close(found, whole[0, 63, order])
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
      tokens, layers, notes = stored.caps(config, 1024)
      self.assertLessEqual(size(config, tokens, layers), stored.MAX_VALUES)
      self.assertGreaterEqual(tokens, 16)
      self.assertIn(f"the page shows the first {tokens}.", notes[0])
      if kept_layers:
        self.assertEqual(layers, kept_layers)
      else:
        self.assertLess(layers, 48)
        self.assertIn(f"the page opens the first {layers}.", notes[1])

  def test_what_has_no_room_is_cut_and_says_so(self):
    tokens = [0, *([1, 2, 3] * 6)]
    with (
      mock.patch.object(stored, "MAX_FEATURES", 10),
      mock.patch.object(stored, "MAX_VALUES", 3_000),
      unmeasured(),
    ):
      data = self.page(tokens)
    _, run = self.traced(tokens[:16])
    self.assertEqual([len(data["tokens"]), data["reading"]["num_layers"]], [16, 1])
    _, text, layers, features = data["notes"]
    self.assertIn("the page shows the first 16.", text)
    self.assertIn("The model has 2 layers; the page opens the first 1.", layers)
    self.assertIn("the first 10 features", features)  # of 8 and 12
    hidden, weights = (
      decoded(data["reading"]["arrays"][n]) for n in ("mlp_hidden", "weights")
    )
    assert_close(hidden, run.mlp_hidden[:1, 0, :, :10])
    assert_close(weights, run.weights[:1, :, 0])
    # of whole vectors, in all layers
    for name, lengths in data["reading"]["norms"].items():
      whole = np.asarray(run[name], np.float64)[:, 0]
      expected = np.sqrt((whole**2).sum(-1))
      assert_close(np.array(lengths), expected, dtype=np.float32)

  def test_what_is_not_known_is_left_out(self):
    """No token repeats, and the language knows no text that begins so."""
    tokens = [*range(1, 13)]
    with unmeasured():
      data = self.page(tokens, dataset=self.language)
    self.assertIsNone(data["oracle"])
    with mock.patch.object(heads, "head_ablation", return_value=np.zeros((2, 2))):
      data = self.page(tokens)
    self.assertEqual(data["heads"]["induction"], [[None, None], [None, None]])
    json.dumps(data, allow_nan=False)

  def test_other_tokens_weigh_what_they_weigh(self):
    logits = 3 * np.random.default_rng(0).normal(size=(2, 300))
    found = stored._next_tokens(logits)
    self.assertEqual(found["num_others"], 44)
    self.assertEqual(np.shape(found["ids"]), (2, 256))
    for place, temperature in ((0, 0.5), (1, 3.0)):
      rest = np.sort(logits[place])[:44] / temperature
      weight = found["others"][place][stored.TEMPERATURES.index(temperature)]
      assert_close(weight, np.log(np.exp(rest).sum()))

  def test_one_token_has_nothing_to_be_scored_on(self):
    data = self.page([0])
    self.assertIsNone(data["heads"])
    self.assertEqual(np.shape(data["reading"]["lens"]["of_next"]), (3, 0))

  def test_model_larger_than_its_tokenizer(self):
    tokenizer = WordTokenizer(["a", "b"])
    names = [page_data_module._name(tokenizer, i) for i in range(4)]
    self.assertEqual(names, ["<s>", "a", "b", "#3"])


class LiveDataTest(chex.TestCase):
  """Small models go into the page, with the run that made them."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.language = CONFIGS["grammar"]().make(context_length=12)
    cls.tokenizer = cls.language.tokenizer
    cls.model, cls.params = make(cls.tokenizer.vocab_size)

  def page_data(
    self, model=None, params=None, tokens=(0, 1, 2), measured=False, **kwargs
  ) -> dict:
    of = model or self.model, params or self.params, self.tokenizer, tokens
    with unread(), contextlib.nullcontext() if measured else unmeasured():
      return page_data(*of, title="tiny", **kwargs)

  def history(self, steps, **changes):
    """A run whose weights at step s are those at its end times s / 100."""

    def params(step):
      return jax.tree.map(lambda leaf: leaf * step / 100, self.params)

    values = dict(steps=steps, params=params, curve=[(20, 3.5), (40, 3.25)], floor=2.0)
    return History(**(values | changes))

  def test_weights_are_the_parameters_by_their_names(self):
    data = self.page_data()
    [step] = data["steps"]
    found = jax.tree.map(decoded, step["weights"], is_leaf=lambda x: "shape" in x)
    expected = nn.unbox(self.params["params"])
    chex.assert_trees_all_equal(found, jax.tree.map(np.asarray, expected))
    self.assertIsNone(data["reading"])
    self.assertEqual(data["tokenizer"], {"kind": "word", "start_id": 0})
    self.assertEqual(data["names"][1], self.tokenizer.token(1))
    self.assertLen(data["names"], self.tokenizer.vocab_size)

  def test_stacked_layers_are_taken_apart(self):
    model = GPT2(dataclasses.replace(self.model.config, scan_layers=True))
    params = stack_layers(nn.unbox(self.params["params"]))
    data = self.page_data(model, {"params": params})
    expected = self.page_data()["steps"][0]["weights"]
    self.assertEqual(data["steps"][0]["weights"], expected)

  def test_kept_steps_are_rounded_and_the_last_is_not(self):
    data = self.page_data(history=self.history([0, 50, 100]))
    self.assertEqual([step["step"] for step in data["steps"]], [0, 50, 100])
    name = ("blocks_1", "feed_forward", "expand", "kernel")
    leaves = [functools.reduce(dict.get, name, s["weights"]) for s in data["steps"]]
    whole = np.asarray(
      functools.reduce(dict.get, name, nn.unbox(self.params)["params"])
    )
    self.assertEqual([leaf["type"] for leaf in leaves], ["i2", "i2", "f4"])
    np.testing.assert_array_equal(decoded(leaves[0]), 0 * whole)
    step_size = np.abs(whole).max() / 2 / 32767
    off = np.abs(decoded(leaves[1]) - whole / 2).max()
    self.assertLess(0.25 * step_size, off)
    self.assertLessEqual(off, 0.5 * step_size * (1 + 1e-3))
    self.assertEqual(
      data["curve"], {"steps": (20, 40), "loss": (3.5, 3.25), "floor": 2.0}
    )
    self.assertIn("rounded to 16 bits", data["notes"][0])

  def test_heads_are_measured_at_each_step(self):
    history = self.history([50, 100])
    measured = functools.partial(self.page_data, dataset=self.language, measured=True)
    kept = measured(history=history)["steps"]
    alone = measured(params=history.params(50))["steps"]
    self.assertEqual(kept[0]["heads"], alone[0]["heads"])
    self.assertNotEqual(kept[0]["heads"], kept[1]["heads"])

  def test_steps_that_have_no_room_are_left_out_evenly(self):
    num_values = num_params(self.params)
    room = num_values * (live.BYTES_OF["f4"] + 3.5 * live.BYTES_OF["i2"])
    with mock.patch.object(live, "MAX_BYTES", room):
      data = self.page_data(history=self.history([0, 1, 2, 3, 40, 100]))
    self.assertEqual([step["step"] for step in data["steps"]], [0, 2, 40, 100])
    self.assertIn("kept 6 steps; the page has room for 4", data["notes"][0])
    with mock.patch.object(live, "MAX_BYTES", num_values * live.BYTES_OF["f4"]):
      data = self.page_data(history=self.history([0, 100]))
    self.assertEqual([step["step"] for step in data["steps"]], [100])

  def test_a_damaged_step_is_left_out_and_named(self):
    def params(step):
      if step == 3:
        raise RunError("checkpoint is damaged")
      return self.params

    data = self.page_data(history=self.history([1, 3, 100], params=params))
    self.assertEqual([step["step"] for step in data["steps"]], [1, 100])
    self.assertIn("Damaged, and left out: step 3.", data["notes"])

  def test_long_text_is_cut_to_what_the_model_reads(self):
    data = self.page_data(tokens=[0, *([1, 2, 3] * 30)])
    self.assertLen(data["tokens"], 64)
    self.assertEqual(data["following"], [1])
    self.assertEqual(
      data["notes"], ["The text has 91 tokens; the page shows the first 64."]
    )

  def test_what_the_page_cannot_compute_is_shown_as_it_was(self):
    class Head(SelfAttention):
      pass

    def norm(epsilon, dtype=None):
      return nn.LayerNorm(epsilon=epsilon, dtype=dtype)

    class Own(GPT2):
      pass

    config = self.model.config
    for model in (
      GPT2(config, head=Head),
      GPT2(config, norm=norm),
      GPT2(config, mlp=lambda config: FeedForward(config)),
      Own(config),
    ):
      self.assertIn("parts of its own", live.why_stored(model, self.params))
    nothing = {"lens": {"ids": []}, "next": {"ids": []}}
    with mock.patch.object(page_data_module, "stored_reading", return_value=nothing):
      data = self.page_data(GPT2(config, head=Head))
    self.assertIsNone(data["steps"])
    self.assertIn("parts of its own", data["notes"][0])
    flash = GPT2(dataclasses.replace(config, attention="flash"))
    self.assertIsNone(live.why_stored(flash, self.params))
    big = GPT2(GPT2Config.published("small"))
    why = live.why_stored(big, shapes_of(big))
    self.assertIn("would take 664 MB, and a page has room for 6", why)

  def test_bad_input(self):
    with self.assertRaisesRegex(InputError, "the prompt is empty"):
      self.page_data(tokens=[])
    unknown = mock.patch.object(
      self.language, "process", return_value={"kind": "gramar"}
    )
    with unknown, self.assertRaisesRegex(InputError, "did you mean 'grammar'"):
      self.page_data(dataset=self.language)
    broken = jax.tree.map(lambda leaf: leaf * np.nan, self.params)
    with self.assertRaisesRegex(RunError, "not finite"):
      page_data(self.model, broken, self.tokenizer, [0, 1, 2], title="tiny")


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
    with unmeasured(), unread():
      text = [0, 1, 2, 3, 4]
      cls.data = page_data(model, params, tokenizer, text, title="<b>x</b>")
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
    own = re.sub(r'"http://www.w3.org/2000/svg"', "", self.page)  # a name, no address
    self.assertNotRegex(own, r"https?:|//[a-z]+\.|@import|url\(|<link|<img|src=")
    self.assertNotRegex(
      own,
      r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|srcdoc"
      r"|DOMParser|createContextualFragment|setHTML",
    )


class DocumentsTest(chex.TestCase):
  def test_heads_are_measured_on_documents_as_they_were_trained_on(self):
    """Alone in its document, a token looks at itself."""
    model, params = make(11, num_layers=1)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 12)).astype(np.int32)
    batch = {"inputs": tokens, "targets": tokens}
    joined = page_data_module._scores(model, params, batch)
    batch["documents"] = np.arange(12, dtype=np.int32)[None].repeat(2, axis=0)
    apart = page_data_module._scores(model, params, batch)
    self.assertGreater(np.min(joined["entropy"]), 0.1)
    chex.assert_trees_all_equal(np.array(apart["entropy"]), np.zeros((1, 2), "f4"))
