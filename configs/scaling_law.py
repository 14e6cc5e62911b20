"""A member of the study behind `python -m lessons scaling_law`: a size, on babel.

    python sweep.py --config=configs/scaling_law.py --over=config=1,2,3,4,5,6,7 \
      --over=train.num_steps=48,144,432,1296 --over=train.seed=0:3 \
      --workdir=lessons/studies/scaling_law

Its argument is the depth, which sets the shape as configs/depth.py says: 3,072 to
1,053,696 parameters in the blocks. All sizes learn from batches of 2,048 tokens.
"""

from ml_collections import ConfigDict

from configs import depth


def get_config(argument: str = "1") -> ConfigDict:
  """Changes to `babel`.

  Args:
    argument: the depth.
  """
  config = depth.get_config(f"{argument}:babel")
  config.train.batch_size = 32
  config.train.num_steps = 432
  config.train.log_every_steps = 48
  config.optimizer.warmup_steps = 16
  config.eval.every_steps = 1_000_000  # at the end alone
  config.eval.num_windows = 1024
  config.eval.sample_tokens = 0
  config.checkpoint.every_steps = 200
  return config
