"""Dyck brackets: every bracket is closed by its own kind, the last opened one first.

    python train.py --config=examples/brackets.py
    python sample.py --workdir=runs/brackets --import=examples.brackets --prompt="( ["

The language that asks for a stack (Chomsky & Schützenberger, 1963), to a bounded depth,
as in "Self-Attention Networks Can Process Bounded Hierarchical Languages" (Yao et al.,
2021).
"""

import dataclasses
from typing import ClassVar

from ml_collections import ConfigDict
import numpy as np

from gpt2_flax.datasets import CONFIGS, ToyLanguage
from gpt2_flax.datasets.dataset import require_seed, require_start_token
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import WordTokenizer
from gpt2_flax.training import default_config

PAIRS = ("()", "[]", "{}", "<>")


@dataclasses.dataclass(frozen=True)
class BracketsConfig:
  """Which brackets.

  Attributes:
    num_kinds: how many kinds there are, 1 to 4.
    max_depth: how many may be open at a time.
    open_probability: that another is opened, where one may be opened or closed.
    seed: of the sequences.
  """

  name: ClassVar = "brackets"
  num_kinds: int = 3
  max_depth: int = 6
  open_probability: float = 0.5
  seed: int = 0

  def __post_init__(self):
    if not 1 <= self.num_kinds <= len(PAIRS):
      raise InputError(f"data.num_kinds is {self.num_kinds}: must be 1 to {len(PAIRS)}")
    if self.max_depth < 1:
      raise InputError(f"data.max_depth is {self.max_depth}: must be at least 1")
    if not 0 < self.open_probability < 1:
      raise InputError(
        f"data.open_probability is {self.open_probability}: must be between 0 and 1"
      )
    require_seed(self.seed)

  def make(self, context_length: int) -> "Brackets":
    return Brackets(self, context_length)


class Brackets(ToyLanguage):
  """Sequences that go on for ever: where all is closed, the next is opened."""

  def __init__(self, config: BracketsConfig, context_length: int):
    self.context_length, self.seed = context_length, config.seed
    self._config = config
    pairs = PAIRS[: config.num_kinds]
    self.tokenizer = WordTokenizer([pair[0] for pair in pairs] + [p[1] for p in pairs])

  def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
    tokens, stack = [self.tokenizer.start_id], []
    while len(tokens) < length:
      row = self._row(stack)
      tokens.append(int(rng.choice(len(row), p=row)))
      self._read(tokens[-1], stack)
    return np.array(tokens, np.int32)

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray:
    """See `Dataset`; after a bracket that closes none, all rows are zero."""
    require_start_token(tokens, self.tokenizer.start_id)
    rows, stack = np.zeros((len(tokens), self.tokenizer.vocab_size)), []
    for i, token in enumerate(tokens):
      if i > 0 and not self._read(int(token), stack):
        break
      rows[i] = self._row(stack)
    return rows

  def _row(self, stack: list[int]) -> np.ndarray:
    """P(next | the kinds that are open, the last one last)."""
    config = self._config
    opens = config.open_probability
    if not stack or len(stack) == config.max_depth:
      opens = float(not stack)
    row = np.zeros(self.tokenizer.vocab_size)
    row[1 : 1 + config.num_kinds] = opens / config.num_kinds
    if stack:
      row[1 + config.num_kinds + stack[-1]] = 1 - opens
    return row

  def _read(self, token: int, stack: list[int]) -> bool:
    """Opens or closes; False where the token is not possible here."""
    if self._row(stack)[token] == 0:
      return False
    if token <= self._config.num_kinds:
      stack.append(token - 1)
    else:
      stack.pop()
    return True


CONFIGS.add("brackets", BracketsConfig)


def get_config() -> ConfigDict:
  """Changes to the default."""
  config = default_config.get_config()
  with config.unlocked():
    config.data = ConfigDict()
    config.data.name = "brackets"
    config.data.num_kinds = 3  # of brackets, 1 to 4
    config.data.max_depth = 6  # of brackets open at a time
    config.data.open_probability = 0.5  # where one may be opened or closed
    config.data.seed = 0  # of the sequences drawn
  return config
