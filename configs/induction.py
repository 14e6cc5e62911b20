"""Random tokens that repeat with a random period: learned in context or not at all.

    python train.py --config=configs/induction.py

Two CPU cores: under a minute; val/gap at most 0.02 nats a token. The loss stays flat
until an induction head forms, then falls at once.
"""

from ml_collections import ConfigDict

from gpt2_flax.training import default_config


def get_config() -> ConfigDict:
  """Changes to the default."""
  config = default_config.get_config()
  with config.unlocked():
    config.data = ConfigDict()
    config.data.name = "induction"
    config.data.num_symbols = 32  # different tokens
    config.data.min_period = 4  # each sequence draws its own period,
    config.data.max_period = 16  # uniform between these two
    config.data.seed = 0  # of the sequences drawn
  config.optimizer.learning_rate = 0.01
  config.train.num_steps = 2000
  return config
