"""One dial: depth alone sets the model's shape, and how long and how fast it learns.

    python train.py --config=configs/depth.py:4                    on the toy language
    python train.py --config=configs/depth.py:4:shakespeare_char   on its data
    python sweep.py --config=configs/depth.py --over=config=1,2,3

The rule, with N = 12 * num_layers * embed_dim**2, the parameters of the blocks:

- width 16 * depth, a head for each 16 of it. The shape matters little for equal N
  (Kaplan et al., 2020, section 3.2), so N = 3072 * depth**3.
- 20 tokens a parameter of N (Hoffmann et al., 2022, section 3.4, on text).
- a batch of 512 * depth tokens: the largest useful batch grows with the number of
  tokens, to a power of about 0.4 (Bergsma et al., 2025); here 1/3, and steps 2/3.
- warmup over a tenth of the steps.
- the peak learning rate does not depend on depth: Muon's steps are of one size for
  matrices of any width (Jordan et al., 2024).
"""

import importlib

from ml_collections import ConfigDict

WIDTH = 16  # for each layer of depth
TOKENS_PER_PARAM = 20
BATCH_TOKENS = 512  # for each layer of depth


def get_config(argument: str = "2") -> ConfigDict:
  """Changes to a config that names data.

  Args:
    argument: DEPTH, or DEPTH:CONFIG for another file of this folder than toy.
  """
  depth_text, _, name = argument.partition(":")
  depth = int(depth_text) if depth_text.isdecimal() else 0
  if depth < 1:
    raise ValueError(f"depth is {depth_text!r}: must be an integer from 1")
  config = importlib.import_module(f"configs.{name or 'toy'}").get_config()
  set_depth(config, depth)
  return config


def set_depth(config: ConfigDict, depth: int) -> None:
  """Turns the dial in a config of yours."""
  model, train = config.model, config.train
  model.num_layers = model.num_heads = depth
  model.embed_dim = WIDTH * depth
  model.mlp_dim = 0
  num_params = 12 * depth * model.embed_dim**2
  train.batch_size = max(1, BATCH_TOKENS * depth // model.context_length)
  tokens_per_step = train.batch_size * model.context_length
  train.num_steps = round(TOKENS_PER_PARAM * num_params / tokens_per_step)
  config.optimizer.name = "muon"
  config.optimizer.learning_rate = 0.02
  config.optimizer.warmup_steps = train.num_steps // 10
  config.eval.every_steps = config.checkpoint.every_steps = train.num_steps // 5
