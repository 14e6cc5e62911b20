"""Text to token ids and back. One small interface, one class a kind of token.

tokenizer.py  the interface
plain.py      words, characters, bytes, bare numbers
bpe.py        byte pairs, as in GPT-2
hub_files.py  what Hugging Face's layout has besides
stored.py     as a file, and from one
limits.py     which files of others are taken
"""

from gpt2_flax.tokenizer.bpe import BPETokenizer
from gpt2_flax.tokenizer.plain import (
  ByteTokenizer,
  CharTokenizer,
  NumberTokenizer,
  WordTokenizer,
)
from gpt2_flax.tokenizer.stored import (
  KINDS,
  read_tokenizer,
  same_tokens,
  tokenizer_file,
  tokenizer_json,
)
from gpt2_flax.tokenizer.tokenizer import Tokenizer

__all__ = [
  "KINDS",
  "BPETokenizer",
  "ByteTokenizer",
  "CharTokenizer",
  "NumberTokenizer",
  "Tokenizer",
  "WordTokenizer",
  "read_tokenizer",
  "same_tokens",
  "tokenizer_file",
  "tokenizer_json",
]
