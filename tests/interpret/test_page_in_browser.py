"""The page as its reader has it: in a real browser, from a file."""

import pathlib
import re
import tempfile

import chex
import jax
import numpy as np
import pytest

from gpt2_flax import interpret
from gpt2_flax.datasets import CONFIGS
from gpt2_flax.interpret.page import page_data, render_page
from tests.close import ROUNDINGS
from tests.interpret import browser
from tests.interpret.test_page import make, stored_page_data, unmeasured, unread
from tests.reliability import injection
from tests.reliability.campaign import Tally


def numbers(texts: list[str]) -> list[float]:
  return [float(text.replace("\u2212", "-")) for text in texts]


def assert_shown(shown, expected, digits=3, terms=1, name=""):
  """Numbers are ours, rounded to so many digits after the point; or a sum of such."""
  half_a_unit = 0.5 * 10.0**-digits
  roundings = ROUNDINGS * 2**-24 * np.abs(expected).max()
  np.testing.assert_array_less(
    np.abs(np.subtract(shown, expected)), terms * half_a_unit + roundings, name
  )


class PageInBrowser:
  """What any page shows."""

  stored = False

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.browser = browser.shared()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    language = CONFIGS["grammar"]().make(context_length=12)
    cls.tokenizer = language.tokenizer
    cls.tokens = language.window("validation", 0)[:12].tolist()
    cls.words = [cls.tokenizer.token(token) for token in cls.tokens]
    model, params = make(cls.tokenizer.vocab_size)
    cls.config = model.config
    make_data = stored_page_data if cls.stored else page_data
    with unread():
      cls.data = make_data(
        model, params, cls.tokenizer, cls.tokens, title="tiny", dataset=language
      )
    cls.heads = cls.data["heads"] or cls.data["steps"][-1]["heads"]
    cls.file = cls.folder / "page.html"
    cls.file.write_text(render_page(cls.data, model.config), "utf-8")

    @jax.jit
    def read(params, tokens):
      logits, run = interpret.trace(model, params, tokens)
      return logits, run, interpret.logit_lens(model, params, run)[:, 0]

    logits, cls.run_, lens = read(params, np.array([cls.tokens]))
    cls.run_, cls.lens = jax.tree.map(np.asarray, (cls.run_, lens))
    cls.logits = np.asarray(logits, np.float64)[0]
    cls.oracle = language.next_token_probabilities(np.array(cls.tokens))

  def setUp(self):
    super().setUp()
    self.trouble, self.requests, self.answers = [], [], []
    heard = {
      "console": lambda message: self.trouble.append(message.text),
      "pageerror": lambda error: self.trouble.append(str(error)),
      "request": lambda request: self.requests.append(request.url),
      "requestfinished": lambda request: self.answers.append(request.url),
    }
    self.page = browser.page_for(self, heard)
    self.address = None

  def open(self, link: str = ""):
    """The page, or another link of it."""
    if self.address is None:
      self.address = browser.begin(self.page, self.file, link)
    else:
      self.page.goto(self.address + link)
    return self.page

  def texts(self, selector: str) -> list[str]:
    return self.page.locator(selector).all_text_contents()

  def link(self) -> str:
    return self.page.evaluate("location.hash.slice(1)")

  def view(self) -> dict[str, str]:
    """What the link says, after checking that all controls say the same."""
    words = dict(w.split("=") for w in self.link().split("&"))
    for picker, name in (("tokens", "token"), ("layers", "layer"), ("heads", "head")):
      checked = self.page.locator(f"#{picker} [aria-checked=true]")
      place = checked.evaluate("e => [...e.parentElement.children].indexOf(e)")
      self.assertEqual(str(place), words[name])
    self.assertEqual(
      self.page.locator("[aria-pressed=true].head-card").get_attribute("data-head"),
      words["head"],
    )
    selected = self.page.locator(".token.selected[data-token]")
    places = set(selected.evaluate_all("all => all.map(e => e.dataset.token)"))
    self.assertEqual(places, {words["token"]})
    return words

  def test_loads_without_trouble_and_asks_nobody(self):
    page = self.open()
    self.assertEqual(page.title(), "Inside tiny")
    self.assertEqual(page.locator(".head-card").count(), 4)
    page.emulate_media(color_scheme="dark")
    self.assertTrue(page.locator("svg.flow").is_visible())
    page.locator("details.map summary").click()
    self.assertFalse(page.locator("svg.flow").is_visible())
    self.assertEqual(self.trouble, [])
    self.assertEqual(self.requests, [self.address])

  def test_row_of_scores_and_weights_is_the_traces(self):
    for layer, head, token in ((0, 1, 11), (1, 0, 5), (1, 1, 0)):
      self.open(f"#layer={layer}&head={head}&token={token}")
      scores = np.asarray(self.run_.scores)[layer, head, 0, token, : token + 1]
      weights = np.asarray(self.run_.weights)[layer, head, 0, token, : token + 1]
      rows = "#row tbody tr:not(.masked-row)"
      for column, expected in ((2, 2 * scores), (3, scores), (4, scores), (5, weights)):
        shown = numbers(self.texts(f"{rows} :nth-child({column}):is(td)"))
        assert_shown(shown, expected)
      later = self.texts("#row .masked-row :is(th, td)")
      self.assertEqual(bool(later), token < 11)
      if later:
        self.assertIn(f"{11 - token} later token", later[0])
        self.assertEqual(later[3], "\u2212∞")
      self.assertTrue(self.page.locator("#row-note").is_hidden())

  def test_one_score_adds_up(self):
    page = self.open("#layer=1&head=1&token=9&key=4")
    query = np.asarray(self.run_.query)[1, 1, 0, 9]
    key = np.asarray(self.run_.key)[1, 1, 0, 4]
    said = page.locator("#product .readout").inner_text()
    assert_shown(numbers(re.findall(r"add up to (\S+\d)", said)), [query @ key])
    self.assertIn("÷ 2 it is", said)
    for button in page.locator("#product .some").all():
      button.click()
    shown = [
      numbers(row.locator("span").all_text_contents())
      for row in page.locator("#product .all").all()
    ]
    assert_shown(shown, [query, key, query * key])
    page.locator("#key-choice").select_option("1")
    self.assertEqual(self.view()["key"], "1")

  def test_vectors_are_the_traces(self):
    page = self.open("#layer=1&head=0&token=6")
    shown = {}
    for vector in page.locator("[data-vector]:not([hidden])").all():
      vector.locator(".some").click()
      values = numbers(vector.locator(".all span").all_text_contents())
      name = vector.get_attribute("data-vector")
      shown[name, vector.get_attribute("data-layer")] = values
    for (name, layer), values in shown.items():
      axes, value = interpret.TAPS[name], np.asarray(getattr(self.run_, name))
      index = {"L": int(layer or 1), "H": 0, "B": 0, "T": 6}
      expected = value[tuple(index[axis] for axis in axes[:-1])]
      assert_shown(values, expected, name=name)
    self.assertEqual(
      {name for name, _ in shown}, set(interpret.TAPS) - {"scores", "weights"}
    )

  def test_weighted_values_are_the_heads_output(self):
    page = self.open("#layer=0&head=1&token=5")  # six tokens: all are shown
    for button in page.locator("#mix .some").all():
      button.click()
    rows = [
      numbers(row.locator("span").all_text_contents())
      for row in page.locator("#mix .all").all()
    ]
    self.assertLen(rows, 6)
    output = np.asarray(self.run_.head_output)[0, 1, 0, 5]
    assert_shown(np.sum(rows, 0), output, terms=6)

  def test_overview_has_scores_and_costs(self):
    self.open()
    cards = self.page.locator(".head-card").all()
    heads = self.heads
    for i, card in enumerate(cards):
      layer, head = divmod(i, 2)
      cost, *scores = numbers(card.locator("b").all_text_contents())
      assert_shown(cost, heads["ablation"][layer][head])
      names = ("previous", "first", "induction", "entropy")
      expected = [heads[name][layer][head] for name in names]
      assert_shown(scores, expected, digits=2)

  def test_next_tokens_at_any_temperature_beside_the_oracle(self):
    for token, temperature in ((11, 1.0), (4, 0.5), (7, 2.5)):
      page = self.open(f"#layer=0&head=0&token={token}")
      place = self.data["temperatures"].index(temperature)
      page.locator("#temperature").fill(str(place))
      scaled = self.logits[token] / temperature
      expected = np.exp(scaled) / np.exp(scaled).sum()
      truth = self.oracle[token]
      rows = page.locator("#next .next-row")
      ids = [int(i) for i in rows.evaluate_all("all => all.map(e => e.dataset.id)")]
      self.assertEqual(ids[0], int(expected.argmax()))
      self.assertTrue(
        set(np.argsort(-truth)[:5]) & set(np.flatnonzero(truth)) <= set(ids)
      )
      for share, values in (
        (expected, self.texts("#next .p")),
        (truth, self.texts("#next .q")),
      ):
        for i, text in zip(ids, values, strict=True):
          if text == "<0.01%":
            self.assertLess(share[i], 1e-4 + ROUNDINGS * 2**-24)
          else:
            assert_shown(float(text.rstrip("%")) / 100, share[i])
      divergence = sum(
        p * np.log(p / q) for p, q in zip(truth, expected, strict=True) if p > 0
      )
      said = page.locator("#oracle-note").inner_text()
      assert_shown(numbers(re.findall(r"(\S+) nats", said)), [divergence], digits=4)

  def test_lens_says_the_likeliest_token_of_each_layer(self):
    self.open("#layer=0&head=0&token=4")
    rows = self.page.locator("#lens tbody tr").all()
    shown = [row.locator(".cell").all_text_contents() for row in rows][::-1]
    top = self.lens.argmax(-1)
    self.assertEqual(shown, [[self.tokenizer.token(i) for i in row] for row in top])
    np.testing.assert_array_equal(top[-1], self.logits.argmax(-1))
    share = self.texts("#lens-token tbody tr:last-child .weight")[0]
    scores = self.logits[4]
    expected = (
      np.exp(scores - scores.max())[self.tokens[5]]
      / np.exp(scores - scores.max()).sum()
    )
    assert_shown(float(share.strip("<%")) / 100, expected)


