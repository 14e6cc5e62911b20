"""Model and tokenizer come together, and with all that was said of them."""

import json
import pathlib
import shutil
import tempfile

from absl.testing import parameterized
import chex

from configs import finetune
from gpt2_flax import GPT2, GPT2Config, InputError, pretrained
from gpt2_flax.tokenizer import BPETokenizer
from gpt2_flax.training import loop, source
from gpt2_flax.training.experiment import parse
from tests.params import random_params

BPE = BPETokenizer.train(["to be or not to be"], 270)
BESIDE = {
  "tokenizer_config.json": {"eos_token": "be", "pad_token": "!", "model_max_length": 8},
  "generation_config.json": {"eos_token_id": [1, 2], "top_k": 7},
}
TEXT = "to be or not to be that is the question\n" * 9


def write_source(folder: pathlib.Path, vocab_size: int) -> None:
  """As others have written it."""
  config = GPT2Config(
    vocab_size=vocab_size,
    context_length=8,
    num_layers=1,
    num_heads=1,
    embed_dim=4,
    positional_encoding="learned",
  )
  model = GPT2(config)
  pretrained.save(folder, model, random_params(model))
  BPE.save(str(folder / "tokenizer.json"))
  for name, said in BESIDE.items():
    (folder / name).write_text(json.dumps(said))


class SourceTest(chex.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    write_source(cls.folder / "theirs", BPE.vocab_size)
    (cls.folder / "text.txt").write_text(TEXT)
    experiment, dataset = parse(cls.config(cls.folder / "theirs"))
    loop.train(experiment, dataset, cls.folder / "run")

  @classmethod
  def config(cls, init_from):
    config = finetune.get_config()
    config.init_from = str(init_from)
    config.data.path = str(cls.folder / "text.txt")
    config.train.num_steps = config.train.accumulation_steps = 1
    config.train.batch_size = 2
    config.eval.num_windows = 1
    config.eval.sample_tokens = 0
    return config

  def test_what_a_folder_says_survives_fine_tuning(self):
    for name in ("theirs", "run"):
      model, params, tokenizer = source.load(self.folder / name)
      out = self.folder / f"{name}-out"
      pretrained.save(out, model, params, tokenizer)
      for file, said in BESIDE.items():
        found = json.loads((out / file).read_text())
        self.assertEqual({key: found[key] for key in said}, said)
      self.assertEqual(tokenizer.end_of_text_id, tokenizer.encode("be")[0])

  def test_data_and_weights_fit_whatever_lies_beside_the_tokens(self):
    self.assertIsNotNone(source.load_dataset(self.folder / "run"))
    before = self.folder / "before"  # a run of the time when nothing was carried along
    shutil.copytree(self.folder / "run", before)
    state = json.loads((before / "tokenizer.json").read_text())
    del state["beside"]
    (before / "tokenizer.json").write_text(json.dumps(state))
    config = json.loads((before / "config.json").read_text())
    config["data"]["tokenizer"] = str(self.folder / "theirs")
    (before / "config.json").write_text(json.dumps(config))
    self.assertIsNotNone(source.load_dataset(before))
    config = self.config(before)
    config.data.tokenizer = str(self.folder / "theirs")
    parse(config)

  def test_weights_are_no_run(self):
    with self.assertRaisesRegex(InputError, "no run but weights: give it as --pretr"):
      source.load_run(self.folder / "theirs")

  def test_vocab_and_merges_will_do(self):
    folder = self.folder / "two-files"
    shutil.copytree(self.folder / "theirs", folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), "utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(merges, "utf-8")
    _, dataset = parse(self.config(folder))
    self.assertEqual(dataset.tokenizer.encode(TEXT), BPE.encode(TEXT))
    self.assertEqual(source.load(folder)[2].encode(TEXT), BPE.encode(TEXT))

  @parameterized.parameters(-1, 0, 5)
  def test_a_model_knows_all_tokens(self, more):
    known = BPE.vocab_size + more
    folder = self.folder / f"knows-{known}"
    write_source(folder, known)
    if more >= 0:
      self.assertEqual(source.load(folder)[0].config.vocab_size, known)
      return
    numbers = (
      f"{folder}: the tokenizer has {known + 1} tokens, the model knows {known}:"
    )
    with self.assertRaisesRegex(InputError, numbers):
      source.load(folder)

  def test_so_does_that_of_a_run(self):
    changed = self.folder / "changed"
    shutil.copytree(self.folder / "run", changed)
    state = json.loads((changed / "tokenizer.json").read_text())
    last = {"content": "<new>", "single_word": False, "lstrip": False, "rstrip": False}
    last |= {"id": BPE.vocab_size, "normalized": False, "special": True}
    state["tokenizer"]["added_tokens"].append(last)
    (changed / "tokenizer.json").write_text(json.dumps(state))
    numbers = f"has {BPE.vocab_size + 1} tokens, the model knows {BPE.vocab_size}:"
    with self.assertRaisesRegex(InputError, numbers):
      source.load_run(changed)
