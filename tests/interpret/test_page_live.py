"""The page as a workshop: typed into, cut, patched, played back, written on."""

import contextlib
import pathlib
import re
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
from playwright import sync_api
import pytest

from gpt2_flax import interpret
from gpt2_flax.datasets import CONFIGS
from gpt2_flax.datasets.induction import InductionConfig
from gpt2_flax.datasets.markov import MarkovConfig
from gpt2_flax.interpret.page import data as page_data_module
from gpt2_flax.interpret.page import History, page_data, render_page
from gpt2_flax.interpret.page.arrays import decoded, rounded
from gpt2_flax.tokenizer import (
  BPETokenizer,
  ByteTokenizer,
  CharTokenizer,
  NumberTokenizer,
)
from tests.close import assert_close
from tests.interpret.browser import launch
from tests.interpret.test_page import make

LENGTH = 12
STEPS = (0, 40, 100)
# the page computes in float64: what is off is JAX's rounding
LOGITS = "() => inside.reading().logits.map((row) => [...row])"


class Workshop(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    playwright = cls.enterClassContext(sync_api.sync_playwright())
    cls.browser = cls.enterClassContext(launch(playwright))
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))

  @classmethod
  def write(cls, model, params, tokenizer, tokens, measured=False, **kwargs):
    """A page; what heads are worth takes seconds to compile, and is left out."""
    measure = mock.patch.object(page_data_module, "_head_scores", return_value=None)
    with contextlib.nullcontext() if measured else measure:
      data = page_data(model, params, tokenizer, tokens, title="tiny", **kwargs)
    cls.file = cls.folder / "page.html"
    cls.file.write_text(render_page(data, model.config), "utf-8")

  def open(self, link: str = ""):
    self.page = self.browser.new_page(viewport={"width": 1200, "height": 900})
    self.addCleanup(self.page.close)
    self.page.set_default_timeout(20_000)
    self.trouble = []
    self.page.on("console", lambda message: self.trouble.append(message.text))
    self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
    self.page.emulate_media(media="print")  # on paper all steps are laid out at once
    self.page.goto(self.file.as_uri() + link)
    return self.page

  def go(self, link: str):
    """To another link of the page that is open."""
    self.page.goto(self.file.as_uri() + link)

  def tokens(self) -> list[int]:
    return self.page.evaluate("inside.view.tokens")

  def link(self) -> str:
    return self.page.evaluate("location.hash.slice(1)")


