"""The optax chain: clip, precondition, decay matrices, follow the schedule."""

from typing import Any

import jax
import optax

from gpt2_flax.training.config import OptimizerConfig
from gpt2_flax.training.muon import scale_by_muon, scaled_by_shape


def learning_rate_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  """Linear from 0 to the peak, then a cosine to 0 at num_steps."""
  shape = optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=1.0,
    warmup_steps=min(config.warmup_steps, num_steps - 1),
    decay_steps=num_steps,
  )
  return lambda step: config.learning_rate * shape(step)  # the peak may be traced


def _map_named(function: Any, params: Any) -> Any:
  """Maps function(name, leaf), where name is the parameter's own: "kernel", ..."""

  def named(path: tuple, leaf: jax.Array) -> Any:
    # the last dict key, since a path into params with axis names ends on an attribute
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    return function(names[-1], leaf)

  return jax.tree_util.tree_map_with_path(named, params)


def is_matrix(params: Any) -> Any:
  """A tree of bools: kernels and embeddings, but no bias and no norm.

  By name, because the heads axis makes a bias two-dimensional.
  """
  return _map_named(lambda name, _: name in ("kernel", "embedding"), params)


def _muon_labels(params: Any) -> Any:
  """Kernels are Muon's; embeddings, biases and norms are Adam's."""
  return _map_named(lambda name, _: "muon" if name == "kernel" else "adam", params)


def make_optimizer(
  config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """The optimizer that config.name names, behind a clip by global norm.

  Learning rate, weight decay and betas may be traced, so that one program trains with
  many of them: `jax.vmap` over `dataclasses.replace(config, weight_decay=...)`.

  "adamw": Loshchilov & Hutter (2019), algorithm 2.
  "lion": Chen et al. (2023), algorithm 2; takes a learning rate some 5 times smaller.
  "muon": Jordan et al. (2024) for the kernels, Adam with Nesterov momentum (Dozat,
    2016) at the same learning rate for the rest; takes a learning rate some 10 times
    larger. beta1 and beta2 are Adam's, and only the kernels are decayed.
  """
  clip = optax.clip_by_global_norm(config.max_grad_norm)
  match config.name:
    case "adamw" | "lion":
      make = {"adamw": optax.adamw, "lion": optax.lion}[config.name]
      rule = make(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=is_matrix,
      )
    case _:  # muon
      of_kernels = optax.chain(
        scale_by_muon(),
        optax.stateless(lambda updates, _: scaled_by_shape(updates)),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(schedule),
      )
      of_others = optax.adamw(
        schedule, b1=config.beta1, b2=config.beta2, weight_decay=0.0, nesterov=True
      )
      rule = optax.partition({"muon": of_kernels, "adam": of_others}, _muon_labels)
  return optax.chain(clip, rule)
