"""`python train.py` as a person runs it: in a process of its own, and interrupted."""

import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from absl.testing import parameterized
import chex
import jax
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parent.parent
TINY = (
  "--config.model.num_layers=1",
  "--config.model.embed_dim=16",
  "--config.model.num_heads=2",
  "--config.model.context_length=12",
  "--config.model.dropout_rate=0.1",
  "--config.train.num_steps=100",
  "--config.train.batch_size=8",
  "--config.train.accumulation_steps=2",
  "--config.train.log_every_steps=5",
  "--config.eval.every_steps=20",
  "--config.eval.num_windows=20",
  "--config.eval.sample_tokens=4",
  "--config.checkpoint.every_steps=10",
)


def start(*flags: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, str(ROOT / "train.py"), *flags],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
  )


def train(*flags: str) -> subprocess.CompletedProcess:
  with start(*flags) as process:
    out, err = process.communicate(timeout=120)
  return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def records(workdir: pathlib.Path) -> list[dict]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def evaluations(workdir: pathlib.Path) -> list[dict]:
  return [record for record in records(workdir) if "val/loss" in record]


def final_state(workdir: pathlib.Path):
  """All arrays of the last checkpoint, and where it stands in the data."""
  checkpoint = workdir / "checkpoints" / "100"
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore((checkpoint / "state").absolute())
  state["rng"] = jax.random.key_data(state["rng"])
  about = json.loads((checkpoint / "about" / "metadata").read_text())
  return jax.device_get(state), about["data_position"]


class TrainTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.workdir = pathlib.Path(temporary.name) / "run"

  def run_to_the_end(self):
    done = train(*TINY, f"--workdir={self.workdir}")
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(done.stderr, "")
    return done

  def stop_when(self, happened, number: signal.Signals):
    """Starts a run, sends it a signal once it has got somewhere, says how it ended."""
    with start(*TINY, f"--workdir={self.workdir}") as process:
      while not happened(self.workdir):
        self.assertIsNone(process.poll(), "ended before it could be stopped")
        time.sleep(0.002)
      process.send_signal(number)
      out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


class MainJobTest(TrainTest):
  def test_leaves_all_that_it_promises_and_runs_only_once(self):
    done = self.run_to_the_end()
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
        self.assertAlmostEqual(record["val/gap"], gap, places=12)
        self.assertGreater(gap, 0)
    kept = sorted(p.name for p in (self.workdir / "checkpoints").iterdir())
    self.assertEqual(kept, ["100", "90"])

    before = (self.workdir / "metrics.jsonl").read_text()
    again = self.run_to_the_end()
    self.assertIn("goes on from step 100 of 100", again.stdout)
    self.assertEqual((self.workdir / "metrics.jsonl").read_text(), before)

    other = train(*TINY, f"--workdir={self.workdir}", "--config.model.num_heads=4")
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
    kept = [int(p.name) for p in (self.workdir / "checkpoints").iterdir()]
    self.assertEqual(max(kept), named - 1)
    self.assertIn(f"last good checkpoint: step {named - 1}", run.stderr)


def logged(step: int):
  def happened(workdir: pathlib.Path) -> bool:
    path = workdir / "metrics.jsonl"
    return path.exists() and f'"step": {step},' in path.read_text()

  return happened


def saving(step: int):
  """As soon as anything of this checkpoint is there, which is before it is whole."""

  def happened(workdir: pathlib.Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.exists() and any(
      path.name.split(".")[0] == str(step) for path in folder.iterdir()
    )

  return happened


class InterruptedTest(TrainTest):
  """Killed at any moment and started again, a run ends as if never interrupted."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    with tempfile.TemporaryDirectory() as folder:
      workdir = pathlib.Path(folder) / "run"
      assert train(*TINY, f"--workdir={workdir}").returncode == 0
      cls.expected_state = final_state(workdir)
      cls.expected_evaluations = evaluations(workdir)

  @parameterized.named_parameters(
    ("before_the_first_step", [(pathlib.Path.exists, signal.SIGKILL)]),
    ("during_a_save", [(saving(20), signal.SIGKILL)]),
    ("twice", [(logged(15), signal.SIGKILL), (logged(25), signal.SIGKILL)]),
    ("asked_to_stop", [(logged(15), signal.SIGTERM)]),
    ("by_hand_then_killed", [(logged(5), signal.SIGINT), (saving(30), signal.SIGKILL)]),
  )
  def test_ends_bit_identical_after(self, moments):
    for happened, number in moments:
      ended = self.stop_when(happened, number)
      if number == signal.SIGKILL:
        self.assertEqual(ended.returncode, -signal.SIGKILL)
      else:
        self.assertEqual(ended.returncode, 128 + number)
        self.assertIn(f"stopped by {number.name} after step", ended.stdout)
        self.assertEqual(ended.stderr, "")
    self.run_to_the_end()
    chex.assert_trees_all_equal(final_state(self.workdir), self.expected_state)
    self.assertEqual(evaluations(self.workdir), self.expected_evaluations)

  def test_a_second_signal_ends_it_at_once(self):
    with start(*TINY, f"--workdir={self.workdir}") as process:
      # compiling comes next, during which nobody listens
      while not self.workdir.exists():
        time.sleep(0.002)
      process.send_signal(signal.SIGTERM)
      time.sleep(0.1)
      process.send_signal(signal.SIGTERM)
      process.communicate(timeout=60)
    self.assertEqual(process.returncode, 128 + signal.SIGTERM)


class DamagedTest(TrainTest):
  def test_goes_on_from_the_checkpoint_before_a_damaged_one(self):
    self.run_to_the_end()
    expected = final_state(self.workdir)
    for file in (self.workdir / "checkpoints" / "100" / "state").rglob("*"):
      if file.is_file():
        file.write_bytes(file.read_bytes()[:100])
    again = train(*TINY, f"--workdir={self.workdir}")
    self.assertEqual(again.returncode, 0, again.stderr)
    self.assertIn("checkpoints/100 is damaged, going on from", again.stderr)
    self.assertIn("goes on from step 90 of 100", again.stdout)
    chex.assert_trees_all_equal(final_state(self.workdir), expected)


class BadInputTest(TrainTest):
  @parameterized.parameters(
    ("--config.model.num_head=8", "'num_head': did you mean 'num_heads'"),
    ("--confg=configs/toy.py", "'--confg': did you mean '--config'"),
    ("--config=configs/nope.py", "configs/nope.py: no such file"),
    ("--config=configs/gpt2.py:huge", "'huge': allowed: large, medium, small, xl"),
    ("--config.train.num_steps=many", "'many': must be an integer"),
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