class WorkshopTest(Workshop):
  """A small model of the toy language."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.language = CONFIGS["grammar"]().make(context_length=LENGTH)
    cls.tokenizer = cls.language.tokenizer
    cls.model, cls.params = make(cls.tokenizer.vocab_size, context_length=LENGTH)
    cls.start = cls.tokenizer.start("the cats that the dog sees")
    cls.write(cls.model, cls.params, cls.tokenizer, cls.start, dataset=cls.language)
    cls.trace = jax.jit(
      lambda tokens, edits: interpret.trace(cls.model, cls.params, tokens, edits)
    )

  @classmethod
  def run_jax(cls, tokens, edits=()):
    """Logits [T, V] and the trace, of a text that is padded to one length.

    What comes later changes nothing before it, so that one program serves all texts.
    """
    padded = jnp.array([[*tokens, *[1] * (LENGTH - len(tokens))]])
    logits, run = cls.trace(padded, tuple(edits))
    return np.asarray(logits[0, : len(tokens)]), run

  def setUp(self):
    super().setUp()
    self.open()

  def tearDown(self):
    self.assertEqual(self.trouble, [])
    super().tearDown()

  def assert_reads(self, tokens, edits=()):
    """The page shows this text's logits, with these edits."""
    self.assertEqual(self.tokens(), list(tokens))
    expected, _ = self.run_jax(tokens, edits)
    assert_close(np.array(self.page.evaluate(LOGITS), "f4"), expected)

  def type(self, text: str, box: str = "#prompt"):
    self.page.locator(box).fill(text)

  def test_typed_text_is_read(self):
    self.type("the queen hears")
    self.assert_reads(self.tokenizer.start("the queen hears"))
    self.assertEqual(self.page.locator("#tokens button").count(), 4)
    self.assertEqual(self.page.locator("#lens thead th").count(), 5)
    self.assertEqual(self.page.evaluate("inside.view.token"), 3)
    self.open(f"#{self.link()}")
    self.assert_reads(self.tokenizer.start("the queen hears"))
    self.assertEqual(self.page.locator("#prompt").input_value(), "the queen hears")

  def test_unknown_word_is_named_and_near_ones_offered(self):
    for wrong, near in (("The", "the"), ("quen", "queen"), ("hear5", "hear")):
      self.type(f"the {wrong} boy")
      said = self.page.locator("#prompt-says").inner_text()
      self.assertIn(f"“{wrong}” is not in the vocabulary", said)
      self.assertRegex(said, rf"Near: “{near}”")
      self.assert_reads(self.tokenizer.start("the"))
      self.page.locator("#suggestions button").first.click()
      self.assert_reads(self.tokenizer.start(f"the {near} boy"))
      self.assertEqual(self.page.locator("#prompt-says").inner_text(), "")

  def test_word_begun_in_the_middle_is_unknown(self):
    for text in ("the qu sees", "the qu dog sees qu", "the qu "):
      self.type(text)
      said = self.page.locator("#prompt-says").inner_text()
      self.assertIn("“qu” is not in the vocabulary", said)
      self.assert_reads(self.tokenizer.start("the"))
    self.type("the <s> cats")
    said = self.page.locator("#prompt-says").inner_text()
    self.assertIn("“<s>” begins every text", said)
    self.assert_reads(self.tokenizer.start("the"))

  def test_box_keeps_what_was_typed_and_follows_what_was_not(self):
    self.type("the quen boy sees")
    said = self.page.locator("#prompt-says").inner_text()
    self.page.locator("#parts button", has_text="head 1").first.click()
    self.assertEqual(self.page.locator("#prompt").input_value(), "the quen boy sees")
    self.assertEqual(self.page.locator("#prompt-says").inner_text(), said)
    self.page.locator("#prompt").focus()
    self.page.evaluate("location.hash = 'tokens=0.1.2'")
    self.page.wait_for_function("inside.view.tokens.length === 3")
    names = " ".join(self.tokenizer.token(i) for i in (1, 2))
    self.assertEqual(self.page.locator("#prompt").input_value(), names)

  def test_start_token_can_be_taken_away(self):
    self.page.locator("#tokens button").first.click()
    self.page.locator("#token-remove").click()
    self.assert_reads(self.start[1:])
    shown = self.page.locator("#prompt").input_value()
    self.assertEqual(shown, "the cats that the dog sees")
    self.assertIn("cannot have begun", self.page.locator("#oracle-note").inner_text())

  def test_word_that_is_begun_is_finished(self):
    self.type("the qu")
    self.assertEqual(self.page.locator("#prompt-says").inner_text(), "")
    offered = self.page.locator("#suggestions button").all_text_contents()
    self.assertEqual(offered, ["queen", "queens"])
    self.page.locator("#suggestions button").nth(1).click()
    self.assertEqual(self.page.locator("#prompt").input_value(), "the queens ")
    self.assert_reads(self.tokenizer.start("the queens"))

  def test_text_that_is_too_long_or_empty(self):
    self.type("the " * 20)
    self.assertIn(
      "12 tokens at most; 9 are", self.page.locator("#prompt-says").inner_text()
    )
    self.assert_reads(self.tokenizer.start("the " * 11))
    self.type("")
    self.assert_reads(self.tokenizer.start(""))
    self.page.evaluate("inside.select({ tokens: [0, 1, 2], token: 2 })")
    self.page.evaluate("inside.select({ tokens: [0, 1] })")
    self.assertEqual(self.page.evaluate("inside.view.token"), 1)

  def test_token_by_token(self):
    page, words = self.page, self.tokenizer.encode
    page.locator("#tokens button").nth(2).click()
    page.locator("#token-name").fill("king")
    page.locator("#token-replace").click()
    expected = self.tokenizer.start("the king that the dog sees")
    self.assert_reads(expected)
    page.locator("#token-name").fill("old")
    page.locator("#token-before").click()
    expected.insert(2, *words("old"))
    self.assert_reads(expected)
    page.locator("#token-name").fill("big")
    page.locator("#token-after").click()
    expected.insert(3, *words("big"))
    self.assert_reads(expected)
    self.assertEqual(page.evaluate("inside.view.token"), 3)
    page.locator("#token-remove").click()
    del expected[3]
    self.assert_reads(expected)
    page.locator("#token-name").fill("kong")
    page.locator("#token-replace").click()
    self.assertIn("Near: “king”", page.locator("#token-says").inner_text())
    self.assert_reads(expected)

  def test_parts_are_cut_and_restored(self):
    page, shape = self.page, (2, 2)
    self.assertTrue(page.locator("#cut-banner").is_hidden())
    page.locator("#parts button", has_text="head 1").nth(1).click()
    heads = np.zeros(shape, bool)
    heads[1, 1] = True
    self.assert_reads(self.start, [interpret.ablate_heads(heads)])
    self.assertIn("layer 1, head 1 is off", page.locator("#cut-banner").inner_text())
    page.locator("#parts button", has_text="feed-forward").first.click()
    page.locator("#parts button", has_text="attention").nth(1).click()
    edits = [
      interpret.patch("mlp_output", 0.0, np.array([True, False])),
      interpret.patch("attention_output", 0.0, np.array([False, True])),
    ]
    self.assert_reads(self.start, edits)
    self.assertEqual(
      re.findall(r"cut=([^&]*)", self.link()), ["1.1%2C0.mlp%2C1.attention"]
    )
    whole, _ = self.run_jax(self.start)
    self.assert_change_is_shown(whole, edits)
    self.open(f"#{self.link()}")
    self.assert_reads(self.start, edits)
    self.page.locator("#restore").click()
    self.assert_reads(self.start)
    self.assertTrue(self.page.locator("#effect").is_hidden())

  def assert_change_is_shown(self, whole, edits):
    """Both models' probabilities stand beside each other, at the selected token."""
    cut, _ = self.run_jax(self.start, edits)
    before, after = (np.asarray(jax.nn.softmax(x[-1]), "f8") for x in (whole, cut))
    order = np.argsort(-np.abs(after - before), kind="stable")
    rows = self.page.locator("#effect .next-row")
    shown = [int(row.get_attribute("data-id")) for row in rows.all()]
    self.assertLen(shown, 6)
    least = np.abs(after - before)[shown].min()
    self.assertGreaterEqual(least, np.abs(after - before)[order[6]] * (1 - 1e-4))
    for share, values in (
      (before, rows.locator(".before:not(.fill)").all_text_contents()),
      (after, rows.locator(".p").all_text_contents()),
    ):
      for token, text in zip(shown, values, strict=True):
        least = float(text.strip("<%")) / 100
        self.assertLess(abs(share[token] - least), 1e-3 if "<" not in text else 1e-4)
    divergence = (before * np.log(before / after)).sum()
    said = self.page.locator("#effect .readout").inner_text()
    self.assertIn(f"{divergence:.4f}"[:5], said)
    next_rows = self.page.locator("#next .next-row").first
    self.assertEqual(next_rows.locator(".values span").count(), 3)

  def test_a_head_is_patched_from_the_second_text(self):
    self.patch_from_the_second_text("head_output", 1)

  @parameterized.parameters(
    ("residual_before", None), ("attention_output", None), ("mlp_output", None)
  )
  @pytest.mark.slow
  def test_so_are_the_other_parts(self, site, head):
    self.patch_from_the_second_text(site, head)

  def patch_from_the_second_text(self, site, head):
    page = self.page
    page.locator("summary", has_text="Patch").click()
    self.type("the cat near the dog sees", "#other")
    page.locator("#tokens button").nth(2).click()
    page.locator("#layers button").nth(1).click()
    page.locator("#heads button").nth(1).click()
    page.locator("#patch-site").select_option(site)
    page.locator("#patch").click()
    other = self.tokenizer.start("the cat near the dog sees")
    _, run = self.run_jax(other)
    chosen = {} if head is None else {"heads": [head]}
    mask = interpret.select(
      self.model, site, layers=[1], positions=[2], length=LENGTH, **chosen
    )
    edit = interpret.patch(site, run[site], mask)
    self.assert_reads(self.start, [edit])
    self.assertIn("layer 1, at token 2", page.locator("#cut-says").inner_text())
    self.open(f"#{self.link()}")
    self.assert_reads(self.start, [edit])
    self.type("the")  # the place is gone, and nothing says that it is patched
    self.assert_reads(self.tokenizer.start("the"))
    self.assertTrue(self.page.locator("#cut-banner").is_hidden())
    self.assertTrue(self.page.locator("#effect").is_hidden())
    self.page.locator("summary", has_text="Patch").click()
    said = self.page.locator("#patches li").inner_text()
    self.assertIn("have no such token", said)
    self.page.locator("#patches button").click()
    self.type("", "#other")
    self.assertNotRegex(self.link(), "patch|other")

  def test_links_that_make_no_sense_are_left_aside(self):
    for link in (
      "tokens=0.900&cut=5.0&patch=1.1.weights",
      "tokens=&cut=0.constructor&step=7",
      "tokens=0.-1&other=x&patch=0.0.head_output&seed=-3&top_p=2&top_k=x",
      f"tokens={'.'.join(['1'] * 13)}&cut=0",
      "other=0.1.2&patch=0.0.head_output.",
      "cut=.1",
      "cut=0.",
      "other=0.1.2&patch=1.0.residual_before.99",
      "cut=0.1.1",
    ):
      self.go(f"#{link}")
      self.assert_reads(self.start)
      self.assertNotRegex(self.link(), "cut|patch|seed|top|step")

  def test_typed_code_is_text(self):
    evil = "<img src=x onerror=alert(1)>"
    for box in ("#prompt", "#other"):
      if box == "#other":
        self.page.locator("summary", has_text="Patch").click()
      self.type(evil, box)
      said = self.page.locator(f"{box}-says").inner_text()
      self.assertIn("“<img” is not", said)
    self.page.locator("#token-name").fill(evil)
    self.page.locator("#token-replace").click()
    self.assertIn(evil, self.page.locator("#token-says").inner_text())
    self.assertEqual(self.page.locator("img, iframe").count(), 0)
    self.assertEqual(self.page.locator("script").count(), 2)

  def test_writes_the_likeliest_where_only_one_is_left(self):
    self.open("#top_k=1")
    for _ in range(3):
      self.page.locator("#write-one").click()
    expected = list(self.start)
    for _ in range(3):
      expected.append(int(self.run_jax(expected)[0][-1].argmax()))
    self.assert_reads(expected)

  def test_seed_decides_what_is_written(self):
    written = []
    for seed in (1, 1, 2, 3):
      self.go(f"#seed={seed}&temperature=2")
      self.assert_reads(self.start)
      for _ in range(4):
        self.page.locator("#write-one").click()
      written.append(self.tokens())
      self.assertEqual(self.page.locator("#seed").input_value(), str(seed))
    self.assertEqual(written[0], written[1])
    self.assertLen({tuple(tokens) for tokens in written}, 3)

  def test_writes_until_there_is_no_room(self):
    self.page.clock.install()
    self.page.locator("#write-run").click()
    self.page.clock.run_for(10_000)
    self.assertLen(self.tokens(), LENGTH)
    self.assertTrue(self.page.locator("#write-one").is_disabled())
    self.page.locator("#unwrite").click()
    self.assert_reads(self.start)

  def test_a_token_of_the_list_is_written(self):
    row = self.page.locator("#next .next-row").nth(4)
    token = int(row.get_attribute("data-id"))
    row.locator("button.label").click()
    self.assert_reads([*self.start, token])

  def test_by_keyboard_alone(self):
    page = self.page
    page.locator("#next .label").nth(2).focus()
    for _ in range(2):
      page.keyboard.press("Enter")
    self.assertLen(self.tokens(), len(self.start) + 2)
    page.locator("#parts button").first.focus()
    page.keyboard.press("Space")
    page.locator("#restore").focus()
    page.keyboard.press("Enter")
    focused = page.evaluate("document.activeElement.textContent")
    self.assertEqual(focused, "attention")
    self.open("#layer=0&head=0&token=4&key=1")
    keys = self.page.locator("[data-matrix=key]")
    keys.focus()
    for key in (2, 3):
      self.page.keyboard.press("ArrowDown")
      self.assertEqual(
        self.page.evaluate("[inside.view.token, inside.view.key]"), [4, key]
      )

  def test_a_phone_keeps_its_screen(self):
    parts = ("attention", "mlp", "0", "1")
    self.go("#cut=" + ",".join(f"{layer}.{part}" for layer in (0, 1) for part in parts))
    self.page.set_viewport_size({"width": 320, "height": 640})
    self.assertIn("8 changes", self.page.locator("#cut-says").inner_text())
    bar = self.page.locator(".bar").bounding_box()
    self.assertLess(bar["height"], 320)

  def test_what_may_be_drawn_is_what_generation_keeps(self):
    logits = np.asarray(self.run_jax(self.start)[0][-1], "f8")
    for temperature, top_k, top_p in ((1.0, 0, 0.5), (0.5, 7, 1.0), (2.0, 20, 0.6)):
      self.go(f"#temperature={temperature}&top_k={top_k}&top_p={top_p}")
      scaled = logits / temperature
      order = np.argsort(-scaled)[: top_k or None]
      shares = np.exp(scaled[order] - scaled[order[0]])
      before = np.cumsum(shares) - shares
      kept = set(order[before / shares.sum() < top_p].tolist())
      tokens = self.page.evaluate(
        "() => inside.nextTokens(inside.reading(), inside.view.token, inside.view)"
      )
      self.assertEqual({t["id"] for t in tokens if t["kept"]}, kept)
      expected = np.exp(scaled - scaled.max())
      assert_close(
        np.array([t["p"] for t in tokens], "f4"),
        (expected / expected.sum())[[t["id"] for t in tokens]].astype("f4"),
        scale=logits,
      )
      line = self.page.locator("#next .cut-line")
      if len(kept) < 14:
        self.assertIn(f"{len(kept)} tokens stay", line.inner_text())

  def test_draws_are_as_frequent_as_they_are_probable(self):
    count, shares = 4000, (0.5, 0.3, 0.2)
    drawn = self.page.evaluate(
      """([count, shares]) => {
        const tokens = [...shares, 0.4].map((p, id) => ({ id, p, kept: id < 3 }));
        return Array.from({ length: count }, (_, i) => inside.draw(tokens, 5, i));
      }""",
      [count, shares],
    )
    frequencies = np.bincount(drawn, minlength=4) / count
    self.assertEqual(frequencies[3], 0)
    for frequency, share in zip(frequencies, shares, strict=False):
      self.assertLess(abs(frequency - share), 5 * (share * (1 - share) / count) ** 0.5)

  def test_norm_and_products_add_up(self):
    page = self.open("#layer=1&head=0&token=4")
    page.locator("summary", has_text="The matrices that make them").click()
    page.locator("summary", has_text="The output matrix").click()
    _, run = self.run_jax(self.start)
    for name, of in (
      ("kernel-query", run.query[1, 0, 0, 4]),
      ("kernel-value", run.value[1, 0, 0, 4]),
      ("kernel-output", run.attention_output[1, 0, 4]),
    ):
      page.locator(f"#{name} input").fill("2")
      said = page.locator(f"#{name} > .readout").inner_text().replace("\u2212", "-")
      total, bias, result = map(float, re.findall(r"-?\d+\.\d+", said))
      self.assertLess(abs(result - float(of[2])), 6e-4)
      self.assertLess(abs(total + bias - result), 2e-3)
    strips = page.locator("[data-norm=attention_norm] .vector")
    for place in range(5):
      strips.nth(place).locator(".some").click()
    rows = [
      np.array(
        [
          float(x.replace("\u2212", "-"))
          for x in strip.locator(".all span").all_text_contents()
        ]
      )
      for strip in strips.all()
    ]
    stream, normed, scale, bias, result = rows
    np.testing.assert_allclose(
      normed, (stream - stream.mean()) / stream.std(), atol=5e-3
    )
    np.testing.assert_allclose(normed * scale + bias, result, atol=2e-2)

  def test_features_that_fire_most(self):
    page = self.open("#layer=0&token=3")
    _, run = self.run_jax(self.start)
    hidden = np.asarray(run.mlp_hidden[0, 0, : len(self.start)])
    order = np.argsort(-hidden[3], kind="stable")
    names = page.locator("#features .feature").evaluate_all(
      "all => all.map(e => e.firstChild.textContent)"
    )
    self.assertLen(names, 8)
    self.assertEqual(names[:6], [f"feature {i}" for i in order[:6]])
    page.locator("#features .feature").nth(2).click()
    self.assertIn(
      f"Feature {order[2]} of layer 0", page.locator("#feature").inner_text()
    )
    titles = page.locator("#feature .token").evaluate_all(
      "all => all.map(e => e.title)"
    )
    shown = [float(x.replace("\u2212", "-")) for x in titles]
    np.testing.assert_allclose(shown, hidden[:, order[2]], atol=6e-4)

  def test_names_and_values_under_the_pointer(self):
    page = self.open("#layer=0&head=1&token=5")
    weights = page.locator("[data-matrix=weights]")
    weights.scroll_into_view_if_needed()
    box = weights.bounding_box()
    cell = box["width"] / len(self.start)
    page.mouse.move(box["x"] + 2.5 * cell, box["y"] + 4.5 * cell)
    _, run = self.run_jax(self.start)
    expected = f"“the” (4), “cats” (2): {float(run.weights[0, 1, 0, 4, 2]):.3f}"
    self.assertEqual(page.locator("#tip").inner_text(), expected)
    names = weights.locator(".column-names span").all_text_contents()
    self.assertEqual(names, [self.tokenizer.token(i) for i in self.start])


