"""Parts cut, places patched, and what only the weights can show."""

import re

from absl.testing import parameterized
import jax
import numpy as np
import pytest

from gpt2_flax import interpret
from tests.interpret.workshop import LENGTH, ToyPage


class SurgeryTest(ToyPage):
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
    odds = (np.exp(logits[-1].astype("f8")) for logits in (whole, cut))
    before, after = (of / of.sum() for of in odds)
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
    at = dict(layers=[1], positions=[2], length=LENGTH, **chosen)
    mask = jax.jit(lambda: interpret.select(self.model, site, **at))()
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

  def test_norm_and_products_add_up(self):
    page = self.go("#layer=1&head=0&token=4")
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
    page = self.go("#layer=0&token=3")
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
