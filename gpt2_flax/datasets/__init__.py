"""Toy languages whose best possible loss is known, and text that people wrote."""

from gpt2_flax.datasets.arrays import ArrayConfig
from gpt2_flax.datasets.completions import CompletionsConfig
from gpt2_flax.datasets.dataset import Dataset, floor, ToyLanguage
from gpt2_flax.datasets.grammar import GrammarConfig
from gpt2_flax.datasets.induction import InductionConfig
from gpt2_flax.datasets.markov import MarkovConfig
from gpt2_flax.datasets.text import TextConfig
from gpt2_flax.registry import Registry

# data.name -> the dataclass of its other fields; its make(context_length) gives a
# Dataset. To add yours: docs/own_parts.md
CONFIGS = Registry(
  "data.name",
  {
    config.name: config
    for config in (
      ArrayConfig,
      CompletionsConfig,
      GrammarConfig,
      InductionConfig,
      MarkovConfig,
      TextConfig,
    )
  },
)

__all__ = ["CONFIGS", "Dataset", "ToyLanguage", "floor"]
