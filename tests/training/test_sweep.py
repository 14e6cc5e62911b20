"""Many runs as one: each is what it is alone, and none is run twice."""

import dataclasses
import functools
import pathlib
import shutil
import signal
import tempfile
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from gpt2_flax import GPT2, load
from gpt2_flax.errors import InputError, RunError
from gpt2_flax.training import loop, run, sweep
from gpt2_flax.training import workdir as workdir_module
from gpt2_flax.training.bad_steps import DivergedError
from gpt2_flax.training.checkpoints import Checkpoints
from gpt2_flax.training.run import Result
from gpt2_flax.training.sweep import Member, ROWS, run_sweep
from gpt2_flax.training.together import program
from gpt2_flax.training.workdir import locked
from tests.close import assert_close, ROUNDINGS
from tests.reliability.runs import checkpoint_steps, digest
from tests.training.sweeps import files, member, metrics, NUM_STEPS, rows, SAVE_EVERY

ONE, ONE_MORE = member(train__seed=0), member(train__seed=2)
# all that members of one program may differ in
DIFFERENT = dict(
  train__seed=1,
  optimizer__learning_rate=0.003,
  optimizer__weight_decay=0.5,
  optimizer__max_grad_norm=0.05,
  data__seed=5,
)
OTHER = member(**DIFFERENT)
DIVERGING = member(optimizer__learning_rate=1e38)
GOOD, TWO = (ONE, OTHER), (OTHER, DIVERGING)
THREE = (ONE, DIVERGING, OTHER)


def go(members, folder, together=4, **own):
  return run_sweep(members, folder, together=together, tell=lambda line: None, **own)


def without_key_bias(params):
  """A key's bias has no gradient but noise, which Adam makes as large as any step."""
  named = jax.tree.leaves_with_path(params)
  names = [jax.tree_util.keystr(path) for path, _ in named]
  return [
    leaf
    for name, (_, leaf) in zip(names, named, strict=True)
    if not name.endswith("['key']['bias']")
  ]


def happening(what, where, name, time):
  """Calls `what` before so manieth a call does anything."""
  whole, calls = getattr(where, name), []

  def once(*args, **named):
    calls.append(args)
    if len(calls) == time:
      what()
    return whole(*args, **named)

  return mock.patch.object(where, name, once)


ASKED = functools.partial(signal.raise_signal, signal.SIGINT)


