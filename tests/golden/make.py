"""Small GPT-2s with what PyTorch says of them, for tests that have no PyTorch.

    pip install torch transformers
    python tests/golden/make.py            writes the folders beside this file
    python tests/golden/make.py --check    measures this project against PyTorch

A folder holds a model as transformers saves it, and
  expected.safetensors   tokens [B, T], their logits [B, T, V] and next-token loss;
                         prompts [B, 4] and the 8 tokens that greedy decoding adds
  gradients.safetensors  of that loss, under the names of the weights
Weights are drawn wide, norms and biases too, so that no part is close to idle.
"""

import json
import pathlib
import shutil
import sys
import tempfile

from safetensors.torch import load_file, save_file
import torch
import transformers
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, pipeline

HERE = pathlib.Path(__file__).parent
LOGITS, LOSS, GRADIENTS = 1e-5, 1e-5, 1e-4  # the largest differences allowed
SMALL = dict(vocab_size=37, n_positions=16, n_embd=16, n_layer=2, n_head=2)
SMALL |= dict(bos_token_id=0, eos_token_id=0)
SHAPES = {
  "plain": {},
  "wide": dict(
    n_head=4,
    n_inner=24,
    n_positions=40,
    layer_norm_epsilon=1e-2,
    activation_function="gelu",
  ),
  "untied": dict(tie_word_embeddings=False, activation_function="relu", n_head=1),
  "by_layer": dict(
    scale_attn_by_inverse_layer_idx=True,
    reorder_and_upcast_attn=True,
    n_layer=3,
    n_embd=12,
    n_head=3,
    activation_function="gelu_pytorch_tanh",
  ),
  "unscaled": dict(scale_attn_weights=False, n_layer=1),
  "sharded": {},  # in two files, bfloat16
  "old": {},  # names without a prefix, masks among the weights, a short config; float16
}
STORED_AS = {"sharded": torch.bfloat16, "old": torch.float16}


def random_model(name: str, seed: int) -> GPT2LMHeadModel:
  torch.manual_seed(seed)
  model = GPT2LMHeadModel(GPT2Config(**(SMALL | SHAPES[name])))
  dtype = STORED_AS.get(name, torch.float32)
  with torch.no_grad():
    for key, parameter in model.named_parameters():
      is_scale = key.split(".")[-2].startswith("ln_") and key.endswith("weight")
      values = torch.randn_like(parameter) * 0.3 + is_scale
      parameter.copy_(values.to(dtype))  # as they will be stored
  return model.eval()


def open_model(folder: pathlib.Path) -> GPT2LMHeadModel:
  model, info = GPT2LMHeadModel.from_pretrained(
    folder,
    dtype=torch.float32,
    attn_implementation="eager",
    output_loading_info=True,
  )
  assert not info["missing_keys"], info
  assert not info["mismatched_keys"], info
  return model.eval()


def expect(model: GPT2LMHeadModel, tokens: torch.Tensor) -> tuple[dict, dict, float]:
  """What PyTorch says, gradients, and how sure the least sure greedy choice was."""
  model.zero_grad()
  output = model(tokens, labels=tokens)
  output.loss.backward()
  gradients = {key: value.grad for key, value in model.named_parameters()}
  continued, margin = tokens[:, :4], float("inf")
  with torch.no_grad():
    for _ in range(8):
      best = model(continued).logits[:, -1].topk(2)
      margin = min(margin, (best.values[:, 0] - best.values[:, 1]).min().item())
      continued = torch.cat([continued, best.indices[:, :1]], dim=1)
  expected = dict(
    tokens=tokens.int(),
    logits=output.logits.detach(),
    loss=output.loss.detach(),
    prompts=continued[:, :4].int().contiguous(),
    greedy=continued[:, 4:].int().contiguous(),
  )
  return expected, gradients, margin


def write(name: str) -> None:
  folder = HERE / name
  shutil.rmtree(folder, ignore_errors=True)
  for seed in range(100):
    model = random_model(name, seed)
    tokens = torch.randint(model.config.vocab_size, (2, 10))
    if expect(model, tokens)[2] > 0.01:
      break
  shard = "10KB" if name == "sharded" else "1GB"
  if name in STORED_AS:
    model = model.to(STORED_AS[name])
  model.save_pretrained(folder, max_shard_size=shard)
  (folder / "generation_config.json").unlink()
  if name == "old":
    make_old(folder)
  expected, gradients, _ = expect(open_model(folder), tokens)
  save_file(expected, folder / "expected.safetensors")
  save_file(gradients, folder / "gradients.safetensors")


