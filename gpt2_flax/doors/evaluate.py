"""How well a model predicts: loss and perplexity, on its own data or on a text.

    python evaluate.py --workdir=runs/toy
    python evaluate.py --workdir=runs/text --text=book.txt
    python evaluate.py --pretrained=openai-community/gpt2 --text=book.txt --stride=512

Without --text it predicts what train.py did: the run's validation data, in the same
windows. With it, it follows the common recipe, so that published perplexities can be
compared ("Perplexity of fixed-length models", in the documentation of transformers): a
window as long as the context moves by --stride, and predicts the tokens that are new in
it. A smaller stride costs more, and gives each more context. The last line is JSON.
"""

import json
import math
import os
import pathlib
import tempfile

from absl import flags

from gpt2_flax.doors import command_line
from gpt2_flax.errors import InputError
from gpt2_flax.files.text import shown, text_blocks

command_line.define_model_flags()
_TEXT = flags.DEFINE_string(
  "text",
  None,
  "The UTF-8 file to predict, - for stdin; default the run's validation data.",
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
  import numpy as np

  from gpt2_flax.datasets import token_cache
  from gpt2_flax.training.evaluation import text_loss

  with tempfile.NamedTemporaryFile() as copy:
    is_file, num_bytes = os.path.isfile(path), 0
    for block in text_blocks(path, "--text"):
      num_bytes += len(content := block.encode())
      if not is_file:  # a pipe, which can be read only once
        copy.write(content)
    copy.flush()
    if num_bytes == 0:
      raise InputError(f"--text: {shown(path)} is empty: must hold text")
    model, params, tokenizer = command_line.load_model()
    file = pathlib.Path(path if is_file else copy.name)
    tokens = token_cache.encode([file], tokenizer, "--text")
  if tokenizer.start_id is not None:
    tokens = np.concatenate([[tokenizer.start_id], tokens])
  loss = text_loss(
    model, params, tokens, stride=_STRIDE.value, batch_size=_BATCH_SIZE.value
  )
  print(f"{loss.count:,} tokens predicted, {num_bytes:,} bytes")
  # with --stride as long as the context, a few are not predicted, but have bytes
  total = loss.total / loss.count * (len(tokens) - 1)
  bits_per_byte = round(total / num_bytes / math.log(2), 5)
  return {**_rounded(loss.mean), "bits_per_byte": bits_per_byte, "tokens": loss.count}


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
