"""`explain.py` as a person runs it, on a small run."""

import json
import pathlib
import re
import shutil
import tempfile

import chex

from gpt2_flax.datasets import CONFIGS
from gpt2_flax.interpret.page import run_history
from tests.doors.test_doors import call


def read_data(path: pathlib.Path) -> dict:
  page = path.read_text("utf-8")
  return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


class ExplainTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.run_ = pathlib.Path(folder) / "run"
    done = call(
      "train.py",
      f"--workdir={cls.run_}",
      "--config.model.context_length=16",
      "--config.model.num_layers=1",
      "--config.train.num_steps=2",
      "--config.train.log_every_steps=1",
      "--config.checkpoint.keep_steps=0,1",
      "--config.eval.num_windows=8",
      "--config.eval.sample_tokens=0",
    )
    assert done.returncode == 0, done.stderr

  def test_default_is_a_validation_sequence_in_the_runs_folder(self):
    made = call("explain.py", f"--workdir={self.run_}")
    self.assertEqual(made.returncode, 0, made.stderr)
    path = self.run_ / "explain.html"
    size = path.stat().st_size
    rounded = "Steps before the last are rounded to 16 bits a weight."
    self.assertEqual(made.stdout, f"{rounded}\nwrote {path}, {size / 1e6:.1f} MB\n")
    self.assertLess(size, 5e6)
    data = read_data(path)
    expected = CONFIGS["grammar"]().make(16).window("validation", 0)[:16]
    self.assertEqual(data["tokens"], expected.tolist())
    self.assertEqual(data["title"], "run")
    self.assertEqual(data["process"]["kind"], "grammar")
    self.assertEqual([step["step"] for step in data["steps"]], [0, 1, 2])
    self.assertEqual(data["curve"]["steps"], [1, 2])
    self.assertGreater(data["curve"]["floor"], 1)

  def test_a_step_is_shown_with_what_came_before_it(self):
    path = self.run_.parent / "first.html"
    made = call("explain.py", f"--workdir={self.run_}", f"--output={path}", "--step=1")
    self.assertEqual(made.returncode, 0, made.stderr)
    data = read_data(path)
    self.assertEqual([step["step"] for step in data["steps"]], [0, 1])
    self.assertEqual(data["curve"]["steps"], [1])

  def test_a_damaged_newest_step_is_not_the_one_shown(self):
    with tempfile.TemporaryDirectory() as folder:
      run = pathlib.Path(shutil.copytree(self.run_, f"{folder}/run"))
      about = run / "checkpoints" / "2" / "about" / "metadata"
      about.write_bytes(about.read_bytes()[:-1])
      self.assertEqual(run_history(run).steps, [0, 1])
      self.assertEqual(run_history(run, 1).curve, run_history(run).curve)

  def test_prompt_and_output(self):
    path = self.run_.parent / "here.html"
    made = call(
      "explain.py",
      f"--workdir={self.run_}",
      f"--prompt=the cats that the dog sees {'. they sleep ' * 9}",
      f"--output={path}",
    )
    self.assertEqual(made.returncode, 0, made.stderr)
    data = read_data(path)
    names = [data["names"][str(i)] for i in data["tokens"]]
    self.assertEqual(names[:7], ["<s>", "the", "cats", "that", "the", "dog", "sees"])
    self.assertLen(names, 16)
    note = "The text has 34 tokens; the page shows the first 16."
    self.assertEqual(data["notes"][0], note)
    self.assertStartsWith(made.stdout, note)

  def test_bad_input_gives_one_line_and_writes_nothing(self):
    before = sorted(self.run_.parent.rglob("*.html"))
    for flags, message in (
      (["--prompt=unicorn"], "unknown word 'unicorn'"),
      (["--output=/no/such/x.html"], "--output=/no/such/x.html: there is no folder"),
    ):
      bad = call("explain.py", f"--workdir={self.run_}", *flags)
      self.assertEqual(bad.returncode, 2, bad.stderr)
      self.assertEqual(bad.stderr.count("\n"), 1, bad.stderr)
      self.assertIn(message, bad.stderr)
      self.assertEqual(bad.stdout, "")
    self.assertEqual(sorted(self.run_.parent.rglob("*.html")), before)
