"""Configs: every shipped one is valid, and every wrong key is named."""

import dataclasses
import json
import pathlib
import tempfile

from absl.testing import parameterized
import chex

from configs import finetune, gpt2, induction, markov, text, toy
from gpt2_flax import datasets, pretrained
from gpt2_flax.errors import InputError
from gpt2_flax.model_config import GPT2Config, PUBLISHED_SIZES
from gpt2_flax.tokenizer import BPETokenizer
from gpt2_flax.training.config import FinetuneConfig, from_dict, SECTIONS
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.resume import fingerprint
from gpt2_flax.training.tuning import make_tuning
from gpt2_flax.transformer import GPT2
from tests.params import random_params

SMALL = dict(num_layers=1, num_heads=2, embed_dim=8)


class ParseTest(chex.TestCase):
  @parameterized.parameters(toy, markov, induction)
  def test_shipped_configs_parse(self, module):
    experiment, dataset = parse(module.get_config())
    self.assertEqual(experiment.model.vocab_size, dataset.tokenizer.vocab_size)
    self.assertEqual(dataset.context_length, experiment.model.context_length)

  @parameterized.parameters(*PUBLISHED_SIZES)
  def test_gpt2_configs_are_the_published_models(self, size):
    config = gpt2.get_config(size)
    config.data.path = __file__
    config.data.validation_fraction = 0.3
    config.model.context_length = 64  # this file is short
    experiment, _ = parse(config)
    for name, value in PUBLISHED_SIZES[size].items():
      self.assertEqual(getattr(experiment.model, name), value)
    self.assertEqual(experiment.model.vocab_size, 50_257)
    self.assertEqual(experiment.model.positional_encoding, "learned")

  @parameterized.parameters(
    ("train", "num_steps", 0, "train.num_steps is 0: must be at least 1"),
    ("train", "num_steps", 2.5, "train.num_steps is 2.5: must be of type int"),
    ("train", "num_steps", True, "train.num_steps is True: must be of type int"),
    ("train", "accumulation_steps", 5, "must be divisible by train.accumulation_steps"),
    ("train", "seed", -1, "train.seed is -1: must be 0 or more"),
    ("train", "max_skipped_steps", -1, "max_skipped_steps is -1: must be 0 or more"),
    ("train", "max_loss_jump", -0.5, "train.max_loss_jump is -0.5: must be 0 or more"),
    ("train", "max_loss_jump", float("inf"), "max_loss_jump is inf: must be finite"),
    ("eval", "every_steps", 0, "eval.every_steps is 0"),
    ("checkpoint", "keep", 1, "checkpoint.keep is 1: must be at least 2"),
    (
      "optimizer",
      "name",
      "adam",
      "optimizer.name 'adam': did you mean 'adamw'",
    ),
    (
      "optimizer",
      "learning_rate",
      0.0,
      "learning_rate is 0.0: must be above",
    ),
    ("optimizer", "learning_rate", float("nan"), "must be finite"),
    ("optimizer", "beta2", 1.0, "optimizer.beta2 is 1.0: must be in"),
    ("mesh", "fsdp", 0, "mesh.fsdp is 0: must be at least 1"),
    ("mesh", "data", -2, "mesh.data is -2"),
    ("model", "vocab_size", 3, "model.vocab_size is 3: must be 0"),
    ("model", "embed_dim", 63, "model.embed_dim is 63: must be divisible"),
    ("model", "positional_encoding", "sinus", "did you mean 'sinusoidal'"),
    ("model", "embed_dims", 64, "'embed_dims': did you mean 'embed_dim'"),
    (
      "model",
      "remat",
      "all",
      "unknown model.remat 'all': allowed: dots, full, none, scores",
    ),
    ("model", "scan_layers", 1, "model.scan_layers is 1: must be of type bool"),
    ("finetune", "layer_decay", 0.0, "layer_decay is 0.0: must be above 0, at most 1"),
    ("finetune", "layer_decay", 1.5, "layer_decay is 1.5: must be above 0, at most 1"),
    ("finetune", "lora_rank", 0, "finetune.lora_rank is 0: must be at least 1"),
    ("finetune", "lora_alpha", 0.0, "finetune.lora_alpha is 0.0: must be above 0"),
    ("finetune", "lora", "*" * 1001, "finetune.lora is longer than 1000 characters"),
    ("data", "name", "grammer", "unknown data.name 'grammer': did you mean 'grammar'"),
    ("data", "seed", -1, "data.seed is -1: must be 0 or more"),
    ("eval", "num_windows", 0, "must be at least 1 for data.name=grammar"),
    ("data", "order", 2, "unknown key in config.data (GrammarConfig) 'order'"),
  )
  def test_names_what_is_wrong(self, section, key, value, message):
    config = toy.get_config().unlock()
    config[section] = {**config[section].to_dict(), key: value}
    with self.assertRaises(InputError) as raised:
      parse(config)
    self.assertIn(message, str(raised.exception))

  def test_missing_and_unknown_sections(self):
    config = toy.get_config().unlock()
    del config["mesh"]
    with self.assertRaisesRegex(InputError, "config.mesh is missing"):
      parse(config)
    config["mehs"] = {}
    with self.assertRaisesRegex(InputError, "'mehs': did you mean 'mesh'"):
      parse(config)

  def test_runs_from_before_there_was_a_section_read_as_its_defaults(self):
    config = toy.get_config().unlock()
    before, _ = parse(config)
    del config["finetune"]
    self.assertEqual(parse(config)[0], before)
    saved = before.to_dict()
    del saved["finetune"]
    self.assertEqual(from_dict(saved), before)
    self.assertEqual(fingerprint(from_dict(saved)), fingerprint(before))

  def test_all_or_adapters_learn(self):
    config = toy.get_config()
    config.finetune.update(train="blocks_1/*", lora="*")
    with self.assertRaisesRegex(InputError, "finetune.train is 'blocks_1/.': must be"):
      parse(config)

  def test_a_missing_key_is_named(self):
    config = toy.get_config().unlock()
    del config.train["seed"]
    with self.assertRaisesRegex(InputError, "train.seed is missing"):
      parse(config)

  def test_an_integer_will_do_for_a_number(self):
    config = toy.get_config().unlock()
    config.optimizer = {**config.optimizer.to_dict(), "weight_decay": 0}
    experiment, _ = parse(config)
    self.assertIs(type(experiment.optimizer.weight_decay), float)

  def test_a_larger_vocabulary_than_the_datas_is_kept(self):
    config = toy.get_config()
    config.model.vocab_size = 128
    experiment, dataset = parse(config)
    self.assertEqual(experiment.model.vocab_size, 128)
    self.assertLess(dataset.tokenizer.vocab_size, 128)


