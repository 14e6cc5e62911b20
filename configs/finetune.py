"""Published weights, or a run of your own, trained on a text of yours.

    python train.py --config=configs/finetune.py --config.data.path=book.txt
    python train.py --config=configs/finetune.py --config.data.path=book.txt \
      --config.init_from=runs/text --config.model.context_length=64
    python train.py --config=configs/finetune.py:lora --config.data.path=book.txt
    python train.py --config=configs/finetune.py:lora+completions \
      --config.data.path=answers.jsonl

The first downloads GPT-2 small; a folder in Hugging Face's layout needs no network.
`lora` trains adapters for queries and values alone: rank 8, 0.24 % of the parameters.
`completions` reads lines such as {"prompt": "2 + 2 =", "completion": " 4"}, and the
loss is on the completions alone.
"""

from ml_collections import ConfigDict

from configs import text


def get_config(argument: str = "") -> ConfigDict:
  """Changes to `text`; the model's other keys are those of the weights.

  Args:
    argument: lora, completions, or both as lora+completions; or empty.
  """
  chosen = argument.split("+") if argument else []
  if unknown := set(chosen) - {"lora", "completions"}:
    raise ValueError(f"unknown {min(unknown)!r}: allowed: lora, completions")
  config = text.get_config()
  config.init_from = "openai-community/gpt2"
  if "completions" in chosen:
    with config.unlocked():
      config.data = ConfigDict()
      config.data.name = "completions"
      config.data.path = ""  # JSON lines: a file, a folder, a glob, a URL
      config.data.sha256 = ""  # what the content at a URL must have
      config.data.tokenizer = ""  # set below
      config.data.validation_path = ""  # likewise; "": the last lines of path
      config.data.validation_fraction = 0.1  # how many of them
  config.data.tokenizer = "init_from"
  with config.unlocked():
    config.model = ConfigDict()
    config.model.context_length = 0  # 0: as long as the weights allow; less crops it
    config.model.attention = "explicit"  # flash needs dropout_rate 0
    config.model.dropout_rate = 0.1
    config.model.dtype = "float32"
    config.model.scan_layers = False
    config.model.remat = "none"
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 3e-5
  config.optimizer.warmup_steps = 20
  if "lora" in chosen:  # for GPT-2, as in the paper: section 5.4
    config.finetune.lora = "*/query/kernel,*/value/kernel"
    config.optimizer.learning_rate = 2e-4
  config.train.num_steps = 200
  config.train.batch_size = 8
  config.train.accumulation_steps = 8
  config.eval.every_steps = 50
  config.checkpoint.every_steps = 50
  return config
