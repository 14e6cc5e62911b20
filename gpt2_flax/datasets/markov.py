"""A random Markov chain: the next token depends on the last `order` tokens only."""

import bisect
import dataclasses
import string
from typing import Any, ClassVar

import numpy as np

from gpt2_flax.datasets.dataset import require_seed, require_start_token, ToyLanguage
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import WordTokenizer

MAX_CONTEXTS = 4096


@dataclasses.dataclass(frozen=True)
class MarkovConfig:
  """Which chain.

  Attributes:
    num_symbols: how many different tokens there are, 2 to 26.
    order: how many tokens back the next one depends on.
    concentration: of the Dirichlet prior that each row of the chain is drawn from;
      small is nearly deterministic, large nearly uniform.
    seed: of the chain and of the sequences drawn from it.
  """

  name: ClassVar = "markov"
  num_symbols: int = 8
  order: int = 2
  concentration: float = 0.3
  seed: int = 0

  def __post_init__(self):
    if not 2 <= self.num_symbols <= len(string.ascii_lowercase):
      raise InputError(f"data.num_symbols is {self.num_symbols}: must be 2 to 26")
    if self.order < 1 or self.num_symbols**self.order > MAX_CONTEXTS:
      raise InputError(
        f"data.order is {self.order}: must be at least 1, and num_symbols ** order"
        f" at most {MAX_CONTEXTS}"
      )
    require_seed(self.seed)
    if not self.concentration > 0:
      raise InputError(f"data.concentration is {self.concentration}: must be above 0")

  def make(self, context_length: int) -> "Markov":
    return Markov(self, context_length)


class Markov(ToyLanguage):
  """Sequences of one fixed random chain, started in its stationary distribution.

  Attributes:
    transitions: float64 [S, ..., S, S], `order` context axes (the oldest first), then
      the next symbol: P(next | context).
    stationary: float64 [S, ..., S], the probability of each context in the long run.
  """

  def __init__(self, config: MarkovConfig, context_length: int):
    self.context_length = context_length
    self.seed = config.seed
    self.order = config.order
    size = config.num_symbols
    self.tokenizer = WordTokenizer(string.ascii_lowercase[:size])
    rng = np.random.default_rng((config.seed, len("markov")))
    self.transitions = rng.dirichlet(
      np.full(size, config.concentration), size=(size,) * config.order
    )
    self.transitions = np.maximum(self.transitions, 1e-9)  # so that the chain mixes
    self.transitions /= self.transitions.sum(-1, keepdims=True)
    self.stationary = self._stationary()
    self._rows = [self._rows_after(seen) for seen in range(config.order + 1)]
    self._cumulative = [np.cumsum(rows, axis=-1).tolist() for rows in self._rows]

  def _stationary(self) -> np.ndarray:
    """Solves pi = pi P, sum(pi) = 1 over contexts."""
    size, num_contexts = self.tokenizer.vocab_size - 1, self.transitions[..., 0].size
    step = np.zeros((num_contexts, num_contexts))
    context = np.arange(num_contexts)
    for symbol in range(size):
      after = context * size % num_contexts + symbol  # drop the oldest, append
      step[context, after] = self.transitions.reshape(-1, size)[:, symbol]
    equations = np.vstack([step.T - np.eye(num_contexts), np.ones(num_contexts)])
    right_side = np.append(np.zeros(num_contexts), 1.0)
    pi = np.linalg.lstsq(equations, right_side, rcond=None)[0]
    pi = np.maximum(pi, 0.0)
    return (pi / pi.sum()).reshape(self.transitions.shape[:-1])

  def entropy_rate(self) -> float:
    """Nats a token in the long run: -sum pi(c) sum P(x|c) ln P(x|c).

    Cover & Thomas, "Elements of Information Theory", theorem 4.2.4.
    """
    rows = self.transitions
    return float(-(self.stationary[..., None] * rows * np.log(rows)).sum())

  def _rows_after(self, seen: int) -> np.ndarray:
    """P(next | the first `seen` symbols), [S^seen, S]; contexts are base-S numbers."""
    size = self.transitions.shape[-1]
    if seen == self.order:
      return self.transitions.reshape(-1, size)
    # sums out the symbols not drawn yet
    joint = self.stationary.reshape(size ** (seen + 1), -1).sum(-1).reshape(-1, size)
    return joint / np.maximum(joint.sum(-1, keepdims=True), np.finfo(float).tiny)

  def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
    size = self.transitions.shape[-1]
    context, tokens = 0, [self.tokenizer.start_id]
    for i, draw in enumerate(rng.random(length - 1).tolist()):
      cumulative = self._cumulative[min(i, self.order)][context]
      symbol = bisect.bisect_right(cumulative, draw * cumulative[-1])
      tokens.append(symbol + 1)
      context = (context * size + symbol) % size**self.order
    return np.array(tokens, np.int32)

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray:
    """See `Dataset`; after a start token in the middle, all rows are zero."""
    require_start_token(tokens, self.tokenizer.start_id)
    size = self.transitions.shape[-1]
    rows = np.zeros((len(tokens), size + 1))  # the start token never returns
    context = 0
    for i in range(len(tokens)):
      if i > 0:
        if tokens[i] == self.tokenizer.start_id:
          break
        context = (context * size + int(tokens[i]) - 1) % size**self.order
      rows[i, 1:] = self._rows[min(i, self.order)][context]
    return rows

  def process(self) -> dict[str, Any]:
    """See `Dataset`: P(next | context) by how many symbols were seen."""
    size = self.transitions.shape[-1]
    return {
      "kind": "markov",
      "order": self.order,
      "num_symbols": size,
      "rows": self._rows,
    }
