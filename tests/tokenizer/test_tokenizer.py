"""Text comes back from its tokens, and a tokenizer from its file."""

import json
import pathlib
import tempfile

from absl.testing import parameterized
import chex
import hypothesis
from hypothesis import strategies as st
import tokenizers

from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import (
  BPETokenizer,
  ByteTokenizer,
  CharTokenizer,
  read_tokenizer,
  tokenizer_json,
  WordTokenizer,
)

WORDS = ("dog", "cat", "naïve", "<s>x", ".")
CHARACTERS = 'hello\r\n\t wörld 😀\u2028"\\'
TOKENIZERS = (
  ("word", WordTokenizer(WORDS), "cat . naïve cat"),
  ("char", CharTokenizer(CHARACTERS), "dörr\r\n\u2028😀\\"),
  ("byte", ByteTokenizer(), "any ☃ text\r\n"),
  ("bpe", BPETokenizer.train(["to be or not to be"], 270), "be ☃ to<s>\r\n"),
)

fixed = hypothesis.settings(derandomize=True, deadline=None)


class RoundTripTest(chex.TestCase):
  @fixed
  @hypothesis.given(st.text(st.characters(codec="utf-8")))
  def test_bytes_write_any_text(self, text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    self.assertTrue(all(0 <= i < tokenizer.vocab_size for i in ids))
    self.assertEqual(bytes(ids), text.encode("utf-8"))
    self.assertEqual(tokenizer.decode(ids), text)

  @fixed
  @hypothesis.given(st.data(), st.text(st.characters(codec="utf-8"), min_size=1))
  def test_characters_write_any_text_of_theirs(self, data, alphabet):
    tokenizer = CharTokenizer(alphabet)
    self.assertEqual(tokenizer.vocab_size, len(set(alphabet)))
    text = data.draw(st.text(st.sampled_from(alphabet)))
    ids = tokenizer.encode(text)
    self.assertTrue(all(0 <= i < tokenizer.vocab_size for i in ids))
    self.assertEqual(tokenizer.decode(ids), text)

  @fixed
  @hypothesis.given(st.lists(st.sampled_from(WORDS)))
  def test_words_write_any_text_of_theirs(self, words):
    tokenizer = WordTokenizer(WORDS)
    ids = tokenizer.encode(" ".join(words))
    self.assertEqual(ids, [1 + WORDS.index(word) for word in words])
    self.assertEqual(tokenizer.decode(ids), " ".join(words))

  def test_words_may_be_any_space_apart(self):
    self.assertEqual(WordTokenizer(WORDS).encode("  dog\n cat\t."), [1, 2, 5])

  def test_characters_are_in_code_point_order(self):
    self.assertEqual(CharTokenizer("banana\n").characters, "\nabn")
    self.assertEqual(CharTokenizer("banana\n").encode("nab"), [3, 1, 2])

  def test_part_of_a_character_is_shown_as_missing_and_named_by_its_number(self):
    ids = ByteTokenizer().encode("é")
    self.assertEqual(ByteTokenizer().decode(ids[:1]), "\N{REPLACEMENT CHARACTER}")
    self.assertEqual(
      [ByteTokenizer().token(i) for i in (127, *ids)], ["\x7f", "0xc3", "0xa9"]
    )


class BytePairTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = BPETokenizer.train(["the cats and the dogs, the end. "] * 9, 300)

  @fixed
  @hypothesis.given(st.text(st.characters(codec="utf-8")))
  @hypothesis.example("<|endoftext|> the cats<|endoftext|>")
  @hypothesis.example("  two  spaces \r\n\x00\u2028 ")
  def test_write_any_text(self, text):
    ids = self.tokenizer.encode(text)
    self.assertTrue(all(0 <= i < self.tokenizer.vocab_size for i in ids))
    self.assertEqual(self.tokenizer.decode(ids), text)

  def test_frequent_pairs_are_one_token(self):
    text = "the cats and the dogs"
    self.assertLess(len(self.tokenizer.encode(text)), len(text) / 3)
    self.assertEqual(len(self.tokenizer.encode("\x07\x08")), 2)

  def test_a_text_may_start_after_the_end_of_another(self):
    end = self.tokenizer.end_of_text_id
    self.assertEqual(self.tokenizer.token(end), "<|endoftext|>")
    self.assertEqual(self.tokenizer.start(""), [end])
    self.assertEqual(self.tokenizer.start("the"), self.tokenizer.encode("the"))

  def test_a_prompt_of_no_token_is_refused(self):
    for tokenizer in (CharTokenizer("ab"), ByteTokenizer()):
      with self.assertRaisesRegex(
        InputError, "the prompt is empty: must have at least"
      ):
        tokenizer.start("")
    self.assertEqual(CharTokenizer("ab").start("b"), [1])


def with_template(single: str, start_id: int = 2) -> BPETokenizer:
  """Of two words, and what a file puts around every text."""
  model = tokenizers.models.WordLevel({"a": 0, "b": 1, "[CLS]": 2}, "a")
  theirs = tokenizers.Tokenizer(model)
  theirs.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  theirs.post_processor = tokenizers.processors.TemplateProcessing(
    single=single, special_tokens=[("[CLS]", start_id)]
  )
  return BPETokenizer(json.loads(theirs.to_str()))


def of_words(vocab: dict[str, int]) -> dict:
  """A tokenizer.json that knows them, and no others; <s> it finds in any text."""
  theirs = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab))
  theirs.normalizer = tokenizers.normalizers.Lowercase()
  theirs.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  theirs.add_special_tokens(["<s>"])
  state = json.loads(theirs.to_str())
  state["model"]["vocab"] = vocab
  return state


