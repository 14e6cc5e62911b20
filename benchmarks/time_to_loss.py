"""Wall clock from the command to a validation loss on tiny Shakespeare, in characters.

    python -m benchmarks.time_to_loss --text=tinyshakespeare.txt --nanogpt=DIR

Whole commands take turns: ours is configs/shakespeare_char.py with a learning rate for
as few steps as it needs, nanoGPT's is the command for a CPU from its README (the same
architecture and batch, 2,000 steps), both evaluated only at the end. Start-up and
compiling count; programs compiled in an earlier run are found again, and a short run of
each before the first turn sees to it. The loss is over the whole validation split,
nanoGPT's computed by this script outside of the time.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging
import numpy as np

from benchmarks import turns

_TEXT = flags.DEFINE_string("text", None, "Tiny Shakespeare.", required=True)
_NANOGPT = flags.DEFINE_string("nanogpt", None, "A copy of nanoGPT.")
_STEPS = flags.DEFINE_integer("steps", 530, "Ours.")
_NANOGPT_STEPS = flags.DEFINE_integer("nanogpt_steps", 2000, "Theirs.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns that each takes.")

HERE = pathlib.Path(__file__).parents[1]


def run(command: list[str], folder: pathlib.Path) -> float:
  """Seconds that a command takes."""
  began = time.perf_counter()
  with open(folder / "log.txt", "a") as log:
    subprocess.run(command, cwd=folder, stdout=log, stderr=log, check=True)
  return time.perf_counter() - began


def ours(folder: pathlib.Path, steps: int) -> float:
  """Seconds of `train.py`; the run goes to `folder`/run."""
  return run(
    [
      sys.executable,
      str(HERE / "train.py"),
      f"--config={HERE / 'configs' / 'shakespeare_char.py'}",
      f"--config.data.path={pathlib.Path(_TEXT.value).absolute()}",
      "--config.optimizer.learning_rate=0.03",  # for so few steps
      "--config.optimizer.warmup_steps=50",
      f"--config.train.num_steps={steps}",
      f"--config.eval.every_steps={steps}",
      f"--config.checkpoint.every_steps={steps}",
      f"--workdir={folder / 'run'}",
    ],
    folder,
  )


def our_loss(folder: pathlib.Path) -> float:
  """As the run wrote it: over the whole split."""
  import json

  records = (folder / "run" / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(line).get("val/loss") for line in records]
  return [loss for loss in losses if loss is not None][-1]


def nanogpt(folder: pathlib.Path, steps: int) -> float:
  """Seconds of its train.py; the checkpoint goes to `folder`/out."""
  source = pathlib.Path(_NANOGPT.value).absolute()
  data = folder / "data" / "shakespeare_char"
  if not data.exists():  # its train.py reads these where it runs
    (folder / "configurator.py").symlink_to(source / "configurator.py")
    data.mkdir(parents=True)
    prepare = source / "data" / "shakespeare_char" / "prepare.py"
    (data / "prepare.py").write_text(prepare.read_text())
    (data / "input.txt").write_text(pathlib.Path(_TEXT.value).read_text())
    run([sys.executable, str(data / "prepare.py")], folder)
  return run(
    [
      sys.executable,
      str(source / "train.py"),
      str(source / "config" / "train_shakespeare_char.py"),
      "--device=cpu",
      "--compile=False",
      "--eval_iters=20",
      "--log_interval=100",
      "--block_size=64",
      "--batch_size=12",
      "--n_layer=4",
      "--n_head=4",
      "--n_embd=128",
      f"--max_iters={steps}",
      f"--lr_decay_iters={steps}",
      "--dropout=0.0",
      f"--eval_interval={steps}",
      "--always_save_checkpoint=True",
      "--out_dir=out",
    ],
    folder,
  )


def nanogpt_loss(folder: pathlib.Path) -> float:
  """Of its checkpoint, over the whole split in windows of 64, as ours."""
  import torch

  sys.path.insert(0, _NANOGPT.value)
  from model import GPT, GPTConfig

  saved = torch.load(folder / "out" / "ckpt.pt", weights_only=False)
  model = GPT(GPTConfig(**saved["model_args"])).eval()
  model.load_state_dict(saved["model"])
  length = saved["model_args"]["block_size"]
  ids = np.fromfile(folder / "data" / "shakespeare_char" / "val.bin", np.uint16)
  count = (len(ids) - 1) // length * length
  inputs = torch.from_numpy(ids[:count].astype(np.int64)).view(-1, length)
  targets = torch.from_numpy(ids[1 : count + 1].astype(np.int64)).view(-1, length)
  total = 0.0
  with torch.no_grad():
    for x, y in zip(inputs.split(64), targets.split(64), strict=True):
      total += model(x, y)[1].item() * y.numel()
  return total / count


def main(_) -> None:
  """Runs them in turn, prints a table."""
  contenders = {"ours": (ours, our_loss, _STEPS.value)}
  if _NANOGPT.value:
    contenders["nanogpt"] = (nanogpt, nanogpt_loss, _NANOGPT_STEPS.value)
  seconds = {name: [] for name in contenders}
  losses = {}
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    for turn in range(-1, _ROUNDS.value):
      for who, (train, loss, steps) in contenders.items():
        folder = root / f"{who}{turn}"
        folder.mkdir()
        took = train(folder, steps if turn >= 0 else 30)
        if turn >= 0:
          seconds[who].append(took)
          losses.setdefault(who, []).append(loss(folder))
  rows = [
    [
      who,
      str(contenders[who][2]),
      turns.spread(losses[who], 4),
      turns.spread(seconds[who], 1),
      turns.spread(
        [a / b for a, b in zip(seconds[who], seconds["ours"], strict=True)], 2
      ),
    ]
    for who in contenders
  ]
  print(turns.table(["who", "steps", "validation loss", "seconds", "/ ours"], rows))


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main)
