"""A run with parts of one's own, outside of the repository, through all doors."""

import json
import pathlib
import tempfile

import chex
import numpy as np
import pytest

from tests import forked

LAB = '''"""A tokenizer, a dataset and a head that nobody else has."""

import dataclasses
from typing import ClassVar

import numpy as np

from gpt2_flax.datasets import CONFIGS, Dataset
from gpt2_flax.self_attention import HEADS, SelfAttention
from gpt2_flax.tokenizer import KINDS, NumberTokenizer
from gpt2_flax.training import default_config


class DigitTokenizer(NumberTokenizer):
  kind = "digit"


class BackwardsHead(SelfAttention):
  def visible(self, slots_T, slots_S):
    return super().visible(slots_T, slots_S) & (slots_T[:, None] > slots_S)[None]


@dataclasses.dataclass(frozen=True)
class CountingConfig:
  name: ClassVar = "counting"
  step: int = 1

  def make(self, context_length):
    return Counting(self.step, context_length)


class Counting(Dataset):
  def __init__(self, step, context_length):
    self.step, self.context_length = step, context_length
    self.tokenizer = DigitTokenizer(10)

  def num_windows(self, split):
    return 10

  def window(self, split, index):
    return ((index + self.step * np.arange(self.context_length + 1)) % 10).astype("i4")


CONFIGS.add("counting", CountingConfig)
HEADS.add("backwards", BackwardsHead)
KINDS.add("digit", DigitTokenizer)


def get_config():
  config = default_config.get_config()
  with config.unlocked():
    config.data = {"name": "counting", "step": 3}
  config.model.update(attention="backwards", context_length=8, embed_dim=16)
  config.model.update(num_layers=1, num_heads=2)
  config.train.update(num_steps=6, batch_size=8)
  config.optimizer.update(name="adamw", learning_rate=0.01)
  config.eval.update(num_windows=0, sample_tokens=0)
  config.checkpoint.keep_steps = "log2"
  return config
'''


class OwnPartsTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    (cls.folder / "my_lab").mkdir()
    (cls.folder / "my_lab" / "counting.py").write_text(LAB)
    done = cls.call("train", "--config=my_lab/counting.py", "--workdir=run")
    assert done.returncode == 0, done.stderr

  @classmethod
  def call(cls, door: str, *flags: str):
    started = forked.start("-m", "gpt2_flax", door, *flags, cwd=str(cls.folder))
    return forked.finish(started)

  def test_the_folder_says_what_it_needs(self):
    config = json.loads((self.folder / "run" / "config.json").read_text())
    file = self.folder / "my_lab" / "counting.py"
    self.assertEqual(
      config["own"],
      {
        "data": f"{file}:CountingConfig",
        "tokenizer": f"{file}:DigitTokenizer",
        "attention": f"{file}:BackwardsHead",
      },
    )

  def test_each_door_opens_it_with_the_module_and_names_it_without(self):
    (self.folder / "text.txt").write_text("1 4 7 0 3 6 9 2 5 8 1")
    for door, *flags in (
      ("sample", "--prompt=1 4", "--num_tokens=4", "--temperature=0"),
      ("evaluate", "--text=text.txt"),
      ("explain", "--prompt=1 4 7", "--output=page.html"),
    ):
      module = "my_lab/counting.py" if door == "sample" else "my_lab.counting"
      opened = self.call(door, "--workdir=run", *flags, f"--import={module}")
      self.assertEqual(opened.returncode, 0, opened.stderr)
    without = self.call("evaluate", "--workdir=run", "--text=text.txt")
    self.assertEqual(without.returncode, 2, without.stderr)
    self.assertRegex(
      without.stderr,
      r"^error: data.name is 'counting', which is not imported: .*add"
      r" --import=.*my_lab/counting.py\n$",
    )
    exported = self.call(
      "export", "--workdir=run", "--output=exported", "--import=my_lab.counting"
    )
    self.assertEqual(exported.returncode, 2)
    self.assertIn(
      "model.attention is BackwardsHead: must be SelfAttention or", exported.stderr
    )

  def test_any_step_that_is_kept_opens(self):
    texts = {}
    for step in (0, 6):
      flags = "--prompt=1 4", "--num_tokens=6", f"--step={step}", "--workdir=run"
      opened = self.call("sample", *flags, "--import=my_lab.counting")
      self.assertEqual(opened.returncode, 0, opened.stderr)
      texts[step] = opened.stdout
    self.assertNotEqual(texts[0], texts[6])
    none = self.call(
      "sample", "--workdir=run", "--step=3", "--import=my_lab.counting", "--prompt=1"
    )
    self.assertEqual(none.returncode, 2)
    self.assertIn("step is 3: run has 0, 1, 2, 4, 6", none.stderr)

  def test_a_module_that_does_not_exist(self):
    for name, message in (
      ("my_lab.count", "No module named 'my_lab.count'"),
      ("my_lab/count.py", "No such file"),
    ):
      done = self.call("sample", "--workdir=run", f"--import={name}", "--prompt=1")
      self.assertEqual(done.returncode, 2, done.stderr)
      self.assertStartsWith(done.stderr, f"error: --import={name}: ")
      self.assertIn(message, done.stderr)
      self.assertEqual(done.stderr.count("\n"), 1)

  def test_no_folder_causes_an_import(self):
    """Whatever a folder says, beside it or in it: only --import imports."""
    spy = self.folder / "spy.py"
    spy.write_text("open('it_ran', 'w').close()\n")
    for where in ("spy:Head", f"{spy}:Head", "my_lab.counting:Counting"):
      run = self.folder / "hostile"
      run.mkdir(exist_ok=True)
      (run / "spy.py").write_text(spy.read_text())
      (run / "tokenizer.json").write_text('{"kind": "spy", "vocab_size": 3}')
      config = json.loads((self.folder / "run" / "config.json").read_text())
      config["own"] = dict.fromkeys(("data", "tokenizer", "attention", "loss"), where)
      for name in ("counting", "grammar"):
        config["data"] = {"name": name}
        (run / "config.json").write_text(json.dumps(config))
        (run / "checkpoints").mkdir(exist_ok=True)
        for door in ("sample", "evaluate"):
          done = self.call(door, "--workdir=hostile")
          self.assertEqual(done.returncode, 2, done.stderr)
          self.assertStartsWith(done.stderr, "error: ")
      done = self.call("train", "--workdir=hostile", "--config.train.num_steps=1")
      self.assertEqual(done.returncode, 2, done.stderr)
    self.assertFalse((self.folder / "it_ran").exists())


class ArraysTest(chex.TestCase):
  @pytest.mark.slow  # datasets/test_arrays.py reads them
  def test_nanogpts_files_train_and_write_numbers(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    ids = np.arange(300) * 7 % 11
    ids.astype("u2").tofile(folder / "train.bin")
    ids[:50].astype("u2").tofile(folder / "val.bin")
    (folder / "mine.py").write_text(
      "from gpt2_flax.training import default_config\n"
      "def get_config():\n"
      "  config = default_config.get_config()\n"
      "  with config.unlocked():\n"
      "    config.data = dict(name='array', path='train.bin')\n"
      "    config.data.validation_path = 'val.bin'\n"
      "  config.model.update(num_layers=1, num_heads=2, embed_dim=16)\n"
      "  config.model.context_length = 8\n"
      "  config.train.update(num_steps=4, batch_size=16)\n"
      "  config.optimizer.update(name='adamw', learning_rate=0.01)\n"
      "  config.eval.update(num_windows=0, sample_tokens=6)\n"
      "  return config\n"
    )
    flags = "--config=mine.py", "--workdir=run"
    args = "-m", "gpt2_flax", "train", *flags
    done = forked.finish(forked.start(*args, cwd=str(folder)))
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertRegex(done.stdout, r"writes: \d+( \d+){6}\n")
    args = "-m", "gpt2_flax", "sample", "--workdir=run", "--prompt=0 7 3", "--top_k=1"
    done = forked.finish(forked.start(*args, "--num_tokens=3", cwd=str(folder)))
    self.assertRegex(done.stdout, r"^0 7 3( \d+){3}\n$")