class StartTokenTest(chex.TestCase):
  def test_words_have_one_that_text_cannot_write(self):
    tokenizer = WordTokenizer(WORDS)
    self.assertEqual(tokenizer.start_id, 0)
    self.assertEqual(tokenizer.vocab_size, 1 + len(WORDS))
    self.assertNotIn(0, tokenizer.encode(" ".join(WORDS)))
    self.assertEqual(tokenizer.decode([0, 2, 0, 1]), "cat dog")
    self.assertEqual([tokenizer.token(i) for i in (0, 1, 5)], ["<s>", "dog", "."])
    with self.assertRaises(InputError):
      tokenizer.encode("<s>")

  def test_characters_and_bytes_have_none(self):
    for tokenizer in (CharTokenizer("ab"), ByteTokenizer()):
      self.assertIsNone(tokenizer.start_id)
    self.assertEqual(CharTokenizer("ab").token(0), "a")
    self.assertEqual(ByteTokenizer().token(65), "A")

  def test_a_file_may_put_one_before_every_text(self):
    tokenizer = with_template("[CLS] $A")
    self.assertEqual(tokenizer.start_id, 2)
    self.assertEqual(tokenizer.encode("b a"), [1, 0])
    self.assertEqual(tokenizer.start("b a"), [2, 1, 0])
    self.assertEqual(tokenizer.start(""), [2])
    self.assertEqual(tokenizer.decode([2, 1, 0]), "b a")
    self.assertEqual(tokenizer.token(2), "<s>")

  def test_of_two_that_a_file_puts_around_a_text_neither_starts_it(self):
    tokenizer = with_template("[CLS] $A [CLS]")
    self.assertIsNone(tokenizer.start_id)
    self.assertEqual(tokenizer.start("b a"), [1, 0])

  def test_one_beyond_the_vocabulary_counts(self):
    tokenizer = with_template("[CLS] $A", start_id=7)
    self.assertEqual((tokenizer.start_id, tokenizer.vocab_size), (7, 8))


class ErrorsTest(chex.TestCase):
  def test_unknown_word_is_named_with_the_nearest(self):
    with self.assertRaisesRegex(InputError, "word 'dogs': did you mean 'dog'"):
      WordTokenizer(WORDS).encode("cat dogs")
    with self.assertRaisesRegex(InputError, "word 'zzzzz': allowed: .*cat, dog"):
      WordTokenizer(WORDS).encode("zzzzz")

  def test_the_librarys_too(self):
    tokenizer = BPETokenizer(of_words({"a": 0, "b": 1, "<s>": 2}))
    self.assertEqual(tokenizer.encode("b <s>a"), [1, 2, 0])
    with self.assertRaisesRegex(InputError, "unknown word 'c': allowed: <s>, a, b$"):
      tokenizer.encode("b <s>a c b d")

  def test_two_words_of_one_id(self):
    with self.assertRaisesRegex(InputError, "'b' and 'c' have the id 1: must be one"):
      BPETokenizer(of_words({"a": 0, "c": 1, "b": 1, "<s>": 2}))

  def test_unknown_character_is_named(self):
    with self.assertRaisesRegex(InputError, "character 'é' is not among the 2"):
      CharTokenizer("ab").encode("abéa")

  def test_half_of_a_surrogate_pair_is_no_text(self):
    with self.assertRaisesRegex(InputError, "text that is not Unicode"):
      ByteTokenizer().encode("a\ud800")

  def test_word_given_twice(self):
    with self.assertRaisesRegex(InputError, "words: each .* once"):
      WordTokenizer(("a", "b", "a"))

  @parameterized.parameters("a b", " a", "a\n", "", "\t")
  def test_word_that_no_text_can_hold(self, word):
    with self.assertRaisesRegex(InputError, "must have letters and no white space"):
      WordTokenizer(("a", word))


class FileTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / "tokenizer.json"

  @parameterized.named_parameters(*TOKENIZERS)
  def test_comes_back_as_it_was(self, tokenizer, text):
    self.path.write_text(tokenizer_json(tokenizer), "utf-8")
    loaded = read_tokenizer(self.path)
    self.assertIs(type(loaded), type(tokenizer))
    self.assertEqual(loaded.vocab_size, tokenizer.vocab_size)
    self.assertEqual(loaded.start_id, tokenizer.start_id)
    self.assertEqual(loaded.encode(text), tokenizer.encode(text))
    self.assertEqual(loaded.decode(tokenizer.encode(text)), text)

  @parameterized.parameters(
    ({"kind": "word", "words": ["a", 1]}, "words: each must be a text"),
    ({"kind": "char", "characters": ["a", "b"]}, "characters: must be a text"),
    ({"kind": "byte", "size": 256}, "takes no arguments"),
    ({"kind": "bpe", "tokenizer": "gpt2"}, "must be a JSON object"),
    ({"kind": ["byte"]}, "unknown kind"),
    ({"kind": "char"}, "characters"),
  )
  def test_of_what_is_none(self, state, message):
    self.path.write_text(json.dumps(state))
    with self.assertRaisesRegex(InputError, f"is no tokenizer: .*{message}"):
      read_tokenizer(self.path)

  def test_of_an_unknown_kind(self):
    self.path.write_text('{"kind": "bytes"}', "utf-8")
    with self.assertRaisesRegex(InputError, "'bytes': did you mean 'byte'") as caught:
      read_tokenizer(self.path)
    self.assertIn(str(self.path), str(caught.exception))
