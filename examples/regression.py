"""Linear regression in the context: "x y x y ..." of a line that each sequence draws.

    python train.py --config=examples/regression.py
    python sample.py --workdir=runs/regression --import=examples.regression \
      --prompt="x1 y3 x2 y5 x3" --num_tokens=1 --temperature=0

y is a x + b, and one more or less by chance. Slope and intercept are drawn from small
grids, so that the best possible prediction, Bayes' posterior over all lines, is known
exactly: "What Can Transformers Learn In-Context?" (Garg et al., 2022), in tokens.
"""

import dataclasses
import itertools
from typing import ClassVar

from ml_collections import ConfigDict
import numpy as np

from gpt2_flax.datasets import CONFIGS, ToyLanguage
from gpt2_flax.datasets.dataset import require_seed, require_start_token
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import WordTokenizer
from gpt2_flax.training import default_config


@dataclasses.dataclass(frozen=True)
class RegressionConfig:
  """Which lines.

  Attributes:
    max_x: x is uniform from -max_x to max_x.
    max_slope, max_intercept: likewise.
    noise: the probability that y is one too large, and that it is one too small.
    seed: of the sequences.
  """

  name: ClassVar = "regression"
  max_x: int = 4
  max_slope: int = 3
  max_intercept: int = 3
  noise: float = 0.1
  seed: int = 0

  def __post_init__(self):
    for name in ("max_x", "max_slope", "max_intercept"):
      if not 1 <= getattr(self, name) <= 20:
        raise InputError(f"data.{name} is {getattr(self, name)}: must be 1 to 20")
    if not 0 < self.noise < 0.5:
      raise InputError(f"data.noise is {self.noise}: must be between 0 and 0.5")
    require_seed(self.seed)

  def make(self, context_length: int) -> "Regression":
    return Regression(self, context_length)


class Regression(ToyLanguage):
  """Sequences x1 y1 x2 y2 ..., each of one line."""

  def __init__(self, config: RegressionConfig, context_length: int):
    self.context_length, self.seed = context_length, config.seed
    self._noise = {-1: config.noise, 0: 1 - 2 * config.noise, 1: config.noise}
    self._max_x = config.max_x
    self._max_y = config.max_slope * config.max_x + config.max_intercept + 1
    xs, ys = (range(-most, most + 1) for most in (self._max_x, self._max_y))
    self.tokenizer = WordTokenizer([*(f"x{x}" for x in xs), *(f"y{y}" for y in ys)])
    slopes, intercepts = (
      range(-most, most + 1) for most in (config.max_slope, config.max_intercept)
    )
    self._lines = np.array(list(itertools.product(slopes, intercepts)))
    self._num_x = len(xs)

  def sample(self, rng: np.random.Generator, length: int) -> np.ndarray:
    slope, intercept = rng.choice(self._lines)
    tokens = [self.tokenizer.start_id]
    while len(tokens) < length:
      x = int(rng.integers(-self._max_x, self._max_x + 1))
      noise = int(rng.choice(list(self._noise), p=list(self._noise.values())))
      y = slope * x + intercept + noise
      tokens += [1 + x + self._max_x, 1 + self._num_x + y + self._max_y]
    return np.array(tokens[:length], np.int32)

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray:
    """See `Dataset`: x is uniform, y is Bayes' average over all lines."""
    require_start_token(tokens, self.tokenizer.start_id)
    rows = np.zeros((len(tokens), self.tokenizer.vocab_size))
    weights, x = np.full(len(self._lines), 1 / len(self._lines)), 0
    for i, token in enumerate(tokens):
      if i % 2 == 0:  # after the start, and after a y
        if i > 0:
          weights = weights * self._likelihood(x, int(token))
        if not weights.any():
          break  # no line goes so
        weights /= weights.sum()
        rows[i, 1 : 1 + self._num_x] = 1 / self._num_x
        continue
      x = int(token) - 1 - self._max_x
      if not -self._max_x <= x <= self._max_x:
        break
      for noise, probability in self._noise.items():
        ys = self._lines @ (x, 1) + noise
        np.add.at(rows[i], 1 + self._num_x + ys + self._max_y, weights * probability)
    return rows

  def _likelihood(self, x: int, token: int) -> np.ndarray:
    """P(the token | x, line), for each line."""
    off = token - 1 - self._num_x - self._max_y - self._lines @ (x, 1)
    return np.array([self._noise.get(int(each), 0.0) for each in off])


CONFIGS.add("regression", RegressionConfig)


def get_config() -> ConfigDict:
  """Changes to the default."""
  config = default_config.get_config()
  with config.unlocked():
    config.data = ConfigDict()
    config.data.name = "regression"
    config.data.max_x = 4  # x is -4 to 4,
    config.data.max_slope = 3  # and so on
    config.data.max_intercept = 3
    config.data.noise = 0.1  # that y is one too large; and too small
    config.data.seed = 0  # of the sequences drawn
  config.model.context_length = 32
  return config
