"""`python train.py` as a person runs it: in a process of its own, and interrupted."""

import json
import math
import pathlib
import re
import signal
import tempfile

from absl.testing import parameterized
import chex
import pytest

from gpt2_flax.training import default_config
from tests import forked
from tests.reliability.runs import (
  checkpoint_steps,
  digest,
  records,
  TINY,
  train,
  train_to_the_end,
  when_trained,
)


class TrainTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    temporary = self.enterContext(tempfile.TemporaryDirectory())
    self.workdir = pathlib.Path(temporary) / "run"


class MainJobTest(TrainTest):
  def test_leaves_all_that_it_promises_and_goes_on_only_where_there_is_more(self):
    flags = "--config.eval.sample_tokens=4", "--config.checkpoint.every_steps=50"
    done = train_to_the_end(self.workdir, *flags)
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
    self.assertEqual(checkpoint_steps(self.workdir), [50, 100])

    before = (self.workdir / "metrics.jsonl").read_text()
    for asked, has_more in ((100, False), (60, True)):
      steps = f"--config.train.num_steps={asked}"
      again = train_to_the_end(self.workdir, *flags, steps)
      self.assertIn(f"goes on from step 100 of {asked}", again.stdout)
      said = "more steps than asked for: nothing is left to do\n" in again.stdout
      self.assertEqual(said, has_more)
    self.assertEqual((self.workdir / "metrics.jsonl").read_text(), before)

    measured = forked.finish(forked.start("evaluate.py", f"--workdir={self.workdir}"))
    self.assertEqual(measured.returncode, 0, measured.stderr)
    found = json.loads(measured.stdout.splitlines()[-1])
    reported = [record for record in records(self.workdir) if "val/gap" in record][-1]
    self.assertEqual(found.pop("perplexity"), round(math.exp(reported["val/loss"]), 4))
    names = ("loss", "floor", "gap")
    self.assertEqual(found, {name: round(reported[f"val/{name}"], 5) for name in names})

    heads = "--config.model.num_heads=4"
    other = train(*TINY, *flags, heads, f"--workdir={self.workdir}")
    self.assertEqual(other.returncode, 2)
    self.assertIn("config.model.num_heads was 2, is now 4", other.stderr)
    self.assertEqual((self.workdir / "metrics.jsonl").read_text(), before)

  @pytest.mark.slow  # reliability/test_rows.py damages each file
  def test_goes_on_from_the_checkpoint_before_a_damaged_one(self):
    flags = ("--config.checkpoint.every_steps=50",)
    train_to_the_end(self.workdir, *flags)
    expected = digest(self.workdir)
    for file in (self.workdir / "checkpoints" / "100" / "state").rglob("*"):
      if file.is_file():
        file.write_bytes(file.read_bytes()[:100])
    again = train(*TINY, *flags, f"--workdir={self.workdir}")
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertIn("checkpoints/100 is damaged, going on from", again.stderr)
    self.assertIn("goes on from step 50 of 100", again.stdout)
    self.assertEqual(digest(self.workdir), expected)

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


class MemoryTest(TrainTest):
  def test_comes_first_where_it_is_to_be_saved(self):
    given = "--xla_cpu_enable_fast_math=false"
    for remat in ("none", "scores", "dots"):
      flags = f"--config.model.remat={remat}", f"--workdir={self.workdir}"
      set_to = when_trained("os.environ['XLA_FLAGS']", *flags, XLA_FLAGS=given).split()
      saves = "--xla_cpu_enable_concurrency_optimized_scheduler=false" in set_to
      self.assertEqual(saves, remat != "none", set_to)
      self.assertIn(given, set_to)


class SignalTest(TrainTest):
  def test_before_the_first_step_ends_it_even_while_it_compiles(self):
    action = "signal.getsignal(signal.SIGTERM)"
    found = when_trained(action, f"--workdir={self.workdir}")
    self.assertEqual(found, str(signal.SIG_DFL))


class BadInputTest(TrainTest):
  @parameterized.parameters(
    (
      "--config.model.num_head=8",
      "'num_head': did you mean '--config.model.num_heads'",
    ),
    ("--config.num_steps=9", "'num_steps': did you mean '--config.train.num_steps'"),
    (
      "--num_steps=9",
      "unknown flag '--num_steps': did you mean '--config.train.num_st",
    ),
    ("--config.train.sed=1", "'sed': did you mean '--config.train.seed'? allowed"),
    ("--seed=1", "did you mean '--config.data.seed' or '--config.train.seed'?"),
    (
      "--config=toy",
      "no such file: did you mean configs/toy.py? there are configs/babel.py, ",
    ),
    (
      "--config=gpt:small",
      "gpt:small: no such file: did you mean configs/gpt2.py:small?",
    ),
    ("--config=xyzzy", "xyzzy: no such file: there are configs/babel.py, configs/d"),
    ("--confg=configs/toy.py", "'--confg': did you mean '--config'"),
    ("--config=configs/nope.py", "configs/nope.py: no such file"),
    ("--config=configs/gpt2.py:huge", "'huge': allowed: large, medium, small, xl"),
    ("--config=nope", "configs/text.py, configs/toy.py\n"),  # not train.py
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


class HelpTest(chex.TestCase):
  def helped(self, *flags):
    done = forked.finish(forked.start("train.py", *flags))
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(done.stderr, "")
    return re.findall(r"^  --config\.(\S+)=(\S*) *(.*)$", done.stdout, re.MULTILINE)

  def test_lists_each_key_of_the_config_with_its_comment(self):
    rows = self.helped("-h", "--config.model.num_heads=8")
    with_values = {key: value for key, value, _ in rows}
    sections = default_config.get_config().to_dict()
    keys = {f"{s}.{k}" for s, v in sections.items() if isinstance(v, dict) for k in v}
    self.assertEqual(with_values.keys(), keys | {"init_from", "profile"})
    self.assertEqual(with_values["model.num_heads"], "8")
    self.assertIn(("model.num_layers", "2", "blocks, one on top of the other"), rows)
    for key, _, comment in rows:
      self.assertGreater(len(comment), 5, key)

  def test_comments_of_a_config_that_changes_another(self):
    rows = self.helped("--help", "--config=configs/gpt2.py:small")
    path = 'UTF-8: a file, a folder, a glob "books/**/*.txt", a URL'
    self.assertIn(("data.path", "", path), rows)  # of the text's
    self.assertIn(("model.num_layers", "12", "blocks, one on top of the other"), rows)
    # what a key means, and not why this config sets it so
    self.assertIn(
      "endless", dict((row[0], row[2]) for row in rows)["model.dropout_rate"]
    )

  def test_a_config_that_is_not_there(self):
    done = forked.finish(forked.start("train.py", "--help", "--config=nope"))
    self.assertEqual(done.returncode, 2)
    self.assertStartsWith(done.stderr, "error: --config=nope: no such file: there are ")

  def test_other_doors(self):
    done = forked.finish(forked.start("sample.py", "--help"))
    self.assertEqual((done.returncode, done.stderr), (0, ""))
    self.assertIn("--top_k", done.stdout)
    self.assertNotIn("--config", done.stdout)