class SavedTest(chex.TestCase):
  def test_every_field_is_described(self):
    for cls in (*SECTIONS.values(), *datasets.CONFIGS.values()):
      for field in dataclasses.fields(cls):
        self.assertIn(field.name, cls.__doc__)

  @parameterized.parameters(toy, markov, induction)
  def test_reads_back_what_it_wrote(self, module):
    experiment, _ = parse(module.get_config())
    saved = json.loads(json.dumps(experiment.to_dict()))
    self.assertEqual(from_dict(saved), experiment)


class InitFromTest(chex.TestCase):
  """A small model in Hugging Face's layout stands for the published one."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (self.folder / "text.txt").write_text("To be, or not to be. " * 99)
    self.source = self.folder / "gpt2"
    tokenizer = BPETokenizer.train(["To be, or not to be. " * 9], 270)
    model = GPT2(
      GPT2Config.published("small", vocab_size=280, context_length=16, **SMALL)
    )
    pretrained.save(self.source, model, random_params(model), tokenizer)

  def config(self):
    config = finetune.get_config()
    config.init_from = str(self.source)
    config.data.path = str(self.folder / "text.txt")
    return config

  def test_the_model_is_that_of_the_weights(self):
    config = self.config()
    config.model.dropout_rate = 0.0
    experiment, dataset = parse(config)
    expected = GPT2Config.published("small", vocab_size=280, context_length=16, **SMALL)
    self.assertEqual(experiment.model, expected)
    self.assertEqual(dataset.context_length, 16)
    self.assertEqual(dataset.tokenizer.decode(dataset.tokenizer.encode("or")), "or")
    self.assertLess(len(dataset.tokenizer.encode("To be")), 5)

  def test_how_it_is_computed_is_free(self):
    config = self.config()
    config.model.dropout_rate = 0.0
    config.model.attention = "flash"
    self.assertEqual(parse(config)[0].model.attention, "flash")

  def test_what_is_no_matter_of_the_weights_and_a_shorter_context_are_free(self):
    config = self.config()
    config.model.context_length = 9
    config.model.dropout_rate = 0.25
    config.model.dtype = "bfloat16"
    config.model.scan_layers = True
    config.model.remat = "dots"
    model = parse(config)[0].model
    self.assertEqual(
      (model.context_length, model.dropout_rate, model.dtype), (9, 0.25, "bfloat16")
    )
    self.assertEqual((model.scan_layers, model.remat), (True, "dots"))

  @parameterized.parameters(
    ("context_length", 17, "model.context_length is 17: must be at most 16"),
    ("num_heads", 4, "model.num_heads is 4: must be 2, as in init_from"),
    ("positional_encoding", "sinusoidal", "must be 'learned', as in init_from"),
    ("tied_embeddings", False, "model.tied_embeddings is False: must be True"),
    ("num_head", 2, "'num_head': did you mean 'num_heads'"),
  )
  def test_other_shapes_are_refused(self, key, value, message):
    config = self.config().unlock()
    config.model[key] = value
    with self.assertRaises(InputError) as raised:
      parse(config)
    self.assertIn(message, str(raised.exception))

  def test_adapters_are_an_argument(self):
    config = finetune.get_config("lora")
    config.init_from = str(self.source)
    config.data.path = str(self.folder / "text.txt")
    experiment, _ = parse(config)
    tuning = make_tuning(experiment.finetune, GPT2(experiment.model))
    names = [name for name, _ in tuning.kernels]
    heads = "blocks_0/attention/heads"
    self.assertEqual(names, [f"{heads}/query/kernel", f"{heads}/value/kernel"])
    self.assertEqual(parse(self.config())[0].finetune, FinetuneConfig())
    with self.assertRaisesRegex(ValueError, "unknown 'lara': allowed: lora, comple"):
      finetune.get_config("lara+completions")

  def test_so_are_completions(self):
    config = finetune.get_config("completions+lora")
    line = json.dumps({"prompt": "To be,", "completion": " or not"}) + "\n"
    (self.folder / "answers.jsonl").write_text(line * 20)
    config.init_from = str(self.source)
    config.data.path = str(self.folder / "answers.jsonl")
    experiment, dataset = parse(config)
    self.assertEqual(experiment.data.name, "completions")
    self.assertNotEqual(experiment.finetune.lora, "")
    self.assertEqual(
      dataset.tokenizer.decode(dataset.tokenizer.encode("To be")), "To be"
    )

  def test_other_tokens_are_refused(self):
    config = self.config()
    config.data.tokenizer = "byte"
    with self.assertRaisesRegex(InputError, "set data.tokenizer to init_from"):
      parse(config)

  def test_no_tokenizer_without_weights(self):
    config = text.get_config()
    config.data.path = str(self.folder / "text.txt")
    config.data.tokenizer = "init_from"
    with self.assertRaisesRegex(InputError, "init_from is empty"):
      parse(config)
