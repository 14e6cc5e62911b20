"""Random tokens that repeat: nothing to know beforehand, all of it in the context.

    r a k f r a k f r a k f ...

The period is drawn anew for each sequence, because a fixed one could be read off the
position alone. To predict, a model must find the earlier occurrence of the current
token and look at what followed it: an induction head (Olsson et al., 2022).
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from gpt2_flax.datasets.dataset import require_seed, require_start_token, ToyLanguage
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import WordTokenizer


@dataclasses.dataclass(frozen=True)
class InductionConfig:
  """How many symbols, and how soon they repeat.

  Attributes:
    num_symbols: how many different tokens there are.
    min_period, max_period: the period is uniform between them, both included.
    seed: of the sequences.
  """

  name: ClassVar = "induction"
  num_symbols: int = 32
  min_period: int = 4
  max_period: int = 16
  seed: int = 0

  def __post_init__(self):
    if self.num_symbols < 2:
      raise InputError(f"data.num_symbols is {self.num_symbols}: must be at least 2")
    require_seed(self.seed)
    if not 1 <= self.min_period <= self.max_period:
      raise InputError(
        f"data.min_period is {self.min_period}: must be 1 to data.max_period, which"
        f" is {self.max_period}"
      )

  def make(self, context_length: int) -> "Induction":
    return Induction(self, context_length)


class Induction(ToyLanguage):
  """Sequences of uniform random symbols, repeated with a period of their own."""

  def __init__(self, config: InductionConfig, context_length: int):
    self.context_length = context_length
    self.seed = config.seed
    self.num_symbols = config.num_symbols
    self.periods = np.arange(config.min_period, config.max_period + 1)
    self.tokenizer = WordTokenizer([f"w{i}" for i in range(config.num_symbols)])

  def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
    period = rng.choice(self.periods)
    symbols = rng.integers(self.num_symbols, size=period)
    repeated = symbols[np.arange(length - 1) % period]
    return np.array([self.tokenizer.start_id, *(repeated + 1)], np.int32)

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray:
    """Bayes' rule over the unknown period p, with n symbols seen.

    P(symbols | p) is num_symbols^-min(n, p) where they repeat with period p, else 0.
    Under a period longer than n the next symbol is uniform; under any other it is the
    symbol p positions back.
    """
    require_start_token(tokens, self.tokenizer.start_id)
    symbols = np.asarray(tokens[1:]) - 1
    rows = np.zeros((len(tokens), self.tokenizer.vocab_size))
    repeats = np.ones(len(self.periods), bool)
    for n in range(len(tokens)):
      if n > 0:
        back = n - 1 - self.periods
        same = symbols[np.maximum(back, 0)] == symbols[n - 1]
        repeats &= (back < 0) | same
        repeats &= symbols[n - 1] >= 0  # a start token never returns
      if not repeats.any():
        break  # not of this language: no distribution from here on
      known = np.minimum(n, self.periods)
      log_weights = (known[repeats].min() - known) * np.log(self.num_symbols)
      posterior = np.exp(np.where(repeats, log_weights, -np.inf))
      posterior /= posterior.sum()
      fresh = self.periods > n
      rows[n, 1:] = posterior[fresh].sum() / self.num_symbols
      np.add.at(rows[n], symbols[n - self.periods[~fresh]] + 1, posterior[~fresh])
    return rows

  def process(self) -> dict[str, Any]:
    """See `Dataset`."""
    return {
      "kind": "induction",
      "periods": self.periods.tolist(),
      "num_symbols": self.num_symbols,
    }
