"""Where a text ends does not depend on how it is cut into tokens or pieces."""

import itertools

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import BPETokenizer, ByteTokenizer, NumberTokenizer
from gpt2_flax.writing.growing_text import GrowingText
from gpt2_flax.writing.stop_strings import StopStrings


def cut(text, stops):
  """Character by character: before the longest stop string that a text ends with."""
  for end in range(len(text) + 1):
    fitting = [stop for stop in stops if text[:end].endswith(stop)]
    if fitting:
      return text[: end - max(map(len, fitting))]
  return None


def split(text, rng):
  borders = sorted(rng.integers(0, len(text) + 1, rng.integers(0, 6)).tolist())
  ends = [0, *borders, len(text)]
  return [text[a:b] for a, b in itertools.pairwise(ends)]


class StopStringsTest(chex.TestCase):
  def test_ends_where_reading_character_by_character_would(self):
    """Texts of two letters, full of beginnings of stop strings, in random pieces."""
    rng = np.random.default_rng(0)
    tokenizer, ended = ByteTokenizer(), 0
    for _ in range(600):
      text = "".join(rng.choice(list("ab"), rng.integers(1, 14)))
      stops = [
        "".join(rng.choice(list("ab"), rng.integers(1, 6)))
        for _ in range(rng.integers(1, 4))
      ]
      growing = GrowingText(tokenizer, tokenizer.encode("aab"), StopStrings(stops))
      expected, shown = cut(text, stops), ""
      for piece in split(text, rng):
        shown += growing.add(tokenizer.encode(piece))
        self.assertStartsWith(text if expected is None else expected, shown)
      shown += growing.finish()
      self.assertEqual(shown, text if expected is None else expected)
      self.assertEqual(growing.text, shown)
      reason = "length" if expected is None else "stop"
      self.assertEqual(growing.finish_reason, reason)
      ended += expected is not None
    self.assertBetween(ended, 200, 580)

  def test_holds_back_no_more_than_it_must(self):
    stops = StopStrings(["abcab", "x"])
    for text, number in (("", 0), ("zabz", 4), ("zab", 1), ("abca", 0), ("zaba", 3)):
      self.assertEqual(stops.first_open(text), number, text)

  def test_a_long_stop_string(self):
    stop = "ab" * 5000 + "c"
    stops = StopStrings([stop])
    self.assertEqual(stops.find("ab" + stop), 2)
    self.assertEqual(stops.first_open("ab" + stop[:-1]), 2)

  def test_where_tokens_are_words_a_stop_string_is_whole_words(self):
    stops = StopStrings(["4", "5  6"], separator=" ")
    for text, at in ((" 14 41", None), (" 14 4 1", 3), ("4", 0), (" 1 5 6", 2)):
      self.assertEqual(stops.find(text), at, text)
    for text, number in ((" 1 5", 2), (" 1 15", 5), (" 1", 2), ("5", 0)):
      self.assertEqual(stops.first_open(text), number, text)

  @parameterized.parameters(("", ""), ("", " "), (" ", " "))
  def test_refuses_nothing(self, string, separator):
    with self.assertRaisesRegex(InputError, f"stop is '{string}': must have at least"):
      StopStrings(["a", string], separator)


class GrowingTextTest(chex.TestCase):
  def grow(self, tokenizer, prompt, pieces, stop=(), stop_ids=()):
    stops = StopStrings(stop, tokenizer.separator)
    growing = GrowingText(tokenizer, prompt, stops, stop_ids)
    return growing, [growing.add(piece) for piece in pieces]

  def test_no_part_of_a_character_is_shown(self):
    tokens = list("Bär 日本".encode())
    pieces = [tokens[at : at + 2] for at in range(0, len(tokens), 2)]
    growing, shown = self.grow(ByteTokenizer(), [65], pieces)
    self.assertEqual("".join(shown), "Bär 日本")
    self.assertEqual(shown[0], "B")  # not more is held back than must be
    self.assertNotIn("\ufffd", "".join(shown))
    self.assertEqual(growing.finish(), "")

  def test_what_never_becomes_a_character_is_shown_in_the_end(self):
    growing, shown = self.grow(ByteTokenizer(), [65], [[66, 0xE6], [0x97]])
    self.assertEqual(shown, ["B", ""])
    self.assertEqual(growing.finish(), "\ufffd")

  def test_words_are_joined_as_in_the_whole_text(self):
    tokenizer = NumberTokenizer(20)
    growing, shown = self.grow(tokenizer, [3, 4], [[5], [6, 7], [8, 9]], stop=["7 8"])
    self.assertEqual(shown, [" 5", " 6", ""])
    self.assertEqual(growing.finish_reason, "stop")

  def test_ends_before_a_stop_token_and_takes_no_more(self):
    growing, shown = self.grow(
      ByteTokenizer(), [65], [[66, 67], [68, 0], [69]], stop=["Dx"], stop_ids=[1, 0]
    )
    self.assertEqual(shown, ["BC", "D", ""])
    self.assertEqual((growing.finish(), growing.finish_reason), ("", "stop"))

  def test_a_stop_string_across_tokens_of_several_letters(self):
    tokenizer = BPETokenizer.train(["the end of the end"] * 5, 275)
    tokens = tokenizer.encode("the end of the end")
    self.assertLess(len(tokens), 12)
    for stop in ("nd of t", "f t", "the end of the end", "d"):
      growing, shown = self.grow(
        tokenizer, tokenizer.encode("e"), [[t] for t in tokens], stop=[stop]
      )
      self.assertEqual("".join(shown), "the end of the end".partition(stop)[0])
      self.assertEqual(growing.finish_reason, "stop")
