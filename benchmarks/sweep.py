"""How many tokens a second a sweep trains on: members in turn, and as one program.

    python -m benchmarks.sweep                         1, 8 and 64 members of the toy
    python -m benchmarks.sweep --members=1,8 --rounds=3

Compiling is not in the figures: it is done once for all members of a program, and in
turn it is read from the cache for all but the first.
"""

import pathlib
import statistics
import tempfile

from absl import app, flags, logging
import jax

from benchmarks.turns import spread, table
from gpt2_flax.doors.command_line import keep_compiled_programs
from gpt2_flax.training import default_config
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.metrics import read_metrics
from gpt2_flax.training.sweep import Member, run_sweep

_MEMBERS = flags.DEFINE_list("members", ["1", "8", "64"], "Of one program.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Each in turn, so often.")
_STEPS = flags.DEFINE_integer("steps", 60, "Of each member; the last half counts.")


def tokens_per_second(num_members: int, num_steps: int) -> float:
  """Of all members together; they are the toy from so many seeds."""
  members = []
  for seed in range(num_members):
    config = default_config.get_config()
    config.train.update(
      seed=seed, num_steps=num_steps, log_every_steps=max(1, num_steps // 2)
    )
    config.eval.update(num_windows=32, sample_tokens=0, every_steps=10**9)
    members.append(Member({"train.seed": seed}, *parse(config)))
  with tempfile.TemporaryDirectory() as folder:
    run_sweep(members, folder, together=num_members, tell=lambda line: None)
    speeds = []
    for member in members:
      records = read_metrics(pathlib.Path(folder) / member.name / "metrics.jsonl")
      speeds.append([r["tokens_per_second"] for r in records if "train/loss" in r][-1])
  return sum(speeds)


def main(_) -> None:
  """Prints a row a number of members."""
  logging.set_verbosity(logging.WARNING)
  keep_compiled_programs()
  numbers = [int(number) for number in _MEMBERS.value]
  found = {number: [] for number in numbers}
  for _ in range(_ROUNDS.value):
    for number in numbers:
      found[number].append(tokens_per_second(number, _STEPS.value))
  one = statistics.median(found[numbers[0]])
  rows = [
    [str(number), spread(speeds, 0), f"{statistics.median(speeds) / one:.2f}"]
    for number, speeds in found.items()
  ]
  print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
  print(
    table(["members of one program", "tokens a second, all of them", "ratio"], rows)
  )


if __name__ == "__main__":
  app.run(main)
