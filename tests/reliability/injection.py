"""The page of a model whose every token, and whose name, would like to be code.

It is made as explain.py makes it and opened in a real browser, beside the same page
with harmless words: text may differ, nothing else.
"""

from collections.abc import Collection
import contextlib
import pathlib
import random as random_module
import unicodedata
import unittest

import jax
import jax.numpy as jnp
from playwright import sync_api

from gpt2_flax import GPT2, GPT2Config
from gpt2_flax.interpret.page import page_data, render_page
from gpt2_flax.terminal import one_line
from gpt2_flax.tokenizer import BPETokenizer, Tokenizer
from tests.interpret.browser import launch
from tests.reliability.campaign import Tally

DO = "hacked=1"
TOKENS = (
  # elements, and ends of what they could stand in
  f"<script>{DO}</script>",
  f"</script><script>{DO}</script>",
  f"<img src=x onerror={DO}>",
  f"<svg/onload={DO}>",
  f"</title><svg onload={DO}>",
  f"</style><script>{DO}</script>",
  f"<iframe srcdoc='<script>parent.{DO}</script>'>",
  f"<body onpageshow={DO}>",
  f"<details open ontoggle={DO}>",
  f"<video><source onerror={DO}>",
  "<base href=//x.invalid>",
  f"<math><mi xlink:href='javascript:{DO}'>x",
  "<link rel=stylesheet href=//x.invalid>",
  "<meta http-equiv=refresh content='0;//x.invalid'>",
  "<form action=//x.invalid><input>",
  f"<object data=javascript:{DO}>",
  "<embed src=//x.invalid>",
  f"<a href=javascript:{DO}>x",
  "<style>*{display:none}</style>",
  f"<template><script>{DO}</script></template>",
  f"<noscript><p title='</noscript><img src=x onerror={DO}>'>",
  "<plaintext>",
  "<!--",
  "-->",
  "<!--<script>",
  "]]>",
  "<![CDATA[",
  "<?xml?>",
  "</",
  "<",
  ">",
  "</textarea>",
  # attributes, entities, strings of scripts and templates
  f'" onmouseover="{DO}',
  f"' onfocus='{DO}' autofocus='",
  f"` onclick=`{DO}",
  '"',
  "'",
  f'";{DO};//',
  f"';{DO};//",
  f"\\';{DO};//",
  f"\\u003cscript>{DO}",
  f"*/{DO}/*",
  "\\",
  "&#x3c;b&#x3e;",
  "&lt;i&gt;",
  "&amp;",
  "&notin;",
  "&",
  f"${{{DO}}}",
  f"`${{{DO}}}`",
  "{{7*7}}",
  "{% include '/etc/passwd' %}",
  "{{config}}",
  "#{7*7}",
  "<%= 7*7 %>",
  f"javascript:{DO}",
  f"data:text/html,<script>{DO}</script>",
  "__proto__",
  "constructor",
  # what turns, hides or ends text
  "a\u2028b",
  "a\u2029b",
  "\u202edesrever",
  "\u2066x\u2069",
  "\u200b",
  "\ufeff",
  "\xad",
  "a\0b",
  "\x1b[2J",
  "\x08\x7f\x9b",
  "\r\n",
  "\t",
  " ",
  "\ufffe",
  "\U000e0001",
  "\ue000",
  "$\\frac{",
  "%s%n",
  "=cmd()",
  "../../x",
  "\u0301" * 50,
  "w" * 3000,
  "🙂",
  "\u0130",
)
CONTEXT = 64  # tokens on a page
# All tags and attributes of the page, in order; values of attributes are text.
STRUCTURE = """() => [...document.querySelectorAll("*")].map(
  (e) => [e.tagName, ...e.getAttributeNames()].join(" "))"""
WATCH = """
  window.violations = [];
  document.addEventListener(
    "securitypolicyviolation", (e) => violations.push(e.violatedDirective));
"""
EVIL_LINKS = (
  f"<img src=x onerror={DO}>",
  f"layer=<script>{DO}</script>&token='\"&key=__proto__",
  f"token=javascript:{DO}&__proto__=1&constructor=2&toString=3",
  "head=%00&layer=%ff",
  f"tokens=<img>&cut=0.constructor&patch=__proto__.0.<script>{DO}</script>",
  f"tokens=0.1&other=<svg onload={DO}>&seed=javascript:{DO}&step=__proto__",
)


