"""The doors as a person runs them, one after the other, on a small trained run."""

import json
import math
import os
import pathlib
import pty
import subprocess
import tempfile

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_flax import pretrained
from gpt2_flax.training.source import load_run
from tests import forked
from tests.close import assert_close, ROUNDINGS

TEXT = "".join(f"{i}. Der Bär isst Brot, {i * i} Mal.\n" for i in range(120))

LONG = "x" * 300  # no name of a file can be


def call(
  door: str, *flags: str, stdin: str = "", stdout: int | None = None
) -> subprocess.CompletedProcess:
  return forked.finish(forked.start(door, *flags, stdout=stdout), stdin)


class DoorsTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.folder = pathlib.Path(folder)
    cls.text = cls.folder / "text.txt"
    cls.text.write_text(TEXT)
    cls.run_flag = f"--workdir={cls.folder / 'run'}"
    done = call(
      "train.py",
      "--config=configs/text.py",
      cls.run_flag,
      f"--config.data.path={cls.text}",
      "--config.data.tokenizer=bpe",
      "--config.data.bpe_vocab_size=300",
      "--config.model.context_length=16",
      "--config.model.num_layers=1",
      "--config.model.embed_dim=32",
      "--config.train.num_steps=20",
      "--config.eval.sample_tokens=0",
    )
    assert done.returncode == 0, done.stderr

  def test_same_seed_same_text(self):
    flags = ("--prompt=Der Bär", "--num_tokens=40", "--top_k=20", "--min_p=0.01")
    one, again, other = (
      call("sample.py", self.run_flag, *flags, f"--seed={seed}") for seed in (1, 1, 2)
    )
    self.assertEqual(one.returncode, 0, one.stderr)
    self.assertStartsWith(one.stdout, "Der Bär")
    self.assertEqual(one.stdout, again.stdout)
    self.assertNotEqual(one.stdout, other.stdout)
    self.assertRegex(one.stderr, r"^40 tokens in .* tokens/s\n$")

  @parameterized.parameters("evaluate", "export", "explain", "sample", "sweep", "train")
  @pytest.mark.slow  # CI runs train.py
  def test_each_starts_by_itself(self, door):
    flags = {
      "export": (self.run_flag, f"--output={self.folder / 'by_itself'}"),
      "sweep": ("--help",),
      "train": ("--help",),
    }
    given = flags.get(door, (self.run_flag,))
    done = forked.finish(forked.unforked(f"{door}.py", *given))
    self.assertEqual((done.returncode, done.stderr.count("Error")), (0, 0), done)

  def test_several_samples_from_a_prompt_on_stdin(self):
    made = call(
      "sample.py",
      self.run_flag,
      "--prompt_file=-",
      "--num_samples=3",
      "--num_tokens=5",
      stdin="Brot\x1b,",
    )
    self.assertEqual(made.returncode, 0, made.stderr)
    texts = made.stdout.split("\n---\n")
    self.assertLen(texts, 3)
    for text in texts:
      self.assertStartsWith(text, "Brot\x1b,")

  def test_a_terminal_is_shown_control_characters_as_escapes(self):
    ours, its_own = pty.openpty()
    self.addCleanup(os.close, ours)
    flags = ("--prompt=Brot\x1b[2J", "--num_tokens=1", "--temperature=0")
    made = call("sample.py", self.run_flag, *flags, stdout=its_own)
    os.close(its_own)
    self.assertEqual(made.returncode, 0, made.stderr)
    shown = os.read(ours, 1000).decode()
    self.assertStartsWith(shown, r"Brot\x1b[2J")
    self.assertNotIn("\x1b", shown)

  def test_loss_is_that_of_each_token_in_its_window(self):
    text = TEXT[:300]
    (self.folder / "part.txt").write_text(text)
    flags = (self.run_flag, f"--text={self.folder / 'part.txt'}", "--stride=4")
    results = [call("evaluate.py", *flags, f"--batch_size={size}") for size in (1, 5)]
    self.assertEqual(results[0].returncode, 0, results[0].stderr)
    found, other = (json.loads(r.stdout.splitlines()[-1]) for r in results)
    # a perplexity has as many roundings as its logarithm is large, below ln 300
    assert_close(found, other, 6 * ROUNDINGS, dtype=np.float32)

    model, params, tokenizer = load_run(self.folder / "run")
    apply, tokens = jax.jit(model.apply), tokenizer.encode(text)
    losses = []
    for target in range(1, len(tokens)):
      # the first window that has the target
      start = 0 if target <= 15 else 4 * math.ceil((target - 15) / 4)
      window = jnp.array([tokens[start : start + 16]])
      scores = np.asarray(apply(params, window), np.float64)[0, target - 1 - start]
      losses.append(np.log(np.exp(scores).sum()) - scores[tokens[target]])
    # the recipe's mean: of n new tokens in a window n - 1 count
    num_last = (len(tokens) - 16) % 4 or 4
    weights = np.full(len(losses), 3 / 4)
    weights[:15], weights[-num_last:] = 1, (num_last - 1) / num_last
    loss = np.average(losses, weights=weights)
    expected = {
      "loss": loss,
      "perplexity": math.exp(loss),
      "bits_per_byte": np.sum(losses) / len(text.encode()) / math.log(2),
      "tokens": len(tokens) - 1,
    }
    assert_close(found, expected, 6 * ROUNDINGS, dtype=np.float32)

  def test_a_text_from_stdin_is_that_of_the_file(self):
    path = self.folder / "mark.txt"
    path.write_text(f"\ufeff{TEXT[:90]}", "utf-8")
    file = call("evaluate.py", self.run_flag, f"--text={path}")
    stdin = call(
      "evaluate.py", self.run_flag, "--text=-", stdin=path.read_text("utf-8")
    )
    self.assertEqual(file.returncode, 0, file.stderr)
    self.assertEqual(file.stdout, stdin.stdout)
    self.assertIn(f" {len(TEXT[:90].encode())} bytes", file.stdout)

  def test_without_a_text_it_is_the_runs_validation_data(self):
    found = call("evaluate.py", self.run_flag)
    self.assertEqual(found.returncode, 0, found.stderr)
    lines = (self.folder / "run" / "metrics.jsonl").read_text().splitlines()
    reported = [loss for x in map(json.loads, lines) if (loss := x.get("val/loss"))][-1]
    loss, perplexity = round(reported, 5), round(math.exp(reported), 4)
    expected = {"loss": loss, "perplexity": perplexity}  # nobody knows a text's floor
    self.assertEqual(json.loads(found.stdout.splitlines()[-1]), expected)

    moved = self.text.rename(self.folder / "moved.txt")
    try:
      gone = call("evaluate.py", self.run_flag)
    finally:
      moved.rename(self.text)
    self.assertEqual(gone.returncode, 2, gone.stderr)
    self.assertIn("run are missing or have changed", gone.stderr)

  def export(self):
    exported = self.folder / "exported"
    if not exported.exists():
      done = call("export.py", self.run_flag, f"--output={exported}")
      self.assertEqual(done.returncode, 0, done.stderr)
    return exported

  def test_exported_weights_give_the_same(self):
    exported = self.export()
    flags = "--prompt=Der", "--temperature=0", "--num_tokens=12"
    own = call("sample.py", self.run_flag, *flags)
    theirs = call("sample.py", f"--pretrained={exported}", *flags)
    self.assertEqual(theirs.returncode, 0, theirs.stderr)
    self.assertEqual(theirs.stdout, own.stdout)
    tokens = jnp.arange(16)[None]
    model, params, _ = load_run(self.folder / "run")
    loaded, loaded_params = pretrained.load(exported)
    found = jax.jit(loaded.apply)(loaded_params, tokens)
    assert_close(found, jax.jit(model.apply)(params, tokens))

  @parameterized.parameters("exported", "run")
  @pytest.mark.slow  # training/test_source.py and test_finetune.py begin from both
  def test_fine_tuning_on_another_text_is_better_there_than_before(self, source):
    self.export()
    text, workdir = self.folder / "other.txt", self.folder / f"tuned-{source}"
    text.write_text("".join(f"{i}. Das Kind mag Käse, {i} Mal.\n" for i in range(99)))
    flags = (
      "--config=configs/finetune.py",
      f"--workdir={workdir}",
      f"--config.init_from={self.folder / source}",
      f"--config.data.path={text}",
      "--config.model.context_length=12",
      "--config.optimizer.learning_rate=0.003",
      "--config.train.num_steps=40",
      "--config.train.accumulation_steps=1",
      "--config.eval.every_steps=40",
    )
    tuned = call("train.py", *flags)
    self.assertEqual(tuned.returncode, 0, tuned.stderr)
    losses = []
    for model in (self.run_flag, f"--workdir={workdir}"):
      found = call("evaluate.py", model, f"--text={text}", "--stride=6")
      self.assertEqual(found.returncode, 0, found.stderr)
      losses.append(json.loads(found.stdout.splitlines()[-1])["loss"])
    self.assertLess(losses[1], losses[0] - 0.5)
    again = call("train.py", *flags)
    self.assertIn("goes on from step 40 of 40", again.stdout)

  @parameterized.parameters(
    ("sample.py", [], "give one of --workdir (a run) and --pretrained (weights)"),
    ("sample.py", ["--workdir=nope"], "nope holds no run"),
    ("sample.py", [f"--workdir={LONG}"], f"{LONG} holds no run"),
    ("export.py", ["RUN", f"--output={LONG}"], f"{LONG} cannot be written"),
    ("explain.py", ["RUN", f"--output={LONG}/x"], f"there is no folder {LONG}"),
    ("sample.py", ["--workdir=a", "--pretrained=b"], "give one of --workdir"),
    ("sample.py", ["RUN", "--top_p=0"], "top_p is 0.0: must be above 0"),
    ("sample.py", ["RUN", "--prompt_file=no.txt"], "--prompt_file: no.txt cannot"),
    ("sample.py", ["RUN", "--num_samples=0"], "--num_samples=0: must be at least 1"),
    ("export.py", ["RUN"], "--output has no value"),
    ("export.py", ["RUN", "--output=tests"], "tests is not empty: choose a new folder"),
    ("evaluate.py", [], "give one of --workdir (a run) and --pretrained (weights)"),
    ("evaluate.py", ["--pretrained=x"], "--text has no value: --pretrained weights"),
    ("evaluate.py", ["RUN", "--stride=4"], "--text has no value: --stride"),
    ("evaluate.py", ["RUN", "--text=no.txt"], "--text: no.txt cannot be read"),
    ("evaluate.py", ["RUN", "--text=-"], "--text: stdin is empty: must hold text"),
    ("evaluate.py", ["RUN", f"--text={__file__}", "--stride=99"], "stride is 99"),
  )
  def test_bad_input_gives_one_line(self, door, flags, message):
    flags = [self.run_flag if flag == "RUN" else flag for flag in flags]
    bad = call(door, *flags)
    self.assertEqual(bad.returncode, 2, bad.stderr)
    self.assertEqual(bad.stderr.count("\n"), 1, bad.stderr)
    self.assertIn(message, bad.stderr)
    self.assertEqual(bad.stdout, "")
