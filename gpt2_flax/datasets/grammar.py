"""A small English of whole words, written by a probabilistic grammar.

    the cats that the dog near the boy sees sleep . they like themselves .

Subject and verb agree across prepositional phrases and nested relative clauses.
Pronouns agree with the subject of the sentence before, reflexives and possessives
with that of their own sentence. A person can read it, and only a model that looks far
enough back and at the right word can predict it.

Settings make it harder: more words, more classes that agree, deeper clauses, topics.
The oracle is exact and knows nothing of this particular grammar: see `Automaton`.
"""

import bisect
import dataclasses
from typing import Any, ClassVar

import numpy as np

from gpt2_flax.datasets.automaton import Automaton, reachable
from gpt2_flax.datasets.dataset import require_seed, require_start_token, ToyLanguage
from gpt2_flax.datasets.english import English
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import WordTokenizer

STORY = ("story",)


def _title(symbol: tuple) -> str:
  """A nonterminal as text: its name and its features."""
  return " ".join(map(str, symbol))


@dataclasses.dataclass(frozen=True)
class GrammarConfig:
  """Which language; by default the toy's.

  Attributes:
    vocabulary, num_classes, max_depth, num_topics, zipf: see `English`.
    seed: of the random streams that sentences are drawn from.
  """

  name: ClassVar = "grammar"
  vocabulary: int = English.vocabulary
  num_classes: int = English.num_classes
  max_depth: int = English.max_depth
  num_topics: int = English.num_topics
  zipf: float = English.zipf
  seed: int = 0

  def __post_init__(self):
    require_seed(self.seed)
    self.english()  # raises an InputError for settings that are not allowed

  def english(self) -> English:
    """The words and productions of this language."""
    return English(
      vocabulary=self.vocabulary,
      num_classes=self.num_classes,
      max_depth=self.max_depth,
      num_topics=self.num_topics,
      zipf=self.zipf,
    )

  def make(self, context_length: int) -> "Grammar":
    return Grammar(self, context_length)


class Grammar(ToyLanguage):
  """Windows of sentences of the small English above, from a story's beginning."""

  def __init__(self, config: GrammarConfig, context_length: int):
    self.context_length = context_length
    self.seed = config.seed
    self._english = config.english()
    self._automaton = Automaton(self._english, STORY)
    self.tokenizer = WordTokenizer(self._automaton.words)
    self._ids = {word: self.tokenizer.encode(word)[0] for word in self.tokenizer.words}

  def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
    tokens = [self.tokenizer.start_id]
    state = self._automaton.start
    for draw in rng.random(length - 1).tolist():
      word = state.words[bisect.bisect_right(state.cumulative, draw)]
      tokens.append(self._ids[word])
      state = self._automaton.step(state, word)
    return np.array(tokens, np.int32)

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray:
    """See `Dataset`; after a word that cannot come next, all rows are zero."""
    require_start_token(tokens, self.tokenizer.start_id)
    rows = np.zeros((len(tokens), self.tokenizer.vocab_size))
    state = self._automaton.start
    for i in range(len(tokens)):
      if i > 0:
        word = self.tokenizer.token(int(tokens[i]))
        try:
          state = self._automaton.step(state, word)
        except KeyError:
          break
      rows[i, [self._ids[word] for word in state.words]] = state.probabilities
    return rows

  def process(self) -> dict[str, Any]:
    """See `Dataset`: productions by symbol, words as their token ids."""
    productions = {
      _title(symbol): [
        [p, [self._ids[s] if isinstance(s, str) else _title(s) for s in symbols]]
        for p, symbols in becomes
      ]
      for symbol, becomes in reachable(self._english, STORY).items()
    }
    return {"kind": "grammar", "start": _title(STORY), "productions": productions}

  def is_grammatical(self, text: str) -> bool:
    """Whether the grammar can write these words from a story's beginning."""
    try:
      tokens = np.array([self.tokenizer.start_id, *self.tokenizer.encode(text)])
    except InputError:
      return False
    # rows stay zero from the first impossible word on
    return bool(self.next_token_probabilities(tokens)[-1].any())
