"""Writes a run as a folder that transformers, and everything that reads its, opens.

    python export.py --workdir=runs/text --output=my-gpt2

In it: config.json, model.safetensors, tokenizer.json. The other doors take it too:
python sample.py --pretrained=my-gpt2
"""

from absl import flags

from gpt2_flax.doors import command_line
from gpt2_flax.errors import InputError

command_line.define_model_flags()
_OUTPUT = flags.DEFINE_string("output", None, "The folder to write, new or empty.")


def main() -> int:
  """Loads the model, saves it."""
  from gpt2_flax import pretrained

  if not _OUTPUT.value:
    raise InputError("--output has no value: must name a new folder")
  model, params, tokenizer = command_line.load_model()
  pretrained.save(_OUTPUT.value, model, params, tokenizer)
  print(f"wrote {_OUTPUT.value}: GPT2LMHeadModel.from_pretrained opens it")
  return 0
