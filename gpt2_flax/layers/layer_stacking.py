"""All layers as one: their weights stacked, one compiled program that scans over them.

The loop of `transformer.py` compiles every layer by itself. Under `scan_layers` one is
compiled for all, and the parameters carry a leading layers axis: `blocks` in place of
`blocks_0`, `blocks_1`, ... Only training stacks layers. A model that is saved, loaded
or generated from has its layers apart; the two functions at the end convert.

Axes: B batch, T position, D embed_dim; L layers, the leading one.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# What a layer's forward pass keeps for its backward pass; the rest is computed a second
# time. "Training Deep Nets with Sublinear Memory Cost" (Chen et al., 2016).
REMAT_POLICIES = {
  "none": None,
  "scores": None,  # all but what heads read by, see `forgetful`
  # products with weights, which cost the most; not scores, which take the most memory
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(block: type[nn.Module], remat: str, scanned: bool):
  """The same class of modules, which keep only what the policy `remat` says."""
  policy = REMAT_POLICIES[remat]
  if policy is None:
    return block
  # Within one program the compiler would see that both computations are the same, and
  # keep the first result. A scan's forward and backward pass are two programs.
  return nn.remat(block, policy=policy, prevent_cse=not scanned)


def forgetful(head: type[nn.Module], scanned: bool) -> Any:
  """The same head, which keeps no scores and no weights for the backward pass."""
  return nn.remat(head, methods=["read"], prevent_cse=not scanned)


def scan_blocks(
  block: nn.Module, num_layers: int, x_BTD: jax.Array, mask: jax.Array | None
) -> jax.Array:
  """[B, T, D] -> [B, T, D], through all layers; all arrays in `block` get an L axis."""

  def layer(block: nn.Module, x_BTD: jax.Array, _: None) -> tuple[jax.Array, None]:
    return block(x_BTD, mask)[0], None

  scan = nn.scan(
    layer,
    variable_axes={True: 0},
    split_rngs={True: True},  # every layer draws its own randomness
    length=num_layers,
    metadata_params={nn.PARTITION_NAME: "layers"},
  )
  return scan(block, x_BTD, None)[0]


def stack_layers(tree: Any) -> Any:
  """`blocks_0`, `blocks_1`, ... -> `blocks`, wherever in the tree they are.

  Args:
    tree: params, gradients, or anything that holds trees shaped as params are, such as
      an optimizer's state or a whole `TrainState`. Without names of axes
      (`nn.meta.unbox`).

  Returns:
    The same values, each array of a layer with a leading L axis; what is stacked
    already stays as it is.
  """

  def stack(node: Any) -> Any:
    if not _holds(node, "blocks_0"):
      return node
    names = [name for name in node if name.startswith("blocks_")]
    layers = [node[f"blocks_{layer}"] for layer in range(len(names))]
    others = {name: node[name] for name in node if name not in names}
    return {**others, "blocks": _stack(layers)}

  return jax.tree.map(stack, tree, is_leaf=lambda node: _holds(node, "blocks_0"))


def unstack_layers(tree: Any) -> Any:
  """The inverse of `stack_layers`; what is unstacked already stays as it is."""

  def unstack(node: Any) -> Any:
    if not _holds(node, "blocks"):
      return node
    others = {name: node[name] for name in node if name != "blocks"}
    layers = enumerate(_unstack(node["blocks"]))
    return others | {f"blocks_{layer}": weights for layer, weights in layers}

  return jax.tree.map(unstack, tree, is_leaf=lambda node: _holds(node, "blocks"))


def _holds(node: Any, name: str) -> bool:
  return isinstance(node, dict) and name in node


@jax.jit
def _stack(layers: list[Any]) -> Any:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


@jax.jit
def _unstack(stacked: Any) -> list[Any]:
  num_layers = len(jax.tree.leaves(stacked)[0])
  return [jax.tree.map(lambda x, i=layer: x[i], stacked) for layer in range(num_layers)]
