"""The optimizers: what is decayed, what is orthogonalised, and when."""

import dataclasses
import functools

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training import optimizer as optimizer_lib
from gpt2_flax.training.config import OptimizerConfig, OPTIMIZERS
from gpt2_flax.transformer import GPT2
from tests.close import assert_close
from tests.params import random_params, shapes_of

CONFIG = OptimizerConfig(
  name="adamw",
  learning_rate=0.1,
  warmup_steps=10,
  weight_decay=0.5,
  beta1=0.9,
  beta2=0.99,
  max_grad_norm=1.0,
)
MODEL = GPT2(
  GPT2Config(
    vocab_size=11,
    context_length=8,
    num_layers=2,
    num_heads=2,
    embed_dim=8,
    positional_encoding="learned",
  )
)


class OptimizerTest(chex.TestCase):
  def test_schedule_rises_then_falls_to_zero(self):
    schedule = optimizer_lib.learning_rate_schedule(CONFIG, 110)
    values = np.array([schedule(step) for step in range(111)])
    assert_close(values[:11], np.linspace(0, 0.1, 11), 8)
    # an angle (three), a cosine (two), a sum and a product, of numbers up to 4
    cosine = 0.05 * (1 + np.cos(np.pi * np.arange(101) / 100))
    assert_close(values[10:], cosine, 8, scale=0.05 * 4)

  @parameterized.named_parameters(("boxed", shapes_of), ("plain", random_params))
  def test_decay_reaches_every_matrix_and_nothing_else(self, make):
    params = make(MODEL)
    mask = jax.tree_util.tree_leaves_with_path(optimizer_lib.is_matrix(params))
    for path, decayed in mask:
      name = jax.tree_util.keystr(path)
      self.assertEqual(decayed, "kernel" in name or "embedding" in name, name)
    self.assertEqual(sum(decayed for _, decayed in mask), 2 + 2 * 6)

  @parameterized.parameters(*OPTIMIZERS)
  def test_zero_gradients_only_decay_matrices(self, name):
    params = jax.tree.map(np.ones_like, random_params(MODEL))
    config = dataclasses.replace(CONFIG, name=name)
    rule = optimizer_lib.make_optimizer(config, lambda step: 0.1)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(rule.update)(zeros, jax.jit(rule.init)(params), params)

    def expected(path, update):
      path = jax.tree_util.keystr(path)
      decayed = "kernel" in path or ("embedding" in path and name != "muon")
      return np.full(update.shape, -0.1 * 0.5 if decayed else 0.0)

    assert_close(updates, jax.tree_util.tree_map_with_path(expected, updates), 4)

  @parameterized.parameters(*OPTIMIZERS)
  def test_several_steps_are_those_of_the_paper(self, name):
    """Of unequal gradients, some longer than max_grad_norm; muon: what is Adam's."""
    # Powers of two, so that what frees the moments from their bias is exact.
    config = dataclasses.replace(CONFIG, name=name, beta1=0.5, beta2=0.75)
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "embedding": (5, 2), "bias": (4,), "scale": (2,)}

    def draw():
      return {"params": {k: rng.normal(size=v) for k, v in shapes.items()}}

    params, num_values = draw(), 12 + 10 + 4 + 2
    gradients = [jax.tree.map(lambda g, s=s: s * g, draw()) for s in (2, 0.1, 1, 0.02)]
    rates = [0.1, 0.2, 0.4, 0.05]
    rule = optimizer_lib.make_optimizer(config, lambda step: jnp.array(rates)[step])
    as_float32 = functools.partial(jax.tree.map, lambda leaf: leaf.astype("f4"))
    state, update = rule.init(as_float32(params)), jax.jit(rule.update)
    first, second = (jax.tree.map(np.zeros_like, params)["params"] for _ in range(2))
    for step, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), 1):
      found, state = update(as_float32(gradient), state, as_float32(params))
      norm = np.sqrt(sum(np.sum(g**2) for g in gradient["params"].values()))
      for key, g in gradient["params"].items():
        if name == "muon" and key == "kernel":
          continue
        g, p = g * min(1.0, config.max_grad_norm / norm), params["params"][key]
        decayed = name != "muon" and key in ("kernel", "embedding")
        m, v = first[key], second[key]
        if name == "lion":
          direction = np.sign(0.5 * m + 0.5 * g)
          first[key] = 0.75 * m + 0.25 * g
        else:
          m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g**2
          first[key], second[key] = m, v
          if name == "muon":  # with Nesterov's momentum: Dozat (2016), algorithm 2
            m = 0.5 * m / (1 - 0.5 ** (step + 1)) + 0.5 * g / (1 - 0.5**step)
          else:
            m = m / (1 - 0.5**step)
          direction = m / (np.sqrt(v / (1 - 0.75**step)) + 1e-8)
        expected = -rate * (direction + decayed * config.weight_decay * p)
        # a norm and what it divides; two moments; a root, a quotient, a decay, a rate
        roundings = (num_values + 4) + 2 * 4 * step + 8
        assert_close(found["params"][key], expected, roundings, dtype=np.float32)

  def test_adamw_first_step_from_the_formula(self):
    params, grads = (random_params(MODEL, seed=seed) for seed in range(2))
    rule = optimizer_lib.make_optimizer(CONFIG, lambda step: 0.1)
    updates, _ = jax.jit(rule.update)(grads, jax.jit(rule.init)(params), params)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
    kernel = params["params"]["blocks_0"]["feed_forward"]["expand"]["kernel"]
    grad = grads["params"]["blocks_0"]["feed_forward"]["expand"]["kernel"] / norm
    # the first moments, freed from their bias, are the gradient and its square
    expected = -0.1 * (grad / (np.abs(grad) + 1e-8) + 0.5 * kernel)
    found = updates["params"]["blocks_0"]["feed_forward"]["expand"]["kernel"]
    assert_close(found, expected)

  def test_muon_orthogonalises_each_head_by_itself(self):
    params, grads = (
      {"query": whole["params"]["blocks_0"]["attention"]["heads"]["query"]}
      for whole in (random_params(MODEL, seed=seed) for seed in range(2))
    )
    config = dataclasses.replace(CONFIG, name="muon", weight_decay=0.0)
    rule = optimizer_lib.make_optimizer(config, lambda step: 1.0)
    updates, _ = jax.jit(rule.update)(grads, jax.jit(rule.init)(params), params)
    heads = updates["query"]["kernel"]
    for head in heads:  # Newton-Schulz brings singular values near 1, not to it
      singular = np.linalg.svd(head, compute_uv=False)
      self.assertGreater(singular.min(), 0.5)
      self.assertLess(singular.max(), 1.3)
