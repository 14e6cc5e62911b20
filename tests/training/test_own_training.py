"""A loss, an optimizer, measures and a writer of one's own."""

import dataclasses
import json
import pathlib
import tempfile

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import toy
from gpt2_flax import GPT2, GPT2Config, load, steps
from gpt2_flax.errors import InputError
from gpt2_flax.training import loop
from gpt2_flax.training.config import OptimizerConfig
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.loss import summed_loss
from gpt2_flax.training.mesh import one_device_mesh
from gpt2_flax.training.optimizer import learning_rate_schedule, make_optimizer
from gpt2_flax.training.report import checked_measures
from gpt2_flax.training.step import abstract_state, init_state
from tests.close import assert_close
from tests.params import random_params


def with_penalty(model, params, batch, rngs):
  """Cross-entropy, and a hundredth of a square of each weight of the final norm."""
  total, count = summed_loss(model, params, batch, rngs)
  scale = params["params"]["final_norm"]["scale"]
  return total + 0.01 * count * jnp.sum(scale**2), count


def another_loss(model, params, batch, rngs):
  total, count = summed_loss(model, params, batch, rngs)
  return 2 * total, count


class Doubled(GPT2):
  """Of twice the features inside its feed-forwards."""

  @classmethod
  def of(cls, config):
    return cls(dataclasses.replace(config, mlp_dim=2 * 4 * config.embed_dim))


def doubled(config):
  return Doubled.of(config)


class Recorder:
  """A writer that keeps what it is given."""

  def __init__(self):
    self.records = []

  def __call__(self, step, values):
    self.records.append({"step": step, **values})


def on_eval(step, model, params):
  logits = jax.jit(model.apply)(params, np.zeros((1, 2), np.int32))
  return {"mine/first_logit": logits[0, 0, 0], "mine/step": step}


class OwnTrainingTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def train(self, name, num_steps=6, keep_steps="", **own):
    config = toy.get_config()
    config.model.update(num_layers=1, num_heads=2, embed_dim=8, context_length=8)
    config.train.update(num_steps=num_steps, batch_size=8, log_every_steps=1)
    config.eval.update(num_windows=8, sample_tokens=0, every_steps=3)
    config.checkpoint.update(every_steps=6, keep_steps=keep_steps)
    config.optimizer.update(name="adamw", learning_rate=0.01, warmup_steps=2)
    experiment, self.dataset = parse(config)
    return loop.train(experiment, self.dataset, str(self.folder / name), **own)

  def records(self, name):
    lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]

  def own(self):
    return dict(
      keep_steps="0,1,5",
      loss=with_penalty,
      optimizer=optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)),
      on_eval=on_eval,
      write=Recorder(),
    )

  def test_all_of_them_land_where_they_should(self):
    whole = self.own()
    self.train("whole", **whole)
    model, params, _ = load(self.folder / "whole")
    self.assertEqual(steps(self.folder / "whole"), [0, 1, 5, 6])

    records = self.records("whole")
    self.assertEqual(whole["write"].records, records)
    measured = [r for r in records if "mine/step" in r]
    self.assertEqual([r["mine/step"] for r in measured], [3, 6])
    found = on_eval(6, model, params)["mine/first_logit"]
    assert_close(measured[-1]["mine/first_logit"], found)
    self.assertNotIn("train/learning_rate", records[0])
    # the objective is the loss, and the penalty
    norm = params["params"]["final_norm"]["scale"]
    penalty = 0.01 * float(jnp.sum(norm**2))
    last = measured[-1]
    assert_close(
      np.float32(last["val/objective"]), np.float32(last["val/loss"] + penalty)
    )
    self.assertAlmostEqual(last["val/gap"], last["val/loss"] - last["val/floor"])

  @pytest.mark.slow  # test_a_model_of_ones_own... goes on; bits: doors/test_train.py
  def test_with_all_of_them_it_goes_on_bit_for_bit(self):
    self.train("whole", **self.own())
    self.train("parts", num_steps=3, **self.own())
    self.train("parts", num_steps=6, **self.own())
    for step in (1, 6):
      _, expected, _ = load(self.folder / "whole", step)
      _, found, _ = load(self.folder / "parts", step)
      chex.assert_trees_all_equal(found, expected)

  def test_the_loss_is_what_is_descended_and_the_folder_says_so_from_the_start(self):
    with self.assertRaisesRegex(InputError, "measure 'val/loss': must be a text"):
      self.train(
        "run", num_steps=2, loss=another_loss, on_eval=lambda *_: {"val/loss": 1.0}
      )
    first = self.records("run")[0]["train/loss"]  # twice that of a model that guesses
    self.assertAlmostEqual(first / 2, np.log(self.dataset.tokenizer.vocab_size), 0)
    own = json.loads((self.folder / "run" / "config.json").read_text())["own"]
    self.assertRegex(own["loss"], r"test_own_training(\.py)?:another_loss$")
    for other, named in ((with_penalty, "'with_penalty'"), (summed_loss, "None")):
      with self.assertRaisesRegex(
        InputError, f"config.own.loss was 'another_loss', is now {named}"
      ):
        self.train("run", num_steps=4, loss=other)
    with self.assertRaisesRegex(InputError, "own.optimizer was None, is now 'opt"):
      self.train("run", num_steps=4, loss=another_loss, optimizer=optax.sgd(0.1))

  def test_a_model_of_ones_own_is_what_is_trained_and_opened(self):
    seen, folder = [], self.folder / "run"
    for num_steps in (2, 3):
      self.train(
        "run",
        num_steps,
        model=doubled,
        on_eval=lambda _, model, __: seen.append(model) or {},
      )
    self.assertEqual([type(model) for model in seen], [Doubled, Doubled])
    model, params, _ = load(folder, model=doubled)
    self.assertIsInstance(model, Doubled)
    expand = params["params"]["blocks_0"]["feed_forward"]["expand"]["kernel"]
    self.assertEqual(expand.shape, (8, 64))
    own = json.loads((folder / "config.json").read_text())["own"]
    self.assertRegex(own["model"], r"test_own_training(\.py)?:doubled$")
    with self.assertRaisesRegex(
      InputError, r"run holds a model that .*:doubled made: .*load\(..., model=...\)"
    ):
      load(folder)
    with self.assertRaisesRegex(
      InputError, "config.own.model was 'doubled', is now None"
    ):
      self.train("run", num_steps=7)
    with self.assertRaisesRegex(InputError, "is of another model"):
      load(folder, model=Doubled)

  @parameterized.parameters(
    ({"val/loss": 1.0}, "measure 'val/loss': must be a text that does not begin with"),
    ({3: 1.0}, "measure 3: must be a text"),
    ({"mine": [1.0, 2.0]}, "mine: .*must be one number"),
    ({"mine": "good"}, "mine: 'good': must be one number"),
    (None, "on_eval returned NoneType: must be a dict"),
  )
  def test_measures_that_are_none(self, measures, message):
    with self.assertRaisesRegex(InputError, message):
      checked_measures(measures)


