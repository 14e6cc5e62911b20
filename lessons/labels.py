"""Random symbols, each with a label: what a head finds when it looks back.

The symbols are uniform and independent, so there is nothing to know about them; the
model reads them and predicts the labels, which depend on symbols before. It never
reads a label.
"""

import abc

import numpy as np

from gpt2_flax.datasets import ToyLanguage
from gpt2_flax.datasets.dataset import Batch
from gpt2_flax.tokenizer import WordTokenizer


class Labels(ToyLanguage):
  """Each of T tokens, the start token first, comes with the label it asks for.

  A window is token, label, token, label, ...: int32 [2 T]. A label of -1 does not
  count. `next_token_probabilities` gives the labels': row i is P(label i | tokens
  0 .. i), all zeros where the label is -1.
  """

  def __init__(self, num_symbols: int, context_length: int, seed: int = 0):
    self.num_symbols, self.context_length, self.seed = num_symbols, context_length, seed
    self.tokenizer = WordTokenizer([f"w{i}" for i in range(num_symbols)])

  def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
    symbols = rng.integers(1, self.num_symbols + 1, size=length - 2)
    tokens = np.append(self.tokenizer.start_id, symbols)
    return np.stack([tokens, self.labels(rng, tokens)], axis=-1, dtype=np.int32).ravel()

  def batch(self, windows: np.ndarray) -> Batch:
    return {
      "inputs": np.maximum(windows[:, 0::2], 0),
      "targets": windows[:, 1::2],
    }

  @abc.abstractmethod
  def labels(self, rng: np.random.Generator, tokens: np.ndarray) -> np.ndarray:
    """int [T]: the label of each token, or -1."""
