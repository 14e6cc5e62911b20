"""Greedy generation on CPUs at GPT-2 small's size: ours, transformers', nanoGPT's.

    python -m benchmarks.generation --peers=transformers,nanogpt --nanogpt=DIR
    python -m benchmarks.generation                         ours alone
    python -m benchmarks.generation --batch_sizes=1 --rounds=5

Random weights in float32, prompts of 128 random tokens. "ours" is `generate`, as
sample.py calls it; "transformers" its `generate` with its cache; "nanogpt" its
`generate`, and "uncached" ours without a cache: both read the whole text again for each
token, and are asked for fewer of them. "limit" reads as many bytes as the weights are,
once a token: nothing that reads them all can be faster.
"""

import contextlib
import statistics
import sys
import time

from absl import app, flags, logging
import numpy as np

from benchmarks import turns

_PEERS = flags.DEFINE_list("peers", [], "transformers, nanogpt.")
_NANOGPT = flags.DEFINE_string("nanogpt", None, "Where nanoGPT's model.py lies.")
_PROMPT = flags.DEFINE_integer("prompt", 128, "Tokens in each prompt.")
_NEW = flags.DEFINE_integer("new", 256, "Tokens to add to each, with a cache.")
_NEW_UNCACHED = flags.DEFINE_integer("new_uncached", 8, "And without.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8"], "Texts at once.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns that each takes.")
_CONTENDER = flags.DEFINE_string("contender", None, "Internal: who this process is.")

VOCAB_SIZE = 50_257


def prompts(batch_size: int) -> np.ndarray:
  """int [batch_size, prompt]."""
  shape = (batch_size, _PROMPT.value)
  return np.random.default_rng(0).integers(0, VOCAB_SIZE, shape)


def our_model():
  """GPT-2 small, and random parameters."""
  import jax
  import jax.numpy as jnp

  from gpt2_flax import GPT2, GPT2Config

  model = GPT2(GPT2Config.published("small"))
  return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))


def ours():
  """(prompts) -> tokens, with the cache."""
  from gpt2_flax import generation

  model, params = our_model()
  greedy = generation.Sampling(temperature=0)
  return lambda texts: generation.generate(
    model, params, texts.tolist(), num_tokens=_NEW.value, sampling=greedy
  )


def uncached():
  """(prompts) -> tokens; texts are padded to their final length."""
  import jax
  import jax.numpy as jnp

  model, params = our_model()

  @jax.jit
  def next_tokens(params, tokens_BT, length):
    logits_BTV = model.apply(params, tokens_BT)
    return jnp.argmax(logits_BTV[:, length - 1], axis=-1)

  def generate(texts):
    tokens = np.pad(texts, ((0, 0), (0, _NEW_UNCACHED.value)))
    for end in range(texts.shape[1], tokens.shape[1]):
      tokens[:, end] = next_tokens(params, tokens, end)
    return tokens

  return generate


def transformers():
  """(prompts) -> tokens."""
  import torch
  from transformers import GPT2Config, GPT2LMHeadModel

  model = GPT2LMHeadModel(GPT2Config()).eval()

  def generate(texts):
    with torch.no_grad():
      return model.generate(
        torch.from_numpy(texts),
        attention_mask=torch.ones(texts.shape, dtype=torch.long),
        do_sample=False,
        use_cache=True,
        min_new_tokens=_NEW.value,
        max_new_tokens=_NEW.value,
        pad_token_id=0,
      )

  return generate


def nanogpt():
  """(prompts) -> tokens."""
  import torch

  sys.path.insert(0, _NANOGPT.value)
  from model import GPT, GPTConfig

  with contextlib.redirect_stdout(sys.stderr):
    model = GPT(GPTConfig(vocab_size=VOCAB_SIZE, dropout=0.0)).eval()

  def generate(texts):
    with torch.no_grad():
      return model.generate(torch.from_numpy(texts), _NEW_UNCACHED.value, top_k=1)

  return generate


def limit():
  """(prompts) -> the sum of as many numbers as are read for one token."""
  import jax
  import jax.numpy as jnp

  from gpt2_flax.transformer import num_params

  model, params = our_model()
  positions = model.config.context_length * model.config.embed_dim  # are looked up
  numbers = jnp.ones(num_params(params) - positions, jnp.float32)
  total = jax.jit(jnp.sum)
  return lambda texts: [total(numbers).block_until_ready() for _ in range(_NEW.value)]


CONTENDERS = {f.__name__: f for f in (ours, uncached, transformers, nanogpt, limit)}


def work(generate, num_tokens: int) -> dict[str, float]:
  """A turn: seconds a step, for each batch size."""
  seconds = {}
  for batch_size in _BATCH_SIZES.value:
    texts = prompts(int(batch_size))
    began = time.perf_counter()
    generate(texts)
    seconds[batch_size] = (time.perf_counter() - began) / num_tokens
  return seconds


def main(_) -> None:
  """Lets them take turns, prints a table."""
  if name := _CONTENDER.value:
    generate = CONTENDERS[name]()
    few = name in ("uncached", "nanogpt")
    num_tokens = _NEW_UNCACHED.value if few else _NEW.value
    work(generate, num_tokens)  # compiles
    turns.serve(lambda: work(generate, num_tokens))
    return
  names = ["ours", *_PEERS.value, "uncached", "limit"]
  found = turns.take_turns("benchmarks.generation", names, _ROUNDS.value, env={})
  rows = []
  for batch_size in _BATCH_SIZES.value:
    for name in names:
      seconds = [turn[batch_size] for turn in found[name]]
      ratios = [
        theirs / turn[batch_size]
        for theirs, turn in zip(seconds, found["ours"], strict=True)
      ]
      rows.append(
        [
          batch_size,
          name,
          turns.spread([1000 * s for s in seconds], 1),
          f"{int(batch_size) / statistics.median(seconds):.1f}",
          turns.spread(ratios, 2),
        ]
      )
  print(turns.table(["batch", "who", "ms a step", "tokens/s", "time / ours"], rows))


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main)
