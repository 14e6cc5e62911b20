"""Trains a GPT-2 on the data that a config names.

    python train.py                                      the default, configs/toy.py
    python train.py --config=configs/markov.py           another experiment
    python train.py --config.model.num_heads=8           with one thing changed
    python train.py --workdir=runs/mine                  somewhere else

The same command again goes on where an interrupted run stopped.
"""

import pathlib

from absl import flags

from gpt2_flax import command_line

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run lives; default runs/<config name>."
)


def main() -> int:
  """Checks the config, trains, says how it went."""
  from gpt2_flax.training import config, loop  # slow to import: after the flags

  workdir = pathlib.Path(_WORKDIR.value or f"runs/{command_line.config_name()}")
  experiment, dataset = config.parse(flags.FLAGS.config)
  result = loop.train(experiment, dataset, workdir)
  print(result.summary(workdir))
  return 128 + result.stopped_by if result.stopped_by else 0


if __name__ == "__main__":
  command_line.run(main, pathlib.Path(__file__).parent / "configs" / "toy.py")
