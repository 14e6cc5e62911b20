"""The page as a workshop: what is typed, chosen and linked."""

from tests.interpret.workshop import ToyPage


class TypingTest(ToyPage):
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
    self.go("#layer=0&head=0&token=4&key=1")
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

  def test_names_and_values_under_the_pointer(self):
    page = self.go("#layer=0&head=1&token=5")
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