class SweepTest(chex.TestCase):
  """The same members in turn and together, for all tests to look at."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.shared = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.turn, cls.together = cls.shared / "turn", cls.shared / "together"
    cls.told = []
    cls.found, cls.stopped_by = run_sweep(
      TWO, cls.turn, together=1, tell=cls.told.append
    )
    go(THREE, cls.together)

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def assert_same_bits(self, folder, expected, members=GOOD):
    for each in members:
      found, others = folder / each.name, expected / each.name
      self.assertEqual(digest(found), digest(others))
      self.assertEqual(metrics(found), metrics(others))
      self.assertEqual(rows(folder)[each.name], rows(expected)[each.name])

  # ---- What a member is --------------------------------------------------------------

  def test_in_turn_it_is_the_run_alone_bit_for_bit(self):
    alone = loop.train(OTHER.config, OTHER.dataset, self.folder)
    self.assertEqual(digest(self.turn / OTHER.name), digest(self.folder))
    self.assertEqual(metrics(self.turn / OTHER.name), metrics(self.folder))
    row = self.found[0]
    self.assertEqual(row["member"], OTHER.name)
    self.assertEqual((row["over"], row["step"]), (dict(OTHER.over), NUM_STEPS))
    for name in ("train/loss", "val/loss", "val/floor", "val/gap"):
      self.assertEqual(row[name], alone.metrics[name])
    model, params, _ = load(self.turn / OTHER.name)
    self.assertEqual(model.config, OTHER.config.model)
    self.assertEqual(row["num_params"], sum(x.size for x in jax.tree.leaves(params)))

  def test_together_they_are_the_runs_alone_up_to_rounding(self):
    found, alone = (metrics(f / OTHER.name) for f in (self.together, self.turn))
    self.assertEqual([r["step"] for r in found], [r["step"] for r in alone])
    for name in ("train/loss", "train/learning_rate", "val/loss", "val/gap"):
      values = [
        np.array([r[name] for r in records if name in r]) for records in (found, alone)
      ]
      assert_close(*values, 3 * ROUNDINGS, dtype=np.float32)
    params = [
      without_key_bias(load(folder / OTHER.name)[1])
      for folder in (self.together, self.turn)
    ]
    assert_close(*params, 16 * ROUNDINGS, dtype=np.float32)
    steps = [NUM_STEPS - SAVE_EVERY, NUM_STEPS]
    self.assertEqual(checkpoint_steps(self.together / OTHER.name), steps)
    self.assertTrue((self.together / OTHER.name / "loss.png").exists())

  @pytest.mark.slow  # a step under vmap knows of no other
  def test_what_one_does_is_nothing_to_the_others(self):
    go((ONE, ONE_MORE, OTHER), self.folder)  # in the place of the diverging one
    self.assert_same_bits(self.folder, self.together)

  def test_one_that_diverges_is_marked_and_not_run_again(self):
    self.assertIsNone(self.stopped_by)
    self.assertEqual(list(rows(self.turn)), [each.name for each in TWO])
    first = [DIVERGING.name, ONE.name, OTHER.name]
    self.assertEqual(list(rows(self.together)), first)
    for folder, members in ((self.turn, TWO), (self.together, THREE)):
      row = rows(folder)[DIVERGING.name]
      self.assertRegex(row["diverged"], "^the loss is nan .* at step 3: stopped before")
      self.assertNotIn("val/loss", row)
      self.assertEqual(checkpoint_steps(folder / DIVERGING.name), [])
      before = files(folder)
      again, _ = go(members, folder)
      names = [each.name for each in members]
      self.assertEqual([row["member"] for row in again], names)
      self.assertEqual(files(folder), before)

  def test_a_person_is_told_of_each(self):
    self.assertLen(self.told, 2)
    about = r"^1 of 2 members, about .* left: train.seed=1,learning_rate=0.003,.*"
    self.assertRegex(self.told[0], about + r"  val/loss \d.*  val/gap \d")
    self.assertRegex(self.told[1], r"^2 of 2 .*: learning_rate=1e\+38  diverged: the l")

  # ---- Going on ----------------------------------------------------------------------

  def test_together_it_stops_after_the_step_it_is_in_and_goes_on(self):
    # four steps of all, since a loss is read one step later: this is in the fifth
    with happening(ASKED, run.Run, "next_batch", 3 * 4 + 1):
      self.assertEqual(go(THREE, self.folder)[1], signal.SIGINT)
    self.assertEqual(list(rows(self.folder)), [DIVERGING.name])
    for each in GOOD:
      self.assertEqual(checkpoint_steps(self.folder / each.name), [SAVE_EVERY, 5])
    go(THREE, self.folder)
    self.assert_same_bits(self.folder, self.together)

  @pytest.mark.slow
  def test_together_it_goes_on_from_any_moment(self):
    # the last is one checkpoint behind
    failing = mock.Mock(side_effect=RunError("no space left"))
    with happening(failing, Checkpoints, "save", 4), self.assertRaises(RunError):
      go(THREE, self.folder)
    self.assertEqual(list(rows(self.folder)), [DIVERGING.name])
    self.assertEqual(checkpoint_steps(self.folder / OTHER.name), [SAVE_EVERY])
    self.assertEqual(checkpoint_steps(self.folder / ONE.name)[-1], 2 * SAVE_EVERY)
    # two are left: this is in their second step, which they finish
    with happening(ASKED, run.Run, "next_batch", 3):
      self.assertEqual(go(THREE, self.folder)[1], signal.SIGINT)
    self.assertEqual(list(rows(self.folder)), [DIVERGING.name])
    for each in GOOD:
      steps = [SAVE_EVERY, SAVE_EVERY + 2]
      self.assertEqual(checkpoint_steps(self.folder / each.name), steps)
    before = files(self.folder / DIVERGING.name)
    go(THREE, self.folder)
    self.assertEqual(files(self.folder / DIVERGING.name), before)
    self.assert_same_bits(self.folder, self.together)
    self.assertEqual(
      rows(self.folder)[DIVERGING.name], rows(self.together)[DIVERGING.name]
    )
    names = [path.name for path in self.folder.glob("*/checkpoints/*")]
    self.assertEqual({name.isdecimal() for name in names}, {True})

  @pytest.mark.slow  # PlannedTest has all of it but the training
  def test_it_grows_and_what_is_there_stays(self):
    folder = self.folder / "grown"
    shutil.copytree(self.together, folder)
    before = files(folder)
    found, _ = go((ONE_MORE, *THREE), folder)
    self.assertEqual(found[0]["member"], ONE_MORE.name)
    self.assertEqual(
      {name: files(folder)[name] for name in before} | {ROWS: 0}, before | {ROWS: 0}
    )

  def test_a_folder_without_its_row_has_only_its_row_made(self):
    folder = self.folder / "found"
    shutil.copytree(self.together, folder)
    (folder / ROWS).unlink()
    before = files(folder)
    go((ONE, OTHER), folder)
    self.assert_same_bits(folder, self.together, (ONE, OTHER))
    saved = {name for name in before if "checkpoints" in name}
    self.assertEqual(
      {name: files(folder)[name] for name in saved},
      {name: before[name] for name in saved},
    )

  def test_a_signal_that_comes_at_the_end_of_a_member_stops_the_sweep(self):
    def on_eval(which, step, model, params):
      del params
      self.assertEqual(which.name, ONE.name)
      self.assertIsInstance(model, GPT2)
      if step == NUM_STEPS:
        signal.raise_signal(signal.SIGTERM)
      return {"mine/step": step}

    found, stopped_by = go((ONE, OTHER), self.folder, on_eval=on_eval)
    self.assertEqual(stopped_by, signal.SIGTERM)
    self.assertEqual([row["mine/step"] for row in found], [NUM_STEPS])
    self.assertFalse((self.folder / OTHER.name).exists())
    found, stopped_by = go((ONE,), self.folder)
    self.assertIsNone(stopped_by)

  # ---- What is refused ---------------------------------------------------------------

  @parameterized.parameters(
    ({"eval__num_windows": 10}, "config.eval.num_windows was 20, is now 10"),
    ({"train__num_steps": 30}, "config.train.num_steps was 12, is now 30"),
    ({"optimizer__beta2": 0.5}, "config.optimizer.beta2 was 0.99, is now 0.5"),
  )
  def test_rows_of_another_config(self, changes, message):
    before = files(self.turn)
    changed = member(**{**DIFFERENT, **changes})
    other = Member(OTHER.over, changed.config, changed.dataset)
    with self.assertRaisesRegex(
      InputError, f"turn holds a sweep with another config, .* {message}$"
    ):
      go((ONE, other), self.turn, 1)
    self.assertEqual(files(self.turn), before)

  def test_another_sweep_at_work(self):
    before = files(self.turn)
    with (
      mock.patch.object(workdir_module, "LOCK_SECONDS", 0),
      locked(self.turn),
      self.assertRaisesRegex(InputError, "turn is in use by process"),
    ):
      go((ONE_MORE,), self.turn)
    self.assertEqual(files(self.turn), before)


def ended(step=NUM_STEPS, **named):
  return Result(step=step, metrics={"val/loss": 1.0, "val/sample": "a"}, **named)


DONE = ended(stopped_by=None)


class PlannedTest(chex.TestCase):
  """Which members run with which, when each ends as the test says."""

  def setUp(self):
    super().setUp()
    temporary = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(temporary) / "sweep"
    self.ends, self.planned = {}, []
    self.enterContext(mock.patch.object(sweep, "train_together", self.fake_together))
    self.enterContext(mock.patch.object(loop, "train", self.fake_train))

  def fake_together(self, configs, datasets, workdirs, on_end, progress, diverged=()):
    names = [workdir.name for workdir in workdirs]
    self.planned.append(["-" + n if i in diverged else n for i, n in enumerate(names)])
    for i, name in enumerate(names):
      end = self.ends.get(name, DONE)
      if i not in diverged and end is not None:
        on_end(i, end)

  def fake_train(self, config, dataset, workdir, **named):
    self.planned.append(workdir.name)
    end = self.ends.get(workdir.name, DONE)
    if isinstance(end, Exception):
      raise end
    return end

  def plan(self, members, together=4, **own):
    self.planned.clear()
    try:
      go(members, self.folder, together, **own)
    except RunError:
      self.planned.append("failed")
    return self.planned

  def begin(self, each):
    (self.folder / each.name / "checkpoints" / "5").mkdir(parents=True)

  SEEDS = tuple(member(train__seed=seed) for seed in range(5))

  def test_as_many_as_are_asked_for_and_alike(self):
    wide = member(model__embed_dim=8)
    members = (self.SEEDS[0], wide, *self.SEEDS[1:])
    expected = [["seed=0", "seed=1"], ["seed=2", "seed=3"], "seed=4", "embed_dim=8"]
    self.assertEqual(self.plan(members, 2), expected)
    self.assertEqual(self.plan(members, 2), [])
    self.assertEqual(
      list(rows(self.folder)), [f"seed={i}" for i in range(5)] + ["embed_dim=8"]
    )

  def test_in_turn(self):
    self.assertEqual(self.plan(self.SEEDS[:2], 1), ["seed=0", "seed=1"])

  @parameterized.parameters(
    ("cpu", {}, ["seed=0", "seed=1", "seed=2"]),
    ("gpu", {}, [["seed=0", "seed=1"], "seed=2"]),
    ("gpu", {"model": lambda config: GPT2(config)}, ["seed=0", "seed=1", "seed=2"]),
    ("gpu", {"on_eval": lambda *_: {}}, ["seed=0", "seed=1", "seed=2"]),
  )
  def test_unless_told_it_depends_on_the_device(self, backend, own, expected):
    with (
      mock.patch.object(jax, "default_backend", return_value=backend),
      mock.patch.object(sweep, "MOST_TOGETHER", 2),
    ):
      self.assertEqual(self.plan(self.SEEDS[:3], 0, **own), expected)

  def test_one_begun_goes_on_alone_and_no_other_waits_for_it(self):
    self.begin(self.SEEDS[1])
    self.begin(self.SEEDS[3])
    expected = [["seed=0", "seed=2", "seed=4"], "seed=1", "seed=3"]
    self.assertEqual(self.plan(self.SEEDS), expected)

  def test_an_interrupted_program_goes_on_with_the_same_members(self):
    bad = DivergedError("nan")
    self.ends = {"seed=0": bad, "seed=1": None, "seed=2": None}
    first, grown = self.SEEDS[:3], self.SEEDS
    self.plan(first)
    for each in first:
      self.begin(each)
    self.ends |= {"seed=1": DONE}
    expected = [["seed=3", "seed=4"], ["-seed=0", "seed=1", "seed=2"]]
    self.assertCountEqual(self.plan(grown), expected)
    # what has ended is not run again, and now nobody's bits depend on it
    self.ends = {}
    (self.folder / sweep.AT_WORK).write_text(
      '{"members": ["seed=0", "seed=1", "seed=2"]}'
    )
    self.assertEqual(self.plan(grown), [["-seed=0", "seed=2"]])
    self.assertEqual(self.plan(grown), [])

  def test_an_interrupted_program_may_be_told_to_go_on_in_turn(self):
    self.ends = {"seed=0": DivergedError("nan"), "seed=1": None, "seed=2": None}
    self.plan(self.SEEDS[:3])
    self.ends = {}
    self.assertEqual(self.plan(self.SEEDS[:3], 1), ["seed=1", "seed=2"])

  def test_what_is_no_divergence_stops_the_sweep(self):
    self.ends = {"seed=0": DivergedError("nan"), "seed=1": RunError("no space left")}
    expected = ["seed=0", "seed=1", "failed"]
    self.assertEqual(self.plan(self.SEEDS[:3], 1), expected)
    self.assertEqual([*rows(self.folder)], ["seed=0"])
    self.assertEqual(rows(self.folder)["seed=0"]["diverged"], "nan")

  def test_asked_to_stop_it_stops(self):
    stopped = ended(5, stopped_by=signal.SIGINT, asked_to_stop=signal.SIGINT)
    self.ends = {"seed=1": stopped}
    found, signalled = go(self.SEEDS[:3], self.folder, 1)
    self.assertEqual(signalled, signal.SIGINT)
    self.assertEqual([row["member"] for row in found], ["seed=0"])
    self.assertEqual([*rows(self.folder)], ["seed=0"])
    late = ended(stopped_by=None, asked_to_stop=signal.SIGINT)
    self.ends = {"seed=1": late}
    found, signalled = go(self.SEEDS[:2], self.folder, 1)
    self.assertIsNone(signalled)  # it was the last
    self.assertLen(found, 2)

  def test_a_model_of_ones_own_is_not_taken_for_another(self):
    def narrow(config):
      return GPT2(dataclasses.replace(config, mlp_dim=8))

    self.plan(self.SEEDS[:1], model=narrow)
    fewer = rows(self.folder)["seed=0"]["num_params"]
    with self.assertRaisesRegex(InputError, "that of seed=0 has changed"):
      go(self.SEEDS[:1], self.folder)
    self.folder = self.folder.parent / "other"
    self.plan(self.SEEDS[:1])
    # 64 features inside are 8: a row and a column each, and a bias
    all_of_them = rows(self.folder)["seed=0"]["num_params"]
    self.assertEqual(all_of_them - fewer, 56 * (16 + 16 + 1))

  @parameterized.parameters(
    ((ONE, ONE), {}, "seed=0 is there twice: must be once"),
    ((dataclasses.replace(ONE, over={}),), {}, "empty `over`: must say what makes it"),
    ((ONE,), {"together": -1}, "together is -1: must be 0 or more"),
    ((ONE, member(mesh__tensor=2)), {}, "mesh is data=-1, fsdp=1, tensor=2"),
    ((ONE, member(mesh__data=2)), {"together": 1}, "mesh is data=2"),
  )
  def test_refused_before_anything_is_written(self, members, own, message):
    with self.assertRaisesRegex(InputError, message):
      go(members, self.folder, **own)
    self.assertEqual(self.planned, [])
    self.assertFalse(self.folder.exists())

  @parameterized.parameters("member", "over", "config", "diverged", "seconds")
  def test_a_measure_with_the_name_of_what_a_row_has(self, name):
    def train(config, dataset, workdir, *, on_eval, **named):
      return ended(stopped_by=None, asked_to_stop=on_eval(5, None, None))

    with (
      mock.patch.object(loop, "train", train),
      self.assertRaisesRegex(InputError, f"a measure '{name}': must be none of member"),
    ):
      go(self.SEEDS[:1], self.folder, on_eval=lambda *_: {name: 1.0})


class MemberTest(chex.TestCase):
  @parameterized.parameters(
    ({"train.seed": 0, "optimizer.learning_rate": 0.02}, "seed=0,learning_rate=0.02"),
    ({"data.seed": 0, "train.seed": 1}, "data.seed=0,train.seed=1"),
    ({"data.path": "a/b, c=d%"}, "path=a%2Fb%2C%20c%3Dd%25"),
    ({"data.path": "a_b"}, "path=a_b"),
    (
      {"a.rate": 1e38, "a.on": True, "a.path": "../x.txt"},
      "rate=1e+38,on=True,path=..%2Fx.txt",
    ),
    ({"config": 4}, "config=4"),
  )
  def test_its_name(self, over, name):
    self.assertEqual(Member(over, ONE.config, ONE.dataset).name, name)

  def test_its_cost_grows_with_all_there_is_to_do(self):
    longer, wider = member(train__num_steps=2 * NUM_STEPS), member(model__embed_dim=32)
    self.assertEqual(longer.cost, 2 * ONE.cost)
    self.assertBetween(wider.cost, 2 * ONE.cost, 4 * ONE.cost)

  def test_what_may_share_a_program(self):
    self.assertEqual({program(each.config) for each in THREE}, {program(ONE.config)})
    for key, value in (
      ("train__num_steps", 30),
      ("optimizer__name", "lion"),
      ("optimizer__warmup_steps", 3),
      ("data__order", 1),
      ("checkpoint__every_steps", 7),
    ):
      other = program(member(**{key: value}).config)
      self.assertNotIn(other, (program(ONE.config), None))
    for changes in (
      {"mesh__fsdp": 2},
      {"mesh__tensor": 2},
      {"model__scan_layers": True},
      {"finetune__lora": "*"},
      {"finetune__layer_decay": 0.5},
    ):
      self.assertIsNone(program(member(**changes).config))
    from_weights = dataclasses.replace(ONE.config, init_from="a/model")
    self.assertIsNone(program(from_weights))
