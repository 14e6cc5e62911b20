"""How well a model predicts a text: loss, perplexity, bits per byte.

    python evaluate.py --workdir=runs/text --text=book.txt
    python evaluate.py --pretrained=openai-community/gpt2 --text=book.txt --stride=512

Each token is predicted from at least context_length - stride tokens before it (except
at the text's beginning). A smaller stride costs more and gives each token more context.
The last line is JSON.
"""

import json
import math
import pathlib

from absl import flags

from gpt2_flax.doors import command_line
from gpt2_flax.errors import InputError

command_line.define_model_flags()
_TEXT = flags.DEFINE_string("text", None, "The UTF-8 file to predict.")
_STRIDE = flags.DEFINE_integer(
  "stride", 0, "How far the window moves each time; 0: half the context."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Windows at once.")


def main() -> int:
  """Loads the model and the text, prints how they fit."""
  from gpt2_flax.training.evaluation import text_loss

  if not _TEXT.value:
    raise InputError("--text has no value: must name a UTF-8 file")
  try:
    text = pathlib.Path(_TEXT.value).read_bytes().decode("utf-8-sig")
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f"--text={_TEXT.value}: {error}") from error
  model, params, tokenizer = command_line.load_model()
  prefix = [] if tokenizer.start_id is None else [tokenizer.start_id]
  total, num_targets = text_loss(
    model,
    params,
    [*prefix, *tokenizer.encode(text)],
    stride=_STRIDE.value,
    batch_size=_BATCH_SIZE.value,
  )
  loss, num_bytes = total / num_targets, len(text.encode())
  print(f"{num_targets:,} tokens predicted, {num_bytes:,} bytes")
  result = {
    "loss": round(loss, 5),  # further digits depend on the batch size
    "perplexity": round(math.exp(loss), 4),
    "bits_per_byte": round(total / num_bytes / math.log(2), 5),
    "tokens": num_targets,
  }
  print(json.dumps(result))
  return 0
