"""GPT-2 in the four sizes that were published, on your own text.

    python train.py --config=configs/gpt2.py:small --config.data.path="books/**/*.txt"

Sizes: small (124 M parameters), medium (355 M), large (774 M), xl (1.6 B). Made for
accelerators: a step is half a million tokens, in pieces that should fit an H100's
80 GB (by calculation). On several devices, or larger ones, fewer pieces are faster:
--config.train.accumulation_steps=4. On small ones, more fit.
"""

from ml_collections import ConfigDict

from configs import text
from gpt2_flax.model_config import GPT2Config

# Pieces of a batch of 512: 32, 32, 16 and 8 windows at a time.
ACCUMULATION_STEPS = {"small": 16, "medium": 16, "large": 32, "xl": 64}


def get_config(size: str = "small") -> ConfigDict:
  """Changes to `text`.

  Args:
    size: small, medium, large or xl.
  """
  config = text.get_config()
  published = GPT2Config.published(size)
  config.data.tokenizer = "byte"
  config.model.vocab_size = published.vocab_size
  config.model.context_length = published.context_length
  config.model.num_layers = published.num_layers
  config.model.num_heads = published.num_heads
  config.model.embed_dim = published.embed_dim
  config.model.positional_encoding = published.positional_encoding
  config.model.attention = "flash"
  config.model.dropout_rate = 0.0  # one epoch or less needs none
  config.model.dtype = "bfloat16"
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 6e-4
  config.optimizer.warmup_steps = 2000
  config.optimizer.weight_decay = 0.1
  config.optimizer.beta2 = 0.95
  config.train.num_steps = 600_000
  config.train.batch_size = 512
  config.train.accumulation_steps = ACCUMULATION_STEPS[size]
  config.eval.every_steps = 1000
  config.eval.num_windows = 1000
  config.checkpoint.every_steps = 1000
  return config
