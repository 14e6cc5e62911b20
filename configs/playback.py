"""The toy, with its weights kept on the way: the page plays the training back.

    python train.py --config=configs/playback.py
    python explain.py --workdir=runs/playback --prompt="the cats that the dog sees"

Two CPU cores: as configs/toy.py. In the page a slider goes through twelve steps: watch
the heads find what they look at. The steps are close where the loss falls fast.
"""

from ml_collections import ConfigDict

from configs import toy


def get_config() -> ConfigDict:
  """Changes to `toy`."""
  config = toy.get_config()
  config.checkpoint.keep_steps = "0,20,50,100,150,200,300,450,600,800,1100,1500"
  return config
