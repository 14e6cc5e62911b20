"""How well a model predicts: loss and perplexity, on its own data or on a text.

    python evaluate.py --workdir=runs/toy
    python evaluate.py --workdir=runs/text --text=book.txt
    python evaluate.py --pretrained=openai-community/gpt2 --text=book.txt --stride=512

Without --text it predicts what train.py did: the run's validation data, in the same
windows. In a text each token is predicted from at least context_length - stride tokens
before it (except at the text's beginning). A smaller stride costs more and gives each
token more context. The last line is JSON.
"""

import json
import math
import pathlib

from absl import flags

from gpt2_flax.doors import command_line
from gpt2_flax.errors import InputError
from gpt2_flax.files.text import read_text

command_line.define_model_flags()
_TEXT = flags.DEFINE_string(
  "text", None, "The UTF-8 file to predict; default the run's validation data."
)
_STRIDE = flags.DEFINE_integer(
  "stride", 0, "How far the window moves over a text; 0: half the context."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Windows of a text at once.")


def main() -> int:
  """Loads the model and what it is to predict, prints how they fit."""
  result = _on_text(_TEXT.value) if _TEXT.value else _on_validation_data()
  print(json.dumps(result))
  return 0


def _rounded(loss: float) -> dict[str, float]:
  """Further digits would depend on the batch size."""
  return {"loss": round(loss, 5), "perplexity": round(math.exp(loss), 4)}


def _on_text(path: str) -> dict[str, float]:
  from gpt2_flax.training.evaluation import text_loss

  text = read_text(path, "--text")
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
  bits_per_byte = round(total / num_bytes / math.log(2), 5)
  return {**_rounded(loss), "bits_per_byte": bits_per_byte, "tokens": num_targets}


def _on_validation_data() -> dict[str, float]:
  from gpt2_flax.training import mesh, source
  from gpt2_flax.training.evaluation import Evaluator

  if flags.FLAGS.pretrained and not flags.FLAGS.workdir:
    raise InputError("--text has no value: --pretrained weights come without data")
  if _STRIDE.present or _BATCH_SIZE.present:
    raise InputError("--text has no value: --stride and --batch_size are for a text")
  model, params, _ = command_line.load_model()
  workdir = pathlib.Path(flags.FLAGS.workdir)
  dataset = source.load_dataset(workdir)
  if dataset is None:
    raise InputError(
      f"--text has no value, and the data of {workdir} are missing or have changed"
    )
  config = source.read_run_config(workdir)
  sharding = mesh.batch_sharding(mesh.one_device_mesh())
  losses = Evaluator(model, dataset, config, sharding).losses(params)
  print(f"the validation data of {workdir}, in the windows that train.py took")
  beside = {
    name: round(losses[f"val/{name}"], 5)
    for name in ("floor", "gap")
    if f"val/{name}" in losses
  }
  return _rounded(losses["val/loss"]) | beside
