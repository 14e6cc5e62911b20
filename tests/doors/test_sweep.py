"""`python sweep.py` as a person runs it: in a process of its own, and interrupted."""

import json
import pathlib
import signal
import tempfile

from absl.testing import parameterized
import chex
import pytest

from gpt2_flax.training.sweep import AT_WORK, ROWS
from tests import forked
from tests.reliability.runs import (
  complaints,
  digest,
  logged,
  saving,
  TINY,
  wait_for,
)
from tests.training.sweeps import files, metrics, rows

MEMBERS = """
import json, sys
from absl import flags
from gpt2_flax.doors import config_flag, sweep

flags.FLAGS(["sweep.py", *config_flag.config_first(sys.argv[1:])])
for member in sweep._members():
  values = member.config.to_dict()
  print(json.dumps([member.name, dict(member.over), values, id(member.dataset)]))
"""


def start(*flags: str, **environment: str) -> forked.Process:
  return forked.start("sweep.py", *flags, **environment)


def sweep(*flags: str, **environment: str):
  return forked.finish(start(*flags, **environment))


class SweepTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    temporary = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(temporary) / "sweep"


ENDED = """
import signal, sys
from gpt2_flax.doors import command_line, sweep as door
from gpt2_flax.training import sweep

def run_sweep(members, folder, together):
  folder.mkdir()
  rows = [
    {"member": m.name, "over": dict(m.over), "val/loss": 1.0 + 2 * i, "val/gap": 0.5}
    for i, m in enumerate(members)
  ]
  return rows, signal.SIGTERM if together == 3 else None

sweep.run_sweep = run_sweep
command_line.run(door.main)
"""


class EndTest(SweepTest):
  @parameterized.parameters(2, 3)
  def test_leaves_a_table_and_a_picture_also_when_it_is_stopped(self, together):
    flags = "--over=train.seed=0:2", f"--together={together}"
    workdir = f"--workdir={self.folder}"
    ended = forked.finish(forked.start("-c", ENDED, *TINY, *flags, workdir))
    self.assertEqual(complaints(ended), [])
    table = (self.folder / "summary.md").read_text()
    self.assertIn("| 2     | 2.0000 ± 1.0000 | 0.5000 ± 0.0000 |", table)
    self.assertStartsWith(ended.stdout, f"\n{table}")
    self.assertEqual((self.folder / "sweep.png").read_bytes()[1:4], b"PNG")
    if together == 3:
      said = "stopped by SIGTERM; the same command goes on from there\n"
      self.assertEqual(ended.returncode, 128 + 15)
    else:
      said = "summary.md, sweep.png, rows.jsonl, and a folder a run\n"
      self.assertEqual(ended.returncode, 0)
    self.assertEndsWith(ended.stdout, said)