class OtherShapesTest(Workshop):
  """What the page says and offers where a model is of another kind."""

  def show(self, **shape):
    model, params = make(5, **shape)
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
    model, params = make(language.tokenizer.vocab_size, context_length=LENGTH)

    def at(step):
      return jax.tree.map(lambda leaf: leaf * (0.2 + 0.8 * step / 100), params)

    history = History(STEPS, at, [(s, 4 - s / 50) for s in range(0, 101, 10)], 1.5)
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
    kept = jax.tree.map(lambda leaf: jnp.asarray(decoded(rounded(leaf))), at(40))
    expected = model.apply(kept, jnp.array([tokens]))[0]
    assert_close(np.array(page.evaluate(LOGITS), "f4"), np.asarray(expected))
    whole = np.asarray(model.apply(at(40), jnp.array([tokens]))[0])
    np.testing.assert_allclose(
      np.asarray(expected), whole, atol=1e-3 * np.abs(whole).max()
    )
    costs = page.locator(".head-card .cost b").all_text_contents()
    self.open("#step=0")
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
    model, params = make(5)
    self.write(model, params, NumberTokenizer(5), [1, 2])
    page = self.open()
    self.assertFalse(page.locator("#playback").is_visible())
    self.assertFalse(page.locator("#step-choice").is_visible())


