"""Tiny Shakespeare in characters: what small GPTs are compared on.

    python train.py --config=configs/shakespeare_char.py
    python train.py --config=configs/shakespeare_char.py \
      --config.data.path=tinyshakespeare.txt

The shape and batch of nanoGPT's command for a CPU. The text is downloaded once and its
checksum verified, or is a local copy. Two CPU cores: 1.61 nats a character over the
whole validation split, in three and a half minutes.
"""

from ml_collections import ConfigDict

from configs import text


def get_config() -> ConfigDict:
  """Changes to `text`."""
  config = text.get_config()
  config.data.path = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
  config.data.sha256 = (
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
  )
  config.model.positional_encoding = "learned"
  config.model.dropout_rate = 0.0
  config.train.batch_size = 12
  config.eval.every_steps = 250
  return config
