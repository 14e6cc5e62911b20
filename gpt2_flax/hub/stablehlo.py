"""A model as one function in StableHLO, XLA's own language: JAX alone can call it.

    logits_BTV = function(params, tokens_BT)

It is compiled for the device where it runs, for any number of texts of any length up
to the context, and holds no parameters: they lie beside it, so that it stays small.
"""

import dataclasses
import os
from typing import Any

from flax import linen as nn
from flax import traverse_util
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from gpt2_flax.errors import InputError
from gpt2_flax.files.atomic import replacing
from gpt2_flax.hub.folder import require_new
from gpt2_flax.hub.tokenizer import write_tokenizer
from gpt2_flax.tokenizer import Tokenizer
from gpt2_flax.transformer import GPT2

PLATFORMS = ("cpu", "cuda", "tpu")
FUNCTION, PARAMS = "model.stablehlo", "params.safetensors"


def save(
  folder: str | os.PathLike,
  model: GPT2,
  params: Any,
  tokenizer: Tokenizer | None = None,
  dtype: str = "float32",
) -> None:
  """Writes a folder that jax.export and safetensors open: see docs/pretrained.md.

  Any model can be saved so, also one with heads, positions or norms that GPT-2's format
  does not know.

  Args:
    folder: new or empty. It appears when all its files are written.
    dtype: that params are stored in. The function reckons as the model does.

  Raises:
    InputError: there is something in the folder, it cannot be written, the tokenizer
      has tokens that the model does not know, or a part of the model must know how long
      a text is.
    RunError: the disk is full.
  """
  folder = require_new(folder)
  if tokenizer is not None:
    tokenizer.require_known(model.config.vocab_size, folder)
  config = model.config
  if model.head is None and config.attention == "flash":
    # the same in steps, since a kernel is made for one kind of device
    model = dataclasses.replace(
      model, config=dataclasses.replace(config, attention="explicit")
    )
  own = traverse_util.flatten_dict(nn.meta.unbox(params)["params"], sep="/")
  stored = {
    name: np.ascontiguousarray(value, jnp.dtype(dtype)) for name, value in own.items()
  }

  def logits(stored: dict[str, jax.Array], tokens_BT: jax.Array) -> jax.Array:
    own = {name: value.astype(jnp.float32) for name, value in stored.items()}
    params = traverse_util.unflatten_dict(own, "/")
    logits_BTV: Any = model.apply({"params": params}, tokens_BT)
    return logits_BTV

  batch, length = export.symbolic_shape(
    "batch, length", constraints=[f"length <= {config.context_length}"]
  )
  try:
    function = export.export(jax.jit(logits), platforms=PLATFORMS)(
      jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored),
      jax.ShapeDtypeStruct((batch, length), jnp.int32),
    )
  except (TypeError, jax.errors.InconclusiveDimensionOperation) as error:
    reason = str(error).splitlines()[0]
    raise InputError(
      "a part of the model must know how long a text is, so it cannot be exported for"
      f" texts of any length: {reason}"
    ) from error
  with replacing(folder) as temporary:
    temporary.mkdir()
    (temporary / FUNCTION).write_bytes(function.serialize())
    safetensors.numpy.save_file(stored, temporary / PARAMS)
    (temporary / PARAMS).chmod((temporary / FUNCTION).stat().st_mode)  # it was 0600
    if tokenizer is not None:
      write_tokenizer(temporary, tokenizer, config.context_length)
