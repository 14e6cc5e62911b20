"""Adapters as PEFT has them: W + alpha / r (B A)^T, of Hugging Face's kernels."""

import contextlib
import importlib
import json
import pathlib
import shutil
import tempfile

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from gpt2_flax import load, pretrained
from gpt2_flax.errors import InputError
from gpt2_flax.hub.tokenizer import write_tokenizer
from gpt2_flax.tokenizer import CharTokenizer
from gpt2_flax.training import adapter_folder, lora
from gpt2_flax.training.config import FinetuneConfig
from gpt2_flax.training.tuning import make_tuning
from tests.close import assert_close, ROUNDINGS

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
PLAIN = GOLDEN / "plain"
RANK, ALPHA = 3, 7.0
PATTERNS = (
  "*/query/kernel",
  "*/query/kernel,*/value/kernel",
  "*",
  "blocks_0/attention/*,blocks_1/feed_forward/*,blocks_1/*/key/kernel",
)


def learned(model, params, patterns):
  """Adapters as if they had learned."""
  values = dict(lora=patterns, lora_rank=RANK, lora_alpha=ALPHA)
  tuning = make_tuning(FinetuneConfig(**values), model)
  fresh, _ = tuning.split(params, jax.random.key(1))
  return jax.tree.map(
    lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
    fresh,
  )


TOKENIZER = CharTokenizer("".join(chr(ord("A") + i) for i in range(37)))


class FolderTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    temporary = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(temporary) / "adapter"
    self.base = self.folder.with_name("base")
    self.copy_base(PLAIN, self.base)

  def copy_base(self, source, folder):
    shutil.copytree(source, folder)
    write_tokenizer(folder, TOKENIZER, context_length=16)

  def save(self, patterns=PATTERNS[1]):
    """What is saved, merged as a run would do it."""
    model, params = pretrained.load(self.base)
    adapters = learned(model, params, patterns)
    adapter_folder.save(self.folder, adapters, RANK, ALPHA, str(self.base))
    return model, lora.merged(params, adapters, ALPHA / RANK)

  @parameterized.parameters(*PATTERNS)
  def test_theirs_is_the_sum_of_ours(self, patterns):
    """By the formula, on the tensors of the base's own file."""
    _, merged = self.save(patterns)
    tensors = load_file(PLAIN / "model.safetensors")
    config = json.loads((self.folder / adapter_folder.CONFIG).read_text())
    halves = load_file(self.folder / adapter_folder.WEIGHTS)
    modules = [name.removesuffix(".lora_A.weight") for name in halves if "_A." in name]
    modules = [name.removeprefix("base_model.model.") for name in modules]
    self.assertCountEqual(config["target_modules"], modules)
    for module in modules:
      a_RI, b_OR = (
        np.float64(halves[f"base_model.model.{module}.lora_{half}.weight"])
        for half in "AB"
      )
      end = module.removeprefix("transformer.")
      rank = config["rank_pattern"].get(end, config["r"])
      self.assertLen(a_RI, rank)
      scale = config["alpha_pattern"].get(end, config["lora_alpha"]) / rank
      tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + np.float32(
        scale * (b_OR @ a_RI).T
      )
    with tempfile.TemporaryDirectory() as other:
      changed = shutil.copytree(PLAIN, pathlib.Path(other) / "model")
      save_file(tensors, changed / "model.safetensors", {"format": "pt"})
      _, expected = pretrained.load(changed)
    assert_close(merged, expected, 2 * (RANK + 2))

  @parameterized.parameters(*PATTERNS)
  def test_what_is_saved_loads_beside_its_base(self, patterns):
    model, merged = self.save(patterns)
    loaded, params, tokenizer = load(self.folder)
    self.assertEqual(loaded, model)
    assert_close(params, merged, 2 * (3 * RANK + 2))
    self.assertEqual(tokenizer.decode([2, 0]), "CA")

  def test_one_that_query_key_and_value_share_loads(self):
    """As PEFT makes it: its A is the same for all three."""
    rng = np.random.default_rng(0)
    a_RI, b_OR = rng.normal(size=(4, 16)), rng.normal(size=(48, 4))
    self.save()
    self.change(r=4, lora_alpha=10, rank_pattern={}, alpha_pattern={})
    name = "base_model.model.transformer.h.1.attn.c_attn.lora_{}.weight"
    halves = {name.format("A"): np.float32(a_RI), name.format("B"): np.float32(b_OR)}
    save_file(halves, self.folder / adapter_folder.WEIGHTS)
    found = lora.by_name(load(self.folder)[1])
    expected = lora.by_name(pretrained.load(PLAIN)[1])
    sum_IO = 10 / 4 * (b_OR @ a_RI).T
    for part, columns in zip(
      ("query", "key", "value"), np.split(sum_IO, 3, 1), strict=True
    ):
      key = f"blocks_1/attention/heads/{part}/kernel"
      expected[key] = expected[key] + np.stack(np.split(columns, 2, 1))
    assert_close(found, expected, 2 * (4 + 2), dtype=np.float32)

  def test_a_kernel_of_another_model_has_no_name(self):
    known = [
      f"blocks_3/{ours}" for group in adapter_folder.MODULES.values() for ours in group
    ]
    self.assertLen(known, 6)
    self.assertEqual(
      adapter_folder.unnamed([*known, "blocks_0/gate/kernel"]), ["blocks_0/gate/kernel"]
    )

  def change(self, **values):
    path = self.folder / adapter_folder.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))

  @parameterized.parameters(
    (dict(peft_type="IA3"), "peft_type is 'IA3': must be LORA"),
    (dict(base_model_name_or_path=None), "base_model_name_or_path is None: must be"),
    (dict(r="3"), "r is '3': must be an integer"),
    (dict(lora_alpha=True), "lora_alpha is True: must be a finite number"),
    (dict(lora_alpha=float("nan")), "lora_alpha is nan: must be a finite number"),
    (dict(lora_alpha=10**400), "lora_alpha is 1000000"),
    (dict(bias="all"), "bias is 'all': must be none"),
    (dict(use_dora=True), "use_dora is True: must be left out"),
    (dict(use_rslora=True), "use_rslora is True: must be left out"),
    (dict(modules_to_save=["wte"]), "modules_to_save is ['wte']: must be left out"),
    (dict(rank_pattern=[1]), "rank_pattern must be an object of finite numbers"),
    (
      dict(alpha_pattern={"attn.c_attn": float("inf")}),
      "alpha_pattern must be an object of finite numbers",
    ),
    (dict(rank_pattern={}), "must be of rank 3, as adapter_config.json says"),
    (dict(base_model_name_or_path="."), "base_model_name_or_path is ., which holds ad"),
    (
      dict(base_model_name_or_path="../by_layer"),
      "has an adapter of blocks_0/attention/heads/query/kernel for 16 by 16: the base",
    ),
  )
  def test_a_config_that_cannot_be_used_is_named(self, values, message):
    self.save()
    self.copy_base(GOLDEN / "by_layer", self.folder.with_name("by_layer"))
    self.change(**values)
    self.enterContext(contextlib.chdir(self.folder))
    self.assert_refused(message)

  @parameterized.parameters(
    ({"h.0.attn.c_attn.lora_A": None}, "transformer.h.0.attn.c_attn has lora_B only"),
    ({"h.0.ln_1.lora_A": (3, 16)}, "h.0.ln_1.lora_A.weight is no adapter of a kernel"),
    ({"h.7.mlp.c_fc.lora_A": (3, 16), "h.7.mlp.c_fc.lora_B": (64, 3)}, "blocks_7/feed"),
    ({"h.0.attn.c_attn.lora_A": (6, 16, 1)}, "is F32 [6, 16, 1]: must be a matrix"),
    ({"h.0.attn.c_attn.lora_B": (47, 6)}, "and of 3 equal parts"),
  )
  def test_a_tensor_that_cannot_be_used_is_named(self, changes, message):
    self.save()
    path = self.folder / adapter_folder.WEIGHTS
    halves = load_file(path)
    for name, shape in changes.items():
      name = f"base_model.model.transformer.{name}.weight"
      halves.pop(name, None)
      if shape:
        halves[name] = np.ones(shape, np.float32)
    save_file(halves, path)
    self.assert_refused(message)

  @parameterized.parameters((b"", "is not a whole safetensors"), (None, "is missing"))
  def test_a_file_that_is_none_is_named(self, content, message):
    self.save()
    path = self.folder / adapter_folder.WEIGHTS
    path.unlink()
    if content is not None:
      path.write_bytes(content)
    self.assert_refused(message)

  def assert_refused(self, message):
    with self.assertRaises(InputError) as raised:
      load(self.folder)
    self.assertIn(message, str(raised.exception))


