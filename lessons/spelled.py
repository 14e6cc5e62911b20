"""The small English as text, cut into tokens in any way: its oracle stays exact.

A line is a start token, a newline, and then the first words of a story, each with a
space before it. What is known of the next token follows from what is known of the next
word, since a tokenizer spells a word always in the same way.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import ClassVar

import numpy as np

from gpt2_flax.datasets import ToyLanguage
from gpt2_flax.datasets.automaton import Automaton, State
from gpt2_flax.datasets.dataset import require_start_token
from gpt2_flax.datasets.english import English
from gpt2_flax.datasets.grammar import GrammarConfig, STORY
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import (
  BPETokenizer,
  ByteTokenizer,
  CharTokenizer,
  Tokenizer,
  WordTokenizer,
)

START = "\n"
WORDS = GrammarConfig().make(1).tokenizer.words


def line(rng: np.random.Generator, num_words: int) -> str:
  """The first words of a story, as text: " the cats sleep . they"."""
  grammar = GrammarConfig().make(num_words)
  return " " + grammar.tokenizer.decode(grammar.sample(rng, 1 + num_words).tolist())


@functools.cache
def pairs() -> Tokenizer:
  """Bytes, and the 64 most frequent pairs of a long sample."""
  return BPETokenizer.train([line(np.random.default_rng(0), 20_000)], 257 + 64)


CUTS: dict[str, Callable[[], Tokenizer]] = {
  "characters": lambda: CharTokenizer(START + " " + "".join(WORDS)),
  "bytes": ByteTokenizer,
  "byte pairs": pairs,
  "words": lambda: WordTokenizer(WORDS),
}


@dataclasses.dataclass(frozen=True)
class SpelledConfig:
  """Which words, and how they are cut.

  Attributes:
    cut: one of CUTS.
    num_words: of a line.
    seed: of the lines.
  """

  name: ClassVar = "spelled"
  cut: str = "characters"
  num_words: int = 12
  seed: int = 0

  def make(self, context_length: int) -> "Spelled":
    return Spelled(self, context_length)


class Spelled(ToyLanguage):
  """Lines of the small English, spelled in tokens; -1 after a line's end.

  Attributes:
    spellings: word -> its tokens.
    firsts: the tokens that words begin with.
  """

  def __init__(self, config: SpelledConfig, context_length: int):
    self.context_length, self.seed = context_length, config.seed
    self.num_words = config.num_words
    self.tokenizer = CUTS[config.cut]()
    whole = self.tokenizer.start_id is not None  # words, which need no space
    [self.start_id] = [0] if whole else self.tokenizer.encode(START)
    self.spellings = {
      word: tuple(self.tokenizer.encode(word if whole else f" {word}"))
      for word in WORDS
    }
    self.firsts = {spelling[0] for spelling in self.spellings.values()}
    inner = {t for spelling in self.spellings.values() for t in spelling[1:]}
    if self.firsts & inner:
      raise InputError(f"cut is {config.cut!r}: must show where a word begins")
    self._word = {spelling: word for word, spelling in self.spellings.items()}
    self._grammar = GrammarConfig().make(config.num_words)
    self._automaton = Automaton(English(), STORY)
    self._rows: dict[tuple, np.ndarray] = {}

  def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
    tokens = [self.start_id]
    for word in self._grammar.sample(rng, 1 + self.num_words)[1:].tolist():
      tokens.extend(self.spellings[self._grammar.tokenizer.token(word)])
    line = np.full(length, -1, np.int32)
    line[: len(tokens)] = tokens[:length]
    return line

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray:
    """See `Dataset`; after a token that cannot come next, all rows are zero."""
    require_start_token(tokens, self.start_id)
    rows = np.zeros((len(tokens), self.tokenizer.vocab_size))
    state, begun = self._automaton.start, ()
    for i, token in enumerate(tokens.tolist()):
      if i > 0 and rows[i - 1, token] == 0:
        break
      if i > 0 and token not in self.firsts:
        begun += (token,)
      elif i > 0:
        if begun:
          state = self._automaton.step(state, self._word[begun])
        begun = (token,)
      rows[i] = self._row(state, begun)
    return rows

  def _row(self, state: State, begun: tuple[int, ...]) -> np.ndarray:
    """The next token's distribution [V] after some tokens of a word.

    The words that begin so share what is left of the probability. One that goes on
    gives its part to its next token. One that is whole gives its part to the tokens
    that begin the word after it.
    """
    if (state, begun) in self._rows:
      return self._rows[state, begun]
    row = np.zeros(self.tokenizer.vocab_size)
    for word, probability in zip(state.words, state.probabilities, strict=True):
      spelling = self.spellings[word]
      if spelling == begun:
        row += probability * self._row(self._automaton.step(state, word), ())
      elif spelling[: len(begun)] == begun:
        row[spelling[len(begun)]] += probability
    self._rows[state, begun] = row / row.sum()
    return self._rows[state, begun]


def line_bytes(language: Spelled, window: np.ndarray) -> int:
  """How many bytes a line has as text, a space before each word."""
  tokens = [t for t in window.tolist() if t >= 0]
  text = language.tokenizer.decode(tokens).strip("\n ")
  return len(f" {text}".encode())
