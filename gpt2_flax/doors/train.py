"""Trains a GPT-2 on the data that a config names.

    python train.py                                      the default, configs/toy.py
    python train.py --config=configs/markov.py           another experiment
    python train.py --config.model.num_heads=8           with one thing changed
    python train.py --workdir=runs/mine                  somewhere else
    python train.py --coordinator=host:1234 --num_processes=2 --process_id=0
                                                         one of several processes
    python train.py --help                               every key of the config, too

The same command again goes on where an interrupted run stopped.
"""

import pathlib

from absl import flags

from gpt2_flax.doors import command_line, config_flag, own_modules

config_flag.define_config_flag()
_IMPORT = command_line.define_import_flag()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run lives; default runs/<config name>."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT where process 0 listens; clusters know by themselves."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")


def main() -> int:
  """Checks the config, trains, says how it went."""
  from gpt2_flax.training import cpu, experiment, loop, processes  # slow: after flags

  process = processes.find_process(
    _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  workdir = pathlib.Path(_WORKDIR.value or f"runs/{config_flag.config_name()}")
  own_modules.import_own(_IMPORT.value)
  config, dataset = experiment.parse(flags.FLAGS.config)
  cpu.set_up(config, alone=process is None)

  def train() -> int:
    result = loop.train(config, dataset, workdir)
    print(result.summary(workdir))
    return 128 + result.stopped_by if result.stopped_by else 0

  # Until the first step nothing is half written, and compiling may take minutes.
  command_line.leave_on_signals(on_the_spot=True)
  with processes.joined(process):
    return command_line.guarded(train)  # prints an error before leaving
