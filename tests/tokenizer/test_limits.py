"""A tokenizer.json may ask for what real ones do, not for endless time or memory."""

import base64
import json
import struct
from unittest import mock

from absl.testing import parameterized
import chex
import tokenizers

from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import BPETokenizer, limits

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def words(**steps) -> dict:
  """A tokenizer of a few words, with some steps of its own."""
  model = tokenizers.models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, "<unk>")
  return json.loads(tokenizers.Tokenizer(model).to_str()) | steps


def split(regex: str) -> dict:
  pattern = {"Regex": regex}
  return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def replace(old: str, content: str) -> dict:
  return {"type": "Replace", "pattern": {"String": old}, "content": content}


def charsmap(*texts: bytes) -> str:
  tree = struct.pack("<II", 4, 0)
  return base64.b64encode(tree + b"\0".join([*texts, b""])).decode()


class LimitsTest(chex.TestCase):
  @parameterized.parameters(GPT2, GPT4, " {2,}", r"[\s\S]", r"\d", "", r"[+*?]{2}|\(?")
  def test_regular_expressions_of_real_tokenizers(self, regex):
    tokenizer = BPETokenizer(words(pre_tokenizer=split(regex)))
    self.assertEqual(set(tokenizer.encode("a  b 'll 123")) - {0, 1, 2}, set())

  @parameterized.parameters(
    *("(a+)+$", "(a|aa)*$", "(?:a{2}){9}b", "a.*a.*a.*b", "a{1,9}a{1,9}a{1,9}"),
    *("a?a?a?a?a?aaaaa", r"(a)\1", r"(?<n>a\g<n>?)", "(?#[)a*a*a*(?#])", "(?x)#[\na*"),
    *("[]a*a*a*]", "(a*|b)(a*|b)(a*|b)", "(?=a*a*a*b)", "(a?)*"),
  )
  def test_regular_expressions_that_may_take_forever(self, regex):
    for step in ("pre_tokenizer", "normalizer", "decoder"):
      inner = {"type": "Sequence", "inner": [split(regex)]}
      with self.assertRaisesRegex(InputError, "could take too long"):
        BPETokenizer(words(**{step: inner}))

  def test_growth_is_multiplied(self):
    thousand = replace("a", "a" * 32)
    two = {"type": "Sequence", "normalizers": [thousand] * 2}
    self.assertLen(BPETokenizer(words(normalizer=two)).encode("a"), 1)
    three = {"type": "Sequence", "normalizers": [thousand] * 3}
    with self.assertRaisesRegex(InputError, "up to 32768 times as long: must be"):
      BPETokenizer(words(normalizer=three))
    shorter = {"type": "Sequence", "normalizers": [replace("aaaa", "bb")] * 40}
    self.assertLen(BPETokenizer(words(normalizer=shorter)).encode("a"), 1)

  @parameterized.named_parameters(
    ("between_letters", replace("", "a" * 1024)),
    ("prepended", {"type": "Prepend", "prepend": "a" * 1024}),
    ("bytes", {"type": "Sequence", "inner": [{"type": "ByteLevel"}] * 11}),
    ("regex", {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "a" * 1024}),
    ("map", {"type": "Precompiled", "precompiled_charsmap": charsmap(b"b" * 1025)}),
  )
  def test_what_grows(self, part):
    with self.assertRaisesRegex(InputError, "times as long"):
      BPETokenizer(words(normalizer=part))

  @parameterized.parameters("vocab", "added_tokens")
  def test_many_tokens(self, where):
    tokenizer = words()
    if where == "vocab":
      tokenizer["model"]["vocab"] = {"<unk>": 2, "a": 0, "b": 1, "c": 3}
    else:
      tokenizer["added_tokens"] = [{"id": i, "content": str(i)} for i in range(4)]
    with (
      mock.patch.object(limits, "MOST_TOKENS", 3),
      self.assertRaisesRegex(InputError, "^4 tokens: must have at most 3"),
    ):
      BPETokenizer(tokenizer)

  def test_many_parts(self):
    parts = {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 256}
    with self.assertRaisesRegex(InputError, "have more than 256 parts"):
      BPETokenizer(words(normalizer=parts))

  def test_long_words(self):
    model = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 10**6, "vocab": {"a": 0}}
    with self.assertRaisesRegex(InputError, "per_word is 1000000: must be at most"):
      BPETokenizer(words(model=model))

  def test_token_ids_are_counted_up_to_the_highest(self):
    vocabulary = words()["model"] | {"vocab": {"a": 0, "<unk>": 7}}
    self.assertEqual(BPETokenizer(words(model=vocabulary)).vocab_size, 8)
    vocabulary = words()["model"] | {"vocab": {"a": 2**32 - 1, "<unk>": 7}}
    with self.assertRaisesRegex(InputError, "token id is 4294967295: must be below"):
      BPETokenizer(words(model=vocabulary))

  def test_texts_are_neither_cut_nor_filled_up(self):
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst"}
    padding = {"strategy": {"Fixed": 1000}, "direction": "Right", "pad_id": 0}
    padding |= {"pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "a"}
    tokenizer = BPETokenizer(
      words(
        truncation=truncation | {"stride": 0},
        padding=padding,
        pre_tokenizer={"type": "WhitespaceSplit"},
      )
    )
    self.assertEqual(tokenizer.encode("a b a"), [0, 1, 0])

  def test_a_panic_of_the_library_is_one_line(self):
    fixed = {"type": "FixedLength", "length": 0}
    tokenizer = BPETokenizer(words(pre_tokenizer=fixed))
    with self.assertRaisesRegex(InputError, "text that has no tokens"):
      tokenizer.encode("ab")
