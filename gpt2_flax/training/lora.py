"""Low-rank adapters, which learn in place of the kernels that they stand beside.

"LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021), sections 4.1 and
4.2: a kernel W acts as W + scale A B, where scale is alpha / rank. A begins Gaussian
and B zero, so that at first nothing has changed. The model is given the sum in place of
W. So no part of it has to know, and whatever has a kernel can have an adapter.

The heads' kernels [H, D, K] are one matrix [D, H * K], as in the paper.

Axes: I what goes in, O what comes out, R rank; H heads, D embed_dim, K head_dim.
"""

from collections.abc import Iterable, Mapping
import math
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp

# Named as kernels of two layers, which a product with A B is: optimizers know kernels.
IN, OUT = "lora_A/kernel", "lora_B/kernel"


def new_adapters(
  kernels: Iterable[tuple[str, tuple[int, ...]]], rank: int, key: jax.Array
) -> Any:
  """A pair for each kernel, named as in params: {"params": {..., "lora_A": ...}}.

  A has variance 1 / I, so that of normalised features x A has variance 1.

  Args:
    kernels: names and shapes, layers apart.
  """
  kernels, flat = list(kernels), {}
  keys = jax.random.split(key, len(kernels))
  for (name, shape), one in zip(kernels, keys, strict=True):
    size = shape[-2]
    of_a = jax.random.normal(one, (size, rank)) / math.sqrt(size)
    flat[_beside(name) + IN] = of_a
    flat[_beside(name) + OUT] = jnp.zeros((rank, math.prod(shape) // size))
  return nested(flat)


def merged(params: Any, adapters: Any, scale: float | Mapping[str, float]) -> Any:
  """The same params with W + scale A B in place of each kernel W that has a pair.

  Args:
    params: layers apart or stacked.
    adapters: as `new_adapters` gives them.
    scale: the same for all, or by the kernel's name.
  """
  flat = by_name(params)
  in_stacks: dict[str, dict[int, jax.Array]] = {}
  for name, (a_IR, b_RO) in pairs(adapters).items():
    factor = scale[name] if isinstance(scale, Mapping) else scale
    product_IO = factor * jnp.matmul(a_IR, b_RO, precision="highest")
    if name in flat:
      flat[name] += _as_kernel(product_IO, flat[name].shape)
      continue
    block, _, rest = name.partition("/")
    stack = in_stacks.setdefault(f"blocks/{rest}", {})
    stack[int(block.removeprefix("blocks_"))] = product_IO
  for name, products in in_stacks.items():
    num_layers, *shape = flat[name].shape
    zero = jnp.zeros(shape)
    flat[name] += jnp.stack(
      [
        _as_kernel(products[layer], shape) if layer in products else zero
        for layer in range(num_layers)
      ]
    )
  return nested(flat)


def pairs(adapters: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
  """A [I, R] and B [R, O] by the name of their kernel."""
  flat = by_name(adapters)
  return {
    f"{name.removesuffix(IN)}kernel": (a_IR, flat[name.removesuffix(IN) + OUT])
    for name, a_IR in flat.items()
    if name.endswith(IN)
  }


def by_name(params: Any) -> dict[str, Any]:
  """Each parameter by its name, "blocks_0/attention/output/bias"."""
  return dict(traverse_util.flatten_dict(params["params"], sep="/"))


def nested(flat: Mapping[str, Any]) -> Any:
  """The inverse of `by_name`."""
  return {"params": traverse_util.unflatten_dict(flat, sep="/")}


def _beside(kernel: str) -> str:
  return kernel.removesuffix("kernel")


def _as_kernel(matrix_IO: jax.Array, shape: Iterable[int]) -> jax.Array:
  """[D, H * K] -> [H, D, K] where the kernel is one of heads; else as it is."""
  *heads, inputs, outputs = shape
  if not heads:
    return matrix_IO
  by_head = matrix_IO.reshape(inputs, heads[0], outputs)
  return jnp.moveaxis(by_head, 1, 0)
