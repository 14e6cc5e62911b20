"""Toy languages whose best possible loss is known, and text that people wrote."""

from gpt2_flax.datasets.dataset import Dataset, floor, ToyLanguage
from gpt2_flax.datasets.grammar import GrammarConfig
from gpt2_flax.datasets.induction import InductionConfig
from gpt2_flax.datasets.markov import MarkovConfig
from gpt2_flax.datasets.text import TextConfig

# data.name -> the dataclass of its other fields; its make(context_length) gives a
# Dataset.
CONFIGS = {
  config.name: config
  for config in (GrammarConfig, MarkovConfig, InductionConfig, TextConfig)
}

__all__ = ["CONFIGS", "Dataset", "ToyLanguage", "floor"]
