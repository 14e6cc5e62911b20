"""What the page draws and writes."""

import numpy as np

from tests.close import assert_close
from tests.interpret.workshop import LENGTH, ToyPage


class WritingTest(ToyPage):
  def test_writes_the_likeliest_where_only_one_is_left(self):
    self.go("#top_k=1")
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
    self.open(fresh=True)
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