@pytest.mark.slow  # test_page.py has its data, and LivePageTest how they are shown
class StoredPageTest(PageInBrowser, chex.TestCase):
  """The page of a model that is too big for it."""

  stored = True
  # what these show is drawn from the vectors alone, as on the other page
  test_one_score_adds_up = None
  test_weighted_values_are_the_heads_output = None
  test_overview_has_scores_and_costs = None

  def test_offers_nothing_that_it_cannot_do(self):
    page = self.open("#cut=0.0&tokens=0.1.2&layer=1")
    self.assertIn("cannot read another", page.locator("#notes").inner_text())
    for name in ("#prompt", "#parts", "#write-one", "#step-norm", "#cut-here"):
      self.assertFalse(page.locator(name).is_visible(), name)
    self.assertEqual(self.texts("#tokens button"), self.words)


class LivePageTest(PageInBrowser, chex.TestCase):
  """The page of a model that runs in it."""

  def test_policy_holds(self):
    page = self.open()
    page.evaluate("""() => {
      const image = document.createElement("img");
      image.src = "https://example.invalid/x.png";
      const script = document.createElement("script");
      script.textContent = "document.title = 'taken'";
      document.body.append(image, script);
    }""")
    page.wait_for_timeout(50)
    self.assertEqual(page.title(), "Inside tiny")
    self.assertEqual(self.answers, [self.address])
    self.assertLen(self.trouble, 2)  # the browser says that it refused both
    for refused in self.trouble:
      self.assertIn("Content Security Policy", refused)

  def test_tokens_that_would_like_to_be_code_are_text(self):
    names, tally = list(injection.TOKENS[: injection.CONTEXT]), Tally()
    with unmeasured():
      injection.show(self.browser, self.folder / "evil.html", names, tally, (0, 40))
    self.assertEqual(tally.failures, [])
    self.assertGreater(tally.held, len(names))

  def test_opens_with_the_head_that_matters_most_and_the_last_token(self):
    self.open()
    costs = np.array(self.heads["ablation"])
    layer, head = np.unravel_index(costs.argmax(), costs.shape)
    expected = {"layer": str(layer), "head": str(head), "token": "11"}
    self.assertEqual(self.view(), expected)

  def test_link_brings_back_the_view(self):
    link = "layer=1&head=0&token=7&key=2&temperature=0.5"
    page = self.open(f"#{link}")
    self.assertEqual(self.link(), link)
    self.view()
    self.assertEqual(page.locator("#key-choice").input_value(), "2")
    self.assertEqual(page.locator("#temperature-value").inner_text(), "0.5")
    page.evaluate("location.hash = 'layer=0&head=1&token=3'")
    page.wait_for_function(
      "document.getElementById('summary').textContent.startsWith('token 3 ')"
    )
    self.assertEqual(self.view(), {"layer": "0", "head": "1", "token": "3"})

  def test_link_that_makes_no_sense_is_left_aside(self):
    self.open("#layer=9&head=-1&token=x&key=1.5&temperature=7&constructor=1")
    self.assertEqual(self.view()["token"], "11")
    self.assertEqual(self.trouble, [])

  def test_a_token_is_selected_wherever_it_is_clicked(self):
    page = self.open("#layer=0&head=0&token=11")
    for place, selector in (
      (3, "#tokens button:nth-child(4)"),
      (5, "#ids [data-token='5']"),
      (2, "#attended [data-token='2']"),
      (1, "#row [data-token='1']"),
      (8, "#lens thead [data-token='8']"),
      (4, "#lens tbody tr:first-child [data-token='4']"),
    ):
      page.locator(selector).click()
      self.assertEqual(self.view()["token"], str(place), selector)
      said = page.locator("#step-mix .chosen").first.inner_text()
      self.assertEqual(said, f"“{self.words[place]}”")

  def test_heads_open_from_the_overview_and_from_the_concatenation(self):
    page = self.open("#layer=0&head=0&token=6")
    page.emulate_media(media="screen")
    page.locator("[data-layer='1'][data-head='1']").click()
    self.assertEqual(self.view(), {"layer": "1", "head": "1", "token": "6"})
    page.wait_for_function("""() => {  // scrolled to the head, below the bar
      const top = document.getElementById("step-query").getBoundingClientRect().top;
      const bar = document.querySelector(".bar").getBoundingClientRect().bottom;
      return Math.abs(top - bar) < 2;
    }""")
    page.locator("#concatenated button").first.click()
    self.assertEqual(self.view()["head"], "0")
    page.locator("#layers button").first.click()
    self.assertEqual(self.view()["layer"], "0")

  def test_maps_are_clicked_cell_by_cell(self):
    page = self.open("#layer=0&head=0&token=11")
    weights = page.locator("[data-matrix=weights]")
    box = weights.bounding_box()
    cell = box["width"] / 12
    weights.click(position={"x": 2.5 * cell, "y": 9.5 * cell})
    view = self.view()
    self.assertEqual((view["token"], view["key"]), ("9", "2"))
    self.assertIn(f"“{self.words[2]}” (2)", page.locator("#cell").inner_text())
    weights.click(position={"x": 9.5 * cell, "y": 2.5 * cell})  # what it cannot see
    self.assertNotIn("key", self.view())

  def test_keyboard(self):
    page = self.open("#layer=0&head=0&token=4")
    page.keyboard.press("Tab")
    self.assertEqual(page.evaluate("document.activeElement.className"), "skip")
    page.keyboard.press("Tab")
    for key, place in (
      ("ArrowRight", "5"),
      ("Home", "0"),
      ("ArrowLeft", "0"),
      ("End", "11"),
    ):
      page.keyboard.press(key)
      self.assertEqual(self.view()["token"], place)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    self.assertEqual(self.view()["layer"], "1")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    self.assertEqual(self.view()["head"], "1")
    page.locator("[data-matrix=scores]").focus()
    page.keyboard.press("ArrowUp")
    self.assertEqual(self.view()["token"], "10")
    page.locator("#temperature").focus()
    page.keyboard.press("ArrowRight")
    self.assertEqual(self.view()["temperature"], "1.1")
    page.locator(".head-card").nth(0).focus()
    page.keyboard.press("Enter")
    self.assertEqual(self.view()["head"], "0")
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    self.assertEqual(page.evaluate("document.activeElement.id"), "tour")
    self.assertEqual(self.view()["head"], "0")

  def test_maps_have_the_colours_of_their_numbers(self):
    self.open("#layer=1&head=0&token=3")
    pixels = self.page.locator("[data-layer='1'][data-head='0'] canvas").evaluate(
      "c => [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, 12, 12).data]"
    )
    self.assertEqual(pixels[:2], [12, 12])
    blue_TS = np.array(pixels[2:]).reshape(12, 12, 4)[..., 0]  # less red: more weight
    weights = np.asarray(self.run_.weights)[1, 0, 0]
    order = np.argsort(weights.ravel(), kind="stable")
    self.assertTrue((np.diff(blue_TS.ravel()[order]) <= 0).all())

  def test_fits_a_phone_and_follows_the_screens_theme(self):
    page = self.open()
    page.emulate_media(media="screen")
    for width in (320, 390, 768):
      page.set_viewport_size({"width": width, "height": 700})
      page.locator("body").evaluate("e => e.offsetWidth")
      self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), width)
    colours = []
    for scheme in ("light", "dark"):
      page.emulate_media(color_scheme=scheme)
      pixel = "c => [...c.getContext('2d').getImageData(11, 0, 1, 1).data].slice(0, 3)"
      colours.append(page.locator(".head-card canvas").first.evaluate(pixel))
      background = page.evaluate("getComputedStyle(document.body).backgroundColor")
      self.assertEqual(
        background, {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 30)"}[scheme]
      )
    self.assertGreater(sum(colours[0]), 600)
    self.assertLess(sum(colours[1]), 200)
