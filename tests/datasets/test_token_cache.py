"""Token caches: the same tokens as in one piece, found again, never half there."""

import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex
import numpy as np

from gpt2_flax.datasets import token_cache
from gpt2_flax.errors import InputError, RunError
from gpt2_flax.files import text
from gpt2_flax.files.cache import cache_folder
from gpt2_flax.tokenizer import BPETokenizer, tokenizer_json

TEXT = "".join(
  f"line {i}: naïve café №{i % 7}\n\n  indented\t{i}\r\n" for i in range(90)
)


class TokenCacheTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(
      mock.patch.dict(os.environ, XDG_CACHE_HOME=str(self.folder / "cache"))
    )
    self.file = self.folder / "text.txt"
    self.file.write_bytes(TEXT.encode())

  def caches(self) -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir())

  @parameterized.product(
    tokenizer=("char", "byte", "bpe"), piece_bytes=(7, 64, 1 << 20)
  )
  def test_pieces_give_the_tokens_of_the_whole(self, tokenizer, piece_bytes):
    with mock.patch.object(text, "BLOCK_BYTES", piece_bytes):
      tokens, made = token_cache.tokenize([self.file], tokenizer, 300)
    self.assertEqual(tokens.dtype, np.uint16)
    self.assertEqual(tokens.tolist(), made.encode(TEXT))
    self.assertEqual(made.decode(tokens.tolist()), TEXT)

  def test_made_once_and_anew_when_the_text_or_the_cut_changes(self):
    first, _ = token_cache.tokenize([self.file], "char", 300)
    with mock.patch.object(token_cache, "_write", side_effect=AssertionError):
      again, _ = token_cache.tokenize([self.file], "char", 999)  # not for chars
    chex.assert_trees_all_equal(np.array(first), np.array(again))
    self.assertLen(self.caches(), 1)
    token_cache.tokenize([self.file], "bpe", 300)
    token_cache.tokenize([self.file], "bpe", 301)
    self.assertLen(self.caches(), 3)
    self.file.write_bytes(TEXT.encode() + b"!")
    tokens, _ = token_cache.tokenize([self.file], "char", 300)
    self.assertEqual(len(tokens), len(first) + 1)
    self.assertLen(self.caches(), 4)

  def test_a_tokenizer_that_is_there_is_used(self):
    trained = BPETokenizer.train([TEXT], 280)
    (self.folder / "tokenizer.json").write_text(tokenizer_json(trained))
    tokens, used = token_cache.tokenize([self.file], str(self.folder), 999)
    self.assertEqual(tokenizer_json(used), tokenizer_json(trained))
    self.assertEqual(tokens.tolist(), trained.encode(TEXT))
    trained.save(str(self.folder / "tokenizer.json"))  # as Hugging Face writes it
    tokens, used = token_cache.tokenize([self.file], str(self.folder), 999)
    self.assertEqual(tokenizer_json(used), tokenizer_json(trained))

  def test_many_tokens_take_four_bytes(self):
    with mock.patch.object(BPETokenizer, "vocab_size", 70_000, create=True):
      self.assertEqual(token_cache.token_dtype(BPETokenizer), np.uint32)

  def test_a_failure_leaves_nothing(self):
    with (
      mock.patch.object(os, "fsync", side_effect=OSError(28, "No space left")),
      self.assertRaisesRegex(RunError, "cannot be written: No space left"),
    ):
      token_cache.tokenize([self.file], "byte", 300)
    self.assertEqual(self.caches(), [])

  def test_a_wrong_byte_is_found_wherever_it_is(self):
    content = TEXT.encode()
    self.file.write_bytes(content[:-3] + b"\xff" + content[-3:])
    with (
      mock.patch.object(text, "BLOCK_BYTES", 10),
      self.assertRaisesRegex(InputError, rf"byte {len(content) - 3} is 0xff"),
    ):
      token_cache.tokenize([self.file], "byte", 300)
    self.assertEqual(self.caches(), [])

  def test_a_tokenizer_that_is_given(self):
    trained = BPETokenizer.train([TEXT], 280)
    for _ in range(2):  # made, and found
      tokens = token_cache.encode([self.file], trained, "--text")
      self.assertEqual(tokens.tolist(), trained.encode(TEXT))
    self.assertLen(self.caches(), 1)
    self.file.write_bytes(b"caf\xe9")
    with self.assertRaisesRegex(InputError, "^--text: .*text.txt is not UTF-8: byte 3"):
      token_cache.encode([self.file], trained, "--text")

  def test_a_tokenizer_that_begins_every_text_in_its_own_way(self):
    """Pieces would get a space each, as the text has it at its beginning only."""
    state = BPETokenizer.train([TEXT], 280).state()
    state["tokenizer"]["pre_tokenizer"]["add_prefix_space"] = True
    tokenizer = BPETokenizer(**state)
    with mock.patch.object(text, "BLOCK_BYTES", 64):
      tokens = token_cache.encode([self.file], tokenizer, "--text")
    self.assertEqual(tokens.tolist(), tokenizer.encode(TEXT))
    self.assertEqual(tokenizer.decode(tokens.tolist()), f" {TEXT}")

  @parameterized.parameters(("byte", None), ("char", None), ("bpe", 0))
  def test_between_documents_is_the_end_of_text(self, kind, border):
    other = self.folder / "other.txt"
    other.write_text("An other\none")
    files = [self.file, other, self.file]
    tokens, tokenizer = token_cache.tokenize(files, kind, 300)
    self.assertEqual(tokenizer.end_of_text_id, border)
    between = [] if border is None else [border]
    one, two = tokenizer.encode(TEXT), tokenizer.encode("An other\none")
    self.assertEqual(tokens.tolist(), [*one, *between, *two, *between, *one])
    again = token_cache.encode(files, tokenizer, "--text")
    self.assertEqual(again.tolist(), tokens.tolist())
