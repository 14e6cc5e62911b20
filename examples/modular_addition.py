"""Modular addition: "a + b = c", c = (a + b) mod p. Some pairs are never trained on.

    python train.py --config=examples/modular_addition.py
    python sample.py --workdir=runs/modular_addition \
      --import=examples.modular_addition --prompt="3 + 5 =" --num_tokens=1

Only the answer counts in the loss. Where the loss on the other pairs falls, what was
learned is a rule, not a table: "Grokking" (Power et al., 2022), section 2.
"""

import dataclasses
from typing import ClassVar

from ml_collections import ConfigDict
import numpy as np

from gpt2_flax.datasets import CONFIGS, Dataset
from gpt2_flax.datasets.dataset import Batch
from gpt2_flax.errors import InputError
from gpt2_flax.tokenizer import WordTokenizer
from gpt2_flax.training import default_config

ANSWER = 4  # its place in a window: <s> a + b = c, counted from <s> a as 0


@dataclasses.dataclass(frozen=True)
class ModularAdditionConfig:
  """Which sums.

  Attributes:
    modulus: p; a and b are 0 to p - 1.
    train_fraction: the share of the p * p pairs that is trained on.
    seed: of the choice of those pairs.
  """

  name: ClassVar = "modular_addition"
  modulus: int = 31
  train_fraction: float = 0.7
  seed: int = 0

  def __post_init__(self):
    if not 2 <= self.modulus <= 1000:
      raise InputError(f"data.modulus is {self.modulus}: must be 2 to 1000")
    if not 0 < self.train_fraction < 1:
      raise InputError(
        f"data.train_fraction is {self.train_fraction}: must be between 0 and 1"
      )

  def make(self, context_length: int) -> "ModularAddition":
    return ModularAddition(self, context_length)


class ModularAddition(Dataset):
  """One sum a window."""

  def __init__(self, config: ModularAdditionConfig, context_length: int):
    if context_length < ANSWER + 1:
      raise InputError(
        f"model.context_length is {context_length}: must be at least {ANSWER + 1}"
      )
    self.context_length = context_length
    numbers = [str(number) for number in range(config.modulus)]
    self.tokenizer = WordTokenizer([*numbers, "+", "="])
    self._modulus = config.modulus
    pairs = np.random.default_rng(config.seed).permutation(config.modulus**2)
    num_train = round(len(pairs) * config.train_fraction)
    self._pairs = {"train": pairs[:num_train], "validation": pairs[num_train:]}

  def num_windows(self, split: str) -> int:
    return len(self._pairs[split])

  def window(self, split: str, index: int) -> np.ndarray:
    a, b = divmod(int(self._pairs[split][index]), self._modulus)
    text = f"{a} + {b} = {(a + b) % self._modulus}"
    window = np.full(self.context_length + 1, -1, np.int32)
    window[: ANSWER + 2] = self.tokenizer.start(text)
    return window

  def batch(self, windows: np.ndarray) -> Batch:
    """Only the answer is asked for."""
    batch = super().batch(windows)
    asked = np.arange(self.context_length)[None] == ANSWER
    return {**batch, "targets": np.where(asked, batch["targets"], -1)}

  def next_token_probabilities(self, tokens: np.ndarray) -> np.ndarray:
    """Any two numbers, and what follows from them; zero where a text goes another way.

    The floor of the answers is 0: nothing about them is left to chance.
    """
    rows = np.zeros((len(tokens), self.tokenizer.vocab_size))
    numbers = slice(1, 1 + self._modulus)
    text = self.tokenizer.decode(tokens[1:].tolist()).split()
    for i in range(min(len(tokens), ANSWER + 1)):
      if i in (0, 2):  # a, and b
        rows[i, numbers] = 1 / self._modulus
      elif i in (1, 3):
        rows[i, self.tokenizer.encode("+" if i == 1 else "=")] = 1
      elif text[0].isdecimal() and text[2].isdecimal():
        total = (int(text[0]) + int(text[2])) % self._modulus
        rows[i, self.tokenizer.encode(str(total))] = 1
    return rows


CONFIGS.add("modular_addition", ModularAdditionConfig)


def get_config() -> ConfigDict:
  """Changes to the default."""
  config = default_config.get_config()
  with config.unlocked():
    config.data = ConfigDict()
    config.data.name = "modular_addition"
    config.data.modulus = 31  # numbers are 0 to 30
    config.data.train_fraction = 0.7  # of the pairs; the others are for validation
    config.data.seed = 0  # of the choice of pairs
  config.model.context_length = 5
  config.model.num_layers = 1
  config.model.embed_dim = 128
  config.train.num_steps = 600
  config.train.batch_size = 256
  config.optimizer.weight_decay = 1.0
  config.eval.num_windows = 0
  config.eval.sample_tokens = 0
  return config
