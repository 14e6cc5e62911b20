"""Several processes train as one does, and none of them is left behind."""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from gpt2_flax.errors import InputError, RunError
from gpt2_flax.training import processes
from gpt2_flax.training.source import load_run
from tests import forked
from tests.close import assert_close, ROUNDINGS
from tests.reliability.runs import checkpoint_steps, free_port

NUM_STEPS = 60
BATCH_SIZE = 8
TINY = (
  "--config.model.num_layers=1",
  "--config.model.embed_dim=16",
  "--config.model.num_heads=2",
  "--config.model.context_length=12",
  "--config.model.dropout_rate=0.1",
  "--config.optimizer.name=adamw",
  "--config.optimizer.learning_rate=0.002",
  f"--config.train.num_steps={NUM_STEPS}",
  f"--config.train.batch_size={BATCH_SIZE}",
  "--config.train.log_every_steps=5",
  "--config.eval.every_steps=30",
  "--config.eval.num_windows=20",
  "--config.eval.sample_tokens=2",
  "--config.checkpoint.every_steps=30",
)
# train.py, and a list of the training windows that it read
COUNTING = """
import runpy, sys
from gpt2_flax.datasets.dataset import ToyLanguage

window = ToyLanguage.window
listed = open(sys.argv.pop(1), "w", buffering=1)

def counted(self, split, index):
  if split == "train":
    print(index, file=listed)
  return window(self, split, index)

ToyLanguage.window = counted
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


def start(reads: pathlib.Path, *flags: str, num_devices: int = 1) -> forked.Process:
  arguments = "-c", COUNTING, str(reads), *TINY, *flags
  return forked.start(*arguments, **forked.on_devices(num_devices))


def records(workdir: pathlib.Path) -> list[dict]:
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def values(workdir: pathlib.Path, name: str) -> dict[int, float]:
  return {r["step"]: r[name] for r in records(workdir) if name in r}


class ProcessesTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def start_two(self, workdir: pathlib.Path, *flags: str) -> list[forked.Process]:
    port = free_port()
    both = [
      start(
        self.folder / f"reads{i}",
        f"--workdir={workdir}",
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
        f"--process_id={i}",
        *flags,
      )
      for i in range(2)
    ]
    for process in both:
      self.addCleanup(process.kill)
    return both

  def finish_two(
    self, workdir: pathlib.Path, *flags: str
  ) -> list[subprocess.CompletedProcess]:
    ended = [forked.finish(process) for process in self.start_two(workdir, *flags)]
    for process in ended:
      self.assertEqual(process.returncode, 0, process.stderr)
    return ended

  def signal_one(self, workdir: pathlib.Path, which: int, step: int, number: int):
    """Sends a signal to one of two processes after a step; how both ended."""
    both = self.start_two(workdir)
    path = workdir / "metrics.jsonl"
    while not (path.exists() and f'"step": {step},' in path.read_text()):
      for process in both:
        self.assertIsNone(process.poll(), "ended before it could be sent a signal")
      time.sleep(0.002)
    both[which].send_signal(number)
    return [forked.finish(process) for process in both]

  def reads(self, name: str) -> list[int]:
    return [int(line) for line in (self.folder / name).read_text().splitlines()]

  def test_two_processes_are_one_run_and_stop_after_the_same_step(self):
    one, two = self.folder / "one", self.folder / "two"
    alone = start(self.folder / "reads", f"--workdir={one}")
    first, second = self.stop_by_sigterm(two, 30)
    self.assertEqual(forked.finish(alone).returncode, 0)
    self.assert_same_losses(two, one, 30)

    # Each has read its half of each batch
    order = self.reads("reads")
    for i in range(2):
      half = [
        order[step * BATCH_SIZE + row]
        for step in range(30)
        for row in range(i * BATCH_SIZE // 2, (i + 1) * BATCH_SIZE // 2)
      ]
      self.assertEqual(self.reads(f"reads{i}")[: len(half)], half)

    # One of them speaks (gloo, which connects them, greets by itself)
    self.assertIn("2 device(s) of 2 process(es); starts at step 0", first.stdout)
    said = [line for line in second.stdout.splitlines() if "[Gloo]" not in line]
    self.assertEqual(said, [])

  @pytest.mark.slow
  def test_in_the_end_nothing_shows_that_anything_happened(self):
    devices, two, stopped = (
      self.folder / name for name in ("devices", "two", "stopped")
    )
    alone = start(self.folder / "reads", f"--workdir={devices}", num_devices=2)
    self.assertEqual(forked.finish(alone).returncode, 0)
    self.finish_two(two)
    self.assert_same_losses(two, devices, NUM_STEPS)

    # Stopped, killed (it takes the other with it, as does one that stalls: see
    # tests/reliability/stalls), and its newest checkpoint damaged
    self.stop_by_sigterm(stopped, 5)
    ended = self.signal_one(stopped, which=0, step=45, number=signal.SIGKILL)
    self.assertEqual(ended[0].returncode, -signal.SIGKILL)
    self.assertEqual(ended[1].returncode, 1)
    self.assertStartsWith(ended[1].stderr, "error: process 0 does not answer: ")
    *_, before, newest = checkpoint_steps(stopped)
    (stopped / "checkpoints" / str(newest) / "state" / "_METADATA").unlink()
    first, second = self.finish_two(stopped)
    self.assertIn(f"checkpoints/{newest} is damaged", first.stderr)
    self.assertNotIn("damaged", second.stderr)
    self.assertIn(f"goes on from step {before} ", first.stdout)

    for name in ("train/loss", "val/loss", "val/sample", "val/possible_share"):
      self.assertEqual(values(stopped, name), values(two, name))
    steps = [r["step"] for r in records(stopped) if "train/loss" in r]
    self.assertEqual(steps, list(range(5, NUM_STEPS + 1, 5)))
    _, expected, _ = load_run(two)
    _, params, _ = load_run(stopped)
    chex.assert_trees_all_equal(params, expected)

  def assert_same_losses(self, workdir: pathlib.Path, same: pathlib.Path, last: int):
    for name in ("train/loss", "val/loss", "val/floor"):
      expected, found = values(same, name), values(workdir, name)
      self.assertIn(last, found)
      expected = {step: value for step, value in expected.items() if step in found}
      if name == "val/floor":
        self.assertEqual(found, expected)
      else:
        assert_close(found, expected, 3 * ROUNDINGS, dtype="float32")

  def stop_by_sigterm(
    self, workdir: pathlib.Path, after: int
  ) -> list[subprocess.CompletedProcess]:
    ended = self.signal_one(workdir, which=1, step=after, number=signal.SIGTERM)
    for process in ended:
      self.assertEqual((process.returncode, process.stderr), (128 + 15, ""))
    self.assertRegex(ended[0].stdout, "stopped by SIGTERM after step ")
    step = int(ended[0].stdout.split("after step ")[1].split(";")[0])
    self.assertEqual(checkpoint_steps(workdir)[-1], step)
    self.assertLess(step, NUM_STEPS)
    return ended


SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "gpu[07-09],other",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
}


class FindProcessTest(chex.TestCase):
  def find(self, environment, *flags):
    with mock.patch.dict(os.environ, environment, clear=True):
      return processes.find_process(*flags)

  def test_by_default_a_process_is_on_its_own(self):
    self.assertIsNone(self.find({}, None, None, None))
    self.assertIsNone(self.find({}, "localhost:1234", 1, 0))
    for alone in ({"SLURM_NTASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "1"}):
      self.assertIsNone(self.find(SLURM | alone, None, None, None))

  def test_flags_say_it(self):
    expected = processes.Process("host:1234", 3, 2)
    self.assertEqual(self.find({}, "host:1234", 3, 2), expected)
    self.assertEqual(self.find(SLURM, "host:1234", 3, 2), expected)

  def test_slurm_says_it(self):
    process = self.find(SLURM, None, None, None)
    self.assertEqual(process, processes.Process("gpu07:61441", 4, 2, [0]))

  def test_an_environment_that_cannot_be_read(self):
    with self.assertRaisesRegex(InputError, "cannot be found out .*--coordinator"):
      self.find(SLURM | {"SLURM_NTASKS": "four"}, None, None, None)

  def test_a_shell_in_an_allocation_is_on_its_own(self):
    self.assertIsNone(
      self.find(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None, None, None)
    )

  def test_a_pod_is_on_its_own_unless_it_is_of_a_job(self):
    cluster = processes.clusters.ClusterEnv
    name, pod = "auto_detect_unset_distributed_params", {"KUBERNETES_SERVICE_HOST": "x"}
    with mock.patch.object(cluster, name, side_effect=RuntimeError("no such job")):
      self.assertIsNone(self.find(pod, None, None, None))
      with self.assertRaisesRegex(
        InputError, "cannot be found out .no such job.: give"
      ):
        self.find(pod | {"JOB_COMPLETION_INDEX": "0"}, None, None, None)

  @parameterized.parameters(
    (("host:1234", 2, 2), "--process_id=2: must be 0 to 1"),
    (("host:1234", 2, -1), "--process_id=-1: must be 0 to 1"),
    (("host:1234", 0, 0), "--num_processes=0: must be at least 1"),
    (("host", 2, 0), "--coordinator=host: must be HOST:PORT"),
    (("host:port", 2, 0), "--coordinator=host:port: must be HOST:PORT"),
    (("host:99999", 2, 0), "--coordinator=host:99999: must be HOST:PORT"),
    ((None, 2, 0), "--coordinator missing: .* go together"),
    (("host:1234", None, None), "--num_processes and --process_id missing"),
  )
  def test_refuses(self, flags, message):
    with self.assertRaisesRegex(InputError, message):
      self.find({}, *flags)


class AllTest(chex.TestCase):
  """One of two processes; what it hears of the other is made up."""

  def setUp(self):
    super().setUp()
    self.other, self.asked = True, []

    def gather(holds):
      self.asked.append(bool(holds))
      return np.array([holds, self.other])

    self.enterContext(mock.patch.object(jax, "process_count", return_value=2))
    gathers = mock.patch.object(processes.multihost_utils, "process_allgather", gather)
    self.enterContext(gathers)

  @parameterized.product(here=(True, False), there=(True, False))
  def test_everywhere_is_here_and_there(self, here, there):
    self.other = there
    self.assertEqual(processes.everywhere(here), here and there)

  def test_what_fails_here_is_told_and_raised(self):
    with self.assertRaisesRegex(ValueError, "ours"), processes.all_or_none():
      raise ValueError("ours")
    self.assertEqual(self.asked, [False])

  def test_what_fails_there_is_raised_here(self):
    with processes.all_or_none():
      pass
    self.other = False
    with self.assertRaisesRegex(RunError, "another process"), processes.all_or_none():
      pass
    self.assertEqual(self.asked, [True, True])


class MeetTest(chex.TestCase):
  @parameterized.parameters(0, 1)
  def test_nobody_waits_for_ever(self, process_id):
    process = processes.Process(f"localhost:{free_port()}", 2, process_id)
    code = (
      "from gpt2_flax.training import processes\n"
      "processes.MEET_SECONDS = 2\n"
      f"with processes.joined(processes.{process}): pass\n"
    )
    ended = forked.finish(forked.start("-c", code))
    self.assertEqual(ended.returncode, 1)
    line = f"error: 2 processes did not meet at {process.coordinator} within 2 s: "
    self.assertStartsWith(ended.stderr, line)
    self.assertEqual(ended.stderr.count("\n"), 1, ended.stderr)
