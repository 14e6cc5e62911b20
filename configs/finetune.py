"""Published weights, or a run of your own, trained on a text of yours.

    python train.py --config=configs/finetune.py --config.data.path=book.txt
    python train.py --config=configs/finetune.py --config.data.path=book.txt \
      --config.init_from=runs/text --config.model.context_length=64

The first downloads GPT-2 small; a folder in Hugging Face's layout needs no network.
"""

from ml_collections import ConfigDict

from configs import text


def get_config() -> ConfigDict:
  """Changes to `text`; the model's other keys are those of the weights."""
  config = text.get_config()
  config.init_from = "openai-community/gpt2"
  config.data.tokenizer = "init_from"
  with config.unlocked():
    config.model = ConfigDict()
    config.model.context_length = 0  # 0: as long as the weights allow; less crops it
    config.model.attention = "explicit"  # flash needs dropout_rate 0
    config.model.dropout_rate = 0.1
    config.model.dtype = "float32"
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 3e-5
  config.optimizer.warmup_steps = 20
  config.train.num_steps = 200
  config.train.batch_size = 8
  config.train.accumulation_steps = 8
  config.eval.every_steps = 50
  config.checkpoint.every_steps = 50
  return config