def make_old(folder: pathlib.Path) -> None:
  """Rewrites a folder the way the first published ones are."""
  weights = load_file(folder / "model.safetensors")
  weights = {key.removeprefix("transformer."): value for key, value in weights.items()}
  size = SMALL["n_positions"]
  for layer in range(SMALL["n_layer"]):
    mask = torch.tril(torch.ones(1, 1, size, size))
    weights[f"h.{layer}.attn.bias"] = mask
    weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
  save_file(weights, folder / "model.safetensors", {"format": "pt"})
  config = SMALL | dict(model_type="gpt2", n_ctx=size, layer_norm_epsilon=1e-5)
  (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def check(name: str) -> bool:
  """Prints the largest differences; whether all of them are within bounds."""
  import jax
  import jax.numpy as jnp
  import optax

  from gpt2_flax import pretrained

  folder = HERE / name
  committed = load_file(folder / "expected.safetensors")
  tokens = committed["tokens"].long()
  expected, gradients, _ = expect(open_model(folder), tokens)
  model, params = pretrained.load(folder)

  def loss_and_logits(params):
    logits = model.apply(params, jnp.asarray(tokens.int().numpy()))
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits[:, :-1], tokens[:, 1:].numpy()
    )
    return losses.mean(), logits

  (loss, logits), grads = jax.value_and_grad(loss_and_logits, has_aux=True)(params)
  with tempfile.TemporaryDirectory() as scratch:
    # Both ways through their names: our gradients written out, ours saved and opened.
    pretrained.save(f"{scratch}/gradients", model, grads)
    ours = load_file(f"{scratch}/gradients/model.safetensors")
    pretrained.save(f"{scratch}/saved", model, params)
    reopened = open_model(pathlib.Path(f"{scratch}/saved"))
    exported = reopened(tokens).logits.detach()
  assert ours.keys() == gradients.keys()
  gradient = max((ours[key] - gradients[key]).abs().max() for key in gradients)
  differences = {
    "logits": (abs(logits - expected["logits"].numpy()).max(), LOGITS),
    "loss": (abs(loss - expected["loss"].item()), LOSS),
    "gradient": (gradient, GRADIENTS),
    "committed": ((committed["logits"] - expected["logits"]).abs().max(), LOGITS),
    "exported": ((exported - expected["logits"]).abs().max(), LOGITS),
  }
  figures = "  ".join(f"{key} {float(d):.1e}" for key, (d, _) in differences.items())
  print(f"{name:9} {figures}")
  return all(difference <= bound for difference, bound in differences.values())


def agrees_in_batches(folder: pathlib.Path, prompts: list[str]) -> bool:
  """Whether transformers writes the same on prompts together as on each alone."""
  write = pipeline("text-generation", str(folder), device="cpu")
  settings = dict(do_sample=False, max_new_tokens=5)
  together = write(prompts, batch_size=len(prompts), **settings)
  return together == [write(prompt, **settings) for prompt in prompts]


def check_exports() -> bool:
  """Models and tokenizers that transformers has no class for, opened by it."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from gpt2_flax import GPT2, pretrained
  from gpt2_flax import GPT2Config as Config
  from gpt2_flax.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    WordTokenizer,
  )

  tokens = torch.arange(10)[None] % 7
  rng = np.random.default_rng(0)
  agree = True
  texts = {"word": "the  cat sat\n on", "char": "the cat\nsat", "byte": "Katze: 日本"}
  texts |= {"bpe": "the cat sat"}
  for tokenizer, kind in (
    (WordTokenizer(["the", "cat", "sat", "on", ".", "mat"]), "sinusoidal"),
    (CharTokenizer("the cat\nsat"), "none"),
    (ByteTokenizer(), "learned"),
    (BPETokenizer.train(["the cat sat on the mat"], 270), "learned"),
  ):
    config = Config(
      vocab_size=tokenizer.vocab_size,
      context_length=24,
      num_layers=2,
      num_heads=2,
      embed_dim=8,
      positional_encoding=kind,
    )
    model = GPT2(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3), params)
    text = texts[tokenizer.kind]
    logits = model.apply(params, jnp.asarray(tokens.int().numpy()))
    with tempfile.TemporaryDirectory() as scratch:
      folder = pathlib.Path(scratch) / "model"
      pretrained.save(folder, model, params, tokenizer)
      difference = abs(
        open_model(folder)(tokens).logits.detach().numpy() - logits
      ).max()
      theirs = AutoTokenizer.from_pretrained(folder)
      batch = agrees_in_batches(folder, [text, text.split()[0]])
      half = folder.with_name("half")
      pretrained.save(half, model, params, tokenizer, dtype="bfloat16")
      stored = GPT2LMHeadModel.from_pretrained(half).dtype
    ids = theirs(text)["input_ids"]
    same = ids == tokenizer.start(text)
    same &= theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    print(
      f"export    {kind} {difference:.1e}  {tokenizer.kind} tokens equal: {same}"
      f"  batches: {batch}  {stored}"
    )
    agree &= same and batch and bool(difference <= LOGITS) and stored is torch.bfloat16
  return agree


if __name__ == "__main__":
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  if sys.argv[1:] == ["--check"]:
    sys.path.insert(0, str(HERE.parents[1]))
    results = [check(name) for name in SHAPES] + [check_exports()]
    sys.exit(0 if all(results) else 1)
  for golden in SHAPES:
    write(golden)
