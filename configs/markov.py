"""A random Markov chain of order 2: the smallest thing worth attending to.

    python train.py --config=configs/markov.py

Two CPU cores: half a minute; val/gap at most 0.01 nats a token.
"""

from ml_collections import ConfigDict

from gpt2_flax.training import default_config


def get_config() -> ConfigDict:
  """Changes to the default."""
  config = default_config.get_config()
  with config.unlocked():
    config.data = ConfigDict()
    config.data.name = "markov"
    config.data.num_symbols = 8  # different tokens, 2 to 26
    config.data.order = 2  # tokens back that the next one depends on
    config.data.concentration = 0.3  # small: nearly deterministic; large: uniform
    config.data.seed = 0  # of the chain, and of the sequences drawn
  config.model.context_length = 32
  return config
