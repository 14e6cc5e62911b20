"""`python train.py` as a person runs it: in a process of its own, and interrupted."""

import pathlib
import tempfile

from absl.testing import parameterized
import chex

from tests.reliability.runs import (
  checkpoint_steps,
  digest,
  records,
  TINY,
  train,
  train_to_the_end,
)


class TrainTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    temporary = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(temporary) / "run"


class MainJobTest(TrainTest):
  def test_leaves_all_that_it_promises_and_runs_only_once(self):
    sampled = "--config.eval.sample_tokens=4"
    done = train_to_the_end(self.workdir, sampled)
    for word in ("done: 100 steps", "floor", "gap", "step 100", "writes:"):
      self.assertIn(word, done.stdout)
    names = {path.name for path in self.workdir.iterdir()}
    expected = {"config.json", "tokenizer.json", "metrics.jsonl", "tensorboard"}
    self.assertEqual(names, expected | {"loss.png", "checkpoints"})
    self.assertEqual((self.workdir / "loss.png").read_bytes()[1:4], b"PNG")
    found = {key for record in records(self.workdir) for key in record}
    wanted = {"step", "train/loss", "val/loss", "val/floor", "val/gap"}
    self.assertLessEqual(wanted | {"tokens_per_second", "data_wait_share"}, found)
    for record in records(self.workdir):
      if "val/gap" in record:
        gap = record["val/loss"] - record["val/floor"]
        self.assertEqual(record["val/gap"], gap)
        self.assertGreater(gap, 0)
    self.assertEqual(checkpoint_steps(self.workdir), [90, 100])

    before = (self.workdir / "metrics.jsonl").read_text()
    again = train_to_the_end(self.workdir, sampled)
    self.assertIn("goes on from step 100 of 100", again.stdout)
    self.assertEqual((self.workdir / "metrics.jsonl").read_text(), before)

    heads = "--config.model.num_heads=4"
    other = train(*TINY, sampled, heads, f"--workdir={self.workdir}")
    self.assertEqual(other.returncode, 2)
    self.assertIn("config.model.num_heads was 2, is now 4", other.stderr)
    self.assertEqual((self.workdir / "metrics.jsonl").read_text(), before)

  def test_a_loss_that_is_not_finite_stops_the_run(self):
    run = train(
      *TINY,
      f"--workdir={self.workdir}",
      "--config.optimizer.learning_rate=1e38",
      "--config.optimizer.warmup_steps=3",
      "--config.checkpoint.every_steps=1",
      "--config.checkpoint.keep=100",
    )
    self.assertEqual(run.returncode, 1)
    self.assertEqual(run.stderr.count("\n"), 1)
    self.assertRegex(run.stderr, r"error: the loss is nan .* at step \d+: stopped")
    named = int(run.stderr.split("at step ")[1].split(":")[0])
    self.assertEqual(checkpoint_steps(self.workdir)[-1], named - 1)
    self.assertIn(f"last good checkpoint: step {named - 1}", run.stderr)


class DamagedTest(TrainTest):
  def test_goes_on_from_the_checkpoint_before_a_damaged_one(self):
    train_to_the_end(self.workdir)
    expected = digest(self.workdir)
    for file in (self.workdir / "checkpoints" / "100" / "state").rglob("*"):
      if file.is_file():
        file.write_bytes(file.read_bytes()[:100])
    again = train(*TINY, f"--workdir={self.workdir}")
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertIn("checkpoints/100 is damaged, going on from", again.stderr)
    self.assertIn("goes on from step 90 of 100", again.stdout)
    self.assertEqual(digest(self.workdir), expected)


class BadInputTest(TrainTest):
  @parameterized.parameters(
    ("--config.model.num_head=8", "'num_head': did you mean 'num_heads'"),
    ("--confg=configs/toy.py", "'--confg': did you mean '--config'"),
    ("--config=configs/nope.py", "configs/nope.py: no such file"),
    ("--config=configs/gpt2.py:huge", "'huge': allowed: large, medium, small, xl"),
    ("--config.train.num_steps=many", "'many': must be an integer"),
    ("--config.=8", "unknown key in config ''"),
    ("--config.model.num_heads.x=8", "model.num_heads is a value, not a section"),
    ("--config.model.embed_dim=65", "65: must be divisible by model.num_heads"),
    ("--config.mesh.tensor=3", "must be the number of devices, which is 1"),
    ("--workdir=/proc/run", "--workdir=/proc/run cannot be written"),
    ("toy.py", "unexpected argument 'toy.py'"),
  )
  def test_gives_one_line_and_writes_nothing(self, flag, message):
    run = train(f"--workdir={self.workdir}", flag)
    self.assertEqual(run.returncode, 2, run.stderr)
    self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
    self.assertStartsWith(run.stderr, "error: ")
    self.assertIn(message, run.stderr)
    self.assertEqual(run.stdout, "")
    self.assertFalse(self.workdir.exists())
