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
    with mock.patch.object(token_cache, "_build", side_effect=AssertionError):
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
      self.assertEqual(token_cache._dtype(BPETokenizer), np.uint32)

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