class InterruptedTest(SweepTest):
  def go(self, *flags):
    done = sweep(*TINY, *flags, f"--workdir={self.folder}")
    self.assertEqual((done.returncode, complaints(done)), (0, []), done)
    return done.stdout

  def stop(self, number, member, moment, *flags):
    process = start(*TINY, *flags, f"--workdir={self.folder}")
    wait_for(moment, self.folder / member, process)
    process.send_signal(number)
    return forked.finish(process)

  @pytest.mark.slow  # training/test_sweep.py stops it at any member
  def test_asked_to_stop_it_goes_on(self):
    seldom = [f"--config.{what}.every_steps=50" for what in ("checkpoint", "eval")]
    flags = "--over=train.seed=0:2", *seldom
    stopped = self.stop(signal.SIGTERM, "seed=1", logged(30), *flags)
    before = files(self.folder / "seed=0")
    self.assertEqual((stopped.returncode, complaints(stopped)), (143, []))
    said = "stopped by SIGTERM; the same command goes on from there\n"
    self.assertEndsWith(stopped.stdout, said)
    self.assertIn("| 1     |", (self.folder / "summary.md").read_text())
    said = self.go(*flags)
    self.assertStartsWith(said, "2 of 2 members: seed=1  val/loss ")
    self.assertEqual(files(self.folder / "seed=0"), before)
    names = {path.name for path in self.folder.iterdir()}
    made = {"summary.md", "sweep.png", ROWS}
    self.assertEqual(names, {"seed=0", "seed=1", *made})
    self.assertEqual((self.folder / "sweep.png").read_bytes()[1:4], b"PNG")
    self.assertIn((self.folder / "summary.md").read_text(), said)
    self.assertIn("summary.md, sweep.png, rows.jsonl, and a folder a run", said)

  @pytest.mark.slow  # training/test_sweep.py stops it at any member
  def test_killed_it_goes_on(self):
    seeds = "--over=train.seed=0:2"
    killed = self.stop(signal.SIGKILL, "seed=1", saving(10), seeds)
    self.assertEqual(killed.returncode, -signal.SIGKILL)
    before = files(self.folder / "seed=0")
    self.assertStartsWith(self.go(seeds), "2 of 2 members: seed=1  val/loss ")
    self.assertEqual(files(self.folder / "seed=0"), before)

  @pytest.mark.slow  # the same, within a process: tests/training/test_sweep.py
  def test_killed_together_it_ends_with_the_same_bits(self):
    flags = "--over=train.seed=0:3", "--over=optimizer.learning_rate=0.01,1e38"
    self.go(*flags, "--together=6")
    expected, self.folder = self.folder, self.folder.with_name("killed")
    moments = saving(10), saving(30), logged(55), saving(90), saving(100)
    for number, moment in enumerate(moments):
      name = f"seed={number % 3},learning_rate=0.01"
      self.stop(signal.SIGKILL, name, moment, *flags, "--together=6")
      self.assertTrue((self.folder / AT_WORK).exists())
    self.go(*flags, "--together=6")
    self.assertEqual(rows(self.folder), rows(expected))
    for name, row in rows(expected).items():
      if "diverged" not in row:
        self.assertEqual(digest(self.folder / name), digest(expected / name))
        self.assertEqual(metrics(self.folder / name), metrics(expected / name))

  @pytest.mark.slow  # so is this
  def test_together_asked_to_stop_it_goes_on(self):
    flags = "--over=train.seed=0:2", "--together=2"
    stopped = self.stop(signal.SIGINT, "seed=1", logged(35), *flags)
    self.assertEqual((stopped.returncode, complaints(stopped)), (130, []))
    self.assertEqual(
      stopped.stdout, "stopped by SIGINT; the same command goes on from there\n"
    )
    self.assertRegex(self.go(*flags), "1 of 2 .*\n2 of 2 members: seed=1")
    self.assertEqual(list(rows(self.folder)), ["seed=0", "seed=1"])


class BadInputTest(SweepTest):
  @parameterized.parameters(
    ((), "--over is missing: must be given, as in --over=train.seed=0:8"),
    (("--over=train.seed",), "--over=train.seed: must be KEY=VALUES, as in train.s"),
    (("--over==1,2",), "--over==1,2: must be KEY=VALUES"),
    (("--over=train.sed=1",), "'sed': did you mean '--config.train.seed'"),
    (("--over=train.seed=3:3",), "--over=train.seed=3:3: 3 must be below 3"),
    (("--over=train.seed=0,x",), "config.train.seed is 'x': must be an integer"),
    (
      ("--over=train.seed=1,,2",),
      "--over=train.seed=: --config.train.seed has no value",
    ),
    (("--over=train=1",), "--over=train=1: --config.train is a section"),
    (("--over=train.seed=1,1",), "seed=1 is there twice: must be once"),
    (
      ("--over=train.seed=1", "--over=train.seed=2"),
      "--over=train.seed=... is given twice: must be given once",
    ),
    (
      ("--over=model.embed_dim=64,65",),
      "embed_dim is 65: must be divisible by model.n",
    ),
    (("--over=config=1,2",), "takes no '1'"),
    (("--over=train.seed=0:99999",), "makes too many runs: must be 10,000 at most"),
    (("--over=train.seed=0:2", "--config.mesh.tensor=3"), "mesh is data=-1, fsdp=1, t"),
    (("--over=train.seed=0:2", "--together=-2"), "together is -2: must be 0 or more"),
    (("--over=train.seed=0:2", "--import=no.such"), "--import=no.such: No module name"),
  )
  def test_gives_one_line_and_writes_nothing(self, flags, message):
    run = sweep(f"--workdir={self.folder}", *flags)
    self.assertEqual(run.returncode, 2, run.stderr)
    self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
    self.assertStartsWith(run.stderr, "error: ")
    self.assertIn(message, run.stderr)
    self.assertEqual(run.stdout, "")
    self.assertFalse(self.folder.exists())

  def test_its_mesh_gets_the_devices_that_it_asks_for(self):
    flags = (
      f"--workdir={self.folder}",
      "--over=train.seed=0:2",
      "--config.mesh.tensor=3",
    )
    run = sweep(*flags, JAX_NUM_CPU_DEVICES="-1")  # as where nobody says their number
    self.assertEqual(run.returncode, 2, run.stderr)
    self.assertIn("num_heads is 4: must be divisible by mesh.tensor", run.stderr)