class PeftTest(chex.TestCase):
  """`peft` itself, where it is installed beside torch and transformers."""

  def setUp(self):
    super().setUp()
    try:
      names = ("peft", "torch", "transformers")
      self.peft, self.torch, self.hub = map(importlib.import_module, names)
    except ImportError as error:
      self.skipTest(f"{error.name} is not installed")
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.tokens = np.random.default_rng(0).integers(0, 37, (3, 12))

  def base(self, folder):
    return self.hub.GPT2LMHeadModel.from_pretrained(
      folder, dtype=self.torch.float32, attn_implementation="eager"
    )

  def logits(self, model):
    return model(self.torch.tensor(self.tokens)).logits.detach().numpy()

  @parameterized.product(name=("plain", "by_layer", "untied"), patterns=PATTERNS)
  def test_opens_ours_with_our_logits(self, name, patterns):
    model, params = pretrained.load(GOLDEN / name)
    adapters = learned(model, params, patterns)
    adapter_folder.save(self.folder, adapters, RANK, ALPHA, str(GOLDEN / name))
    merged = lora.merged(params, adapters, ALPHA / RANK)
    expected = model.apply(merged, jnp.array(self.tokens))
    opened = self.peft.PeftModel.from_pretrained(self.base(GOLDEN / name), self.folder)
    assert_close(self.logits(opened.eval()), expected, ROUNDINGS)

  @parameterized.parameters(["c_attn"], ["c_attn", "c_proj", "c_fc"])
  def test_writes_what_we_open_with_its_logits(self, *targets):
    settings = dict(r=4, lora_alpha=9, target_modules=list(targets))
    config = self.peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    theirs = self.peft.get_peft_model(self.base(PLAIN), config).eval()
    with self.torch.no_grad():
      for name, parameter in theirs.named_parameters():
        if "lora_" in name:
          parameter.add_(0.3 * self.torch.randn_like(parameter))
    theirs.save_pretrained(self.folder)
    model, params = pretrained.load(PLAIN)
    _, adapters, scales = adapter_folder.load(self.folder)
    params = lora.merged(params, adapters, scales)
    found = model.apply(params, jnp.array(self.tokens))
    assert_close(found, self.logits(theirs), ROUNDINGS)