SMALL = GPT2Config(
  vocab_size=7, context_length=4, num_layers=1, num_heads=2, embed_dim=8
)


class TransformationsTest(chex.TestCase):
  def test_rates_decay_and_betas_may_be_traced(self):
    self.trace_rates("muon")  # it has an Adam inside

  @parameterized.parameters(["adamw"], ["lion"])
  @pytest.mark.slow
  def test_so_may_those_of_the_others(self, name):
    self.trace_rates(name)

  def trace_rates(self, name):
    config = OptimizerConfig(name, 0.1, 1, 0.5, 0.9, 0.99, 1.0)
    model = GPT2(SMALL)
    params, *gradients = (random_params(model, seed=seed) for seed in range(3))

    def run(learning_rate, weight_decay, beta1, beta2):
      changed = dataclasses.replace(
        config,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        beta1=beta1,
        beta2=beta2,
      )
      rule = make_optimizer(changed, learning_rate_schedule(changed, 10))
      now, state = params, rule.init(params)
      for gradient in gradients:
        updates, state = rule.update(gradient, state, now)
        now = optax.apply_updates(now, updates)
      return now

    values = np.array([[0.1, 0.3], [0.5, 0.0], [0.9, 0.5], [0.99, 0.7]], "f4")
    together = jax.device_get(jax.jit(jax.vmap(run))(*values))
    first, second = (jax.tree.map(lambda x, i=i: x[i], together) for i in (0, 1))
    alone = jax.jit(lambda: run(*(float(value) for value in values[:, 1])))()
    assert_close(second, alone, 4096, dtype=np.float32)
    moved = jax.tree.map(lambda x, y: abs(x - y).max(), first, second)
    self.assertGreater(min(jax.tree.leaves(moved)), 1e-3)

  def test_one_program_makes_the_states_of_all_keys(self):
    model, optimizer = GPT2(SMALL), optax.adam(0.1)
    abstract = abstract_state(model, optimizer, one_device_mesh())
    jax.block_until_ready(init_state(model, optimizer, jax.random.key(0), abstract))
    with jax.log_compiles(), self.assertNoLogs("jax", level="WARNING"):
      states = [
        init_state(model, optimizer, jax.random.key(seed), abstract)
        for seed in (0, 1, 2)
      ]
    kernels = [
      state.params["params"]["token_embedding"]["embedding"] for state in states
    ]
    self.assertFalse((kernels[1] == kernels[2]).any())
    made = jax.jit(model.init)(
      jax.random.split(jax.random.key(1))[0], jnp.zeros((1, 1), jnp.int32)
    )
    chex.assert_trees_all_equal(states[1].params, nn.unbox(made))