class MembersTest(chex.TestCase):
  def members(self, *flags):
    done = forked.finish(forked.start("-c", MEMBERS, *flags))
    self.assertEqual(done.returncode, 0, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]

  def test_each_value_of_each_key(self):
    found = self.members(
      "--over=model.feed_forward=true,false",
      "--over=optimizer.name=lion,muon",
      "--over=train.seed=8:10",
      "--over=optimizer.learning_rate=0.01,1",
      "--config.train.num_steps=7",
    )
    self.assertLen(found, 16)
    name, over, config, _ = found[1]
    self.assertEqual(name, "feed_forward=True,name=lion,seed=8,learning_rate=1.0")
    expected = {
      "model.feed_forward": True,
      "optimizer.name": "lion",
      "train.seed": 8,
      "optimizer.learning_rate": 1.0,
    }
    self.assertEqual(over, expected)
    for key, value in {**expected, "train.num_steps": 7}.items():
      section, _, leaf = key.partition(".")
      self.assertEqual(config[section][leaf], value)
    self.assertEqual(found[-1][2]["model"]["feed_forward"], False)
    self.assertLen({dataset for *_, dataset in found}, 1)  # one for all

  def test_the_argument_of_a_config_and_what_else_is_changed(self):
    found = self.members(
      "--config=configs/depth.py",
      "--config.train.num_steps=7",
      "--config.model.num_heads=1",
      "--over=data.seed=0,1",
      "--over=config=1,2",
    )
    self.assertEqual(
      [name for name, *_ in found],
      ["seed=0,config=1", "seed=0,config=2", "seed=1,config=1", "seed=1,config=2"],
    )
    configs = [config for _, _, config, _ in found]
    self.assertEqual([c["model"]["num_layers"] for c in configs], [1, 2, 1, 2])
    self.assertEqual([c["data"]["seed"] for c in configs], [0, 0, 1, 1])
    for config in configs:
      self.assertEqual(config["train"]["num_steps"], 7)
      self.assertEqual(config["model"]["num_heads"], 1)
    self.assertLess(configs[0]["model"]["embed_dim"], configs[1]["model"]["embed_dim"])
    self.assertEqual(found[0][1], {"data.seed": 0, "config": 1})
    datasets = [dataset for *_, dataset in found]
    self.assertEqual(datasets[0] == datasets[2], False)


class HelpTest(chex.TestCase):
  def test_nobody_reads_to_its_end(self):
    for door in ("sweep.py", "train.py"):
      with (
        forked.unread() as stdout,
        forked.start(door, "--help", stdout=stdout) as helped,
      ):
        self.assertEqual(helped.stderr.read(), "")
      self.assertEqual(helped.returncode, 128 + signal.SIGPIPE)
