"""Writes a model for other programs.

    python export.py --workdir=runs/text --output=my-gpt2

A folder that transformers, and everything that reads its folders, opens: config.json,
model.safetensors, tokenizer.json. The other doors take it too: python sample.py
--pretrained=my-gpt2

    python export.py --workdir=runs/text --output=my-hlo --format=stablehlo

A folder whose model runs wherever JAX does, without this package.
"""

from absl import flags

from gpt2_flax.doors import command_line
from gpt2_flax.errors import InputError, unknown_name

FORMATS = ("huggingface", "stablehlo")

command_line.define_model_flags()
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write, new or empty.")
_FORMAT = flags.DEFINE_string(
  "format", "huggingface", "huggingface, or stablehlo: any model, for JAX alone."
)
_DTYPE = flags.DEFINE_string(
  "dtype", "float32", "Of the weights: float32, or bfloat16 for half of the size."
)


def main() -> int:
  """Loads the model, saves it."""
  from gpt2_flax import pretrained
  from gpt2_flax.hub import stablehlo

  if not _OUTPUT.value:
    raise InputError("--output has no value: must name a new folder")
  if _FORMAT.value not in FORMATS:
    raise unknown_name("--format", _FORMAT.value, FORMATS)
  if _DTYPE.value not in pretrained.STORED_AS:
    raise unknown_name("--dtype", _DTYPE.value, pretrained.STORED_AS)
  model, params, tokenizer = command_line.load_model()
  if _FORMAT.value == "stablehlo":
    stablehlo.save(_OUTPUT.value, model, params, tokenizer, _DTYPE.value)
    print(f"wrote {_OUTPUT.value}: jax.export.deserialize opens its model.stablehlo")
  else:
    pretrained.save(_OUTPUT.value, model, params, tokenizer, _DTYPE.value)
    print(f"wrote {_OUTPUT.value}: GPT2LMHeadModel.from_pretrained opens it")
  return 0
