"""Your own text: in characters, bytes, or byte pairs trained on it.

    python train.py --config=configs/text.py --config.data.path=book.txt
    python train.py --config=configs/text.py --config.data.path=books \
      --config.data.tokenizer=bpe

There is no floor: nobody knows the process that writes people's text. Tiny Shakespeare
with --config.train.num_steps=500 reaches 1.847 nats a character in 90 s on two CPU
cores.
"""

from ml_collections import ConfigDict

from gpt2_flax.training import default_config


def get_config() -> ConfigDict:
  """Changes to the default."""
  config = default_config.get_config()
  with config.unlocked():
    config.data = ConfigDict()
    config.data.name = "text"
    config.data.path = ""  # UTF-8: a file, a folder, a glob "books/**/*.txt", a URL
    config.data.sha256 = ""  # what the content at a URL must have
    config.data.tokenizer = "char"  # char, byte, bpe, init_from, a tokenizer.json
    config.data.bpe_vocab_size = 1024  # how many tokens bpe is trained to have
    config.data.validation_fraction = 0.1  # the share at the end kept for validation
    config.data.pack = "joined"  # or separate: documents in a window are as if alone
  config.model.context_length = 64
  config.model.num_layers = 4
  config.model.embed_dim = 128
  config.model.dropout_rate = 0.1
  config.train.num_steps = 2000
  config.eval.every_steps = 500
  config.eval.num_windows = 0  # the whole validation split
  config.eval.sample_tokens = 60
  config.checkpoint.every_steps = 500
  return config