def page(folder: pathlib.Path, random: random_module.Random, full: bool) -> Tally:
  """Each token at a random place of a page, and some in its title."""
  tally, tokens = Tally(), list(TOKENS)
  random.shuffle(tokens)
  try:
    with sync_api.sync_playwright() as playwright, launch(playwright) as browser:
      for start in range(0, len(tokens) if full else 1, CONTEXT):
        names = (tokens + tokens)[start : start + CONTEXT]
        with tally.attempt(f"the page of {names[0]!r}, ..."):
          show(browser, folder / "page.html", names, tally)
    shown = len(tokens) if full else CONTEXT
    tally.measured = f"{shown} tokens shown as text in a browser"
  except unittest.SkipTest as skipped:
    tally.measured = f"no page was opened: {skipped}"
  return tally


def show(
  browser: sync_api.Browser,
  path: pathlib.Path,
  names: list[str],
  tally: Tally,
  clicked: Collection[int] = range(CONTEXT),
) -> None:
  """A model whose tokens have these names, on its page; some of them are clicked."""
  config = GPT2Config(
    len(names), CONTEXT, num_layers=1, num_heads=2, embed_dim=8, mlp_dim=8
  )
  model, ids = GPT2(config), list(range(len(names)))
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
  evil = page_data(model, params, _tokenizer(names), ids, title=names[0])
  harmless = {**evil, "title": "words", "names": {i: f"w{i}" for i in ids}}
  structures = []
  try:
    for data in (harmless, evil):
      path.write_text(render_page(data, config), "utf-8")
      with contextlib.closing(Visit(browser, path)) as visit:
        structures.append(visit.structure)
        if data is evil:
          visit.look(names, tally, clicked)
  except sync_api.Error as error:  # as when a page goes elsewhere
    raise AssertionError(str(error)) from error
  assert structures[0] == structures[1], "the tokens made elements or attributes"


def _tokenizer(names: list[str]) -> Tokenizer:
  """As one from a tokenizer.json has it: token i is names[i]."""
  vocabulary = {name: i for i, name in enumerate(names)}
  model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": names[0]}
  return BPETokenizer(
    {"version": "1.0", "added_tokens": [], "model": model}
    | dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
  )


def _visible(name: str) -> str:
  """A token as the page shall show it: all that cannot be seen as an escape."""
  name = name.replace("\n", "⏎").replace("\t", "⇥")
  name = "␣" + name[1:] if name.startswith(" ") else name
  return "".join(
    f"\\u{ord(c):04x}"
    if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"
    else c
    for c in name
  )


class Visit:
  """A page in a browser, and all that comes of it."""

  def __init__(self, browser: sync_api.Browser, path: pathlib.Path):
    self.tab, self.trouble, self.requests = browser.new_page(), [], []
    self.close = self.tab.close
    self.tab.add_init_script(WATCH)
    self.tab.on("dialog", self.dialog)
    self.tab.on("console", lambda message: self.trouble.append(message.text))
    self.tab.on("pageerror", lambda error: self.trouble.append(str(error)))
    self.tab.on("popup", lambda _: self.trouble.append("a window"))
    self.tab.on("request", lambda request: self.requests.append(request.url))
    self.url = path.as_uri()
    self.tab.goto(self.url)
    self.structure = self.tab.evaluate(STRUCTURE)

  def dialog(self, dialog: sync_api.Dialog) -> None:
    self.trouble.append("a dialog")
    dialog.dismiss()

  def look(self, names: list[str], tally: Tally, clicked: Collection[int]) -> None:
    """Reads every token, clicks at some, and follows links."""
    buttons = self.tab.locator("#tokens button")
    texts = buttons.all_text_contents()
    with tally.attempt(f"title {names[0]!r}"):
      title = self.tab.locator("h1 span").text_content()
      assert title == one_line(names[0]), f"shown as {title!r}"
    for place, name in enumerate(names):
      with tally.attempt(f"token {name!r}"):
        assert texts[place] == _visible(name), f"shown as {texts[place]!r}"
        if place not in clicked:
          continue
        buttons.nth(place).click()
        said = self.tab.locator("#step-mix .chosen").first.text_content()
        assert said == f"“{_visible(name)}”", f"selected, shown as {said!r}"
        self.assert_calm()
    for link in EVIL_LINKS:
      with tally.attempt(f"link {link!r}"):
        self.tab.evaluate("link => { location.hash = link; }", link)
        self.assert_calm()

  def assert_calm(self) -> None:
    found = self.tab.evaluate("[typeof hacked, ...violations]")
    assert found == ["undefined"], f"run, or refused by the policy only: {found}"
    assert not self.trouble, f"the browser said {self.trouble}"
    assert self.requests == [self.url], f"it asked for {self.requests[1:]}"