class LanguagesTest(Workshop):
  """The oracles in the page beside those of the datasets."""

  @parameterized.parameters(
    (CONFIGS["grammar"](),),
    (MarkovConfig(num_symbols=4, order=2, seed=3),),
    (InductionConfig(num_symbols=5, min_period=2, max_period=6),),
  )
  def test_distributions_are_exact_for_any_text(self, config):
    language = config.make(context_length=20)
    vocab_size = language.tokenizer.vocab_size
    model, params = make(vocab_size)
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
    model, params = make(language.tokenizer.vocab_size)
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
    model, params = make(tokenizer.vocab_size)
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
      model, params = make(tokenizer.vocab_size)
      self.write(model, params, tokenizer, [1, 2])
      self.open().locator("#prompt").fill(text)
      said = self.page.locator("#prompt-says").inner_text()
      self.assertIn(f"“{wrong}” is not in the vocabulary", said)

  def test_byte_pairs_are_changed_token_by_token(self):
    tokenizer = BPETokenizer.train(["the cat sat on the mat"], 262)
    tokens = tokenizer.encode("the cat")
    model, params = make(tokenizer.vocab_size)
    self.write(model, params, tokenizer, tokens)
    page = self.open()
    self.assertFalse(page.locator("#prompt").is_visible())
    self.assertIn("token by token", page.locator("#prompt-says").inner_text())
    page.locator("#token-name").fill("s")
    page.locator("#token-replace").click()
    self.assertEqual(self.tokens(), [*tokens[:-1], *tokenizer.encode("s")])
