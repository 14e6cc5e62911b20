"""Tokens a second of greedy generation, with the cache and without.

    python -m benchmarks.generation                    GPT-2 small, random weights
    python -m benchmarks.generation --size=medium --rounds=5

The two take turns, round after round, after one round that compiles; what is printed is
the median and the range over the rounds.
"""

import functools
import statistics
import time

from absl import app, flags, logging
import jax
import jax.numpy as jnp
import numpy as np

from gpt2_flax import generation, GPT2, GPT2Config

_SIZE = flags.DEFINE_string("size", "small", "As published.")
_PROMPT = flags.DEFINE_integer("prompt", 128, "Tokens in each prompt.")
_NEW = flags.DEFINE_integer("new", 128, "Tokens to add to each, with the cache.")
_NEW_UNCACHED = flags.DEFINE_integer("new_uncached", 8, "And without.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8"], "Prompts at once.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "How often each is timed.")


def cached(model, params, prompts, num_tokens):
  """As sample.py does it: int [B, num_tokens]."""
  sampling = generation.Sampling(temperature=0)
  return np.array(
    generation.generate(
      model, params, prompts.tolist(), num_tokens=num_tokens, sampling=sampling
    )
  )


@functools.partial(jax.jit, static_argnames="model")
def _next(model, params, tokens_BT, length):
  logits_BTV = model.apply(params, tokens_BT)
  return jnp.argmax(logits_BTV[:, length - 1], axis=-1)


def uncached(model, params, prompts, num_tokens):
  """Reads the whole text again for each token; padded to its final length."""
  length = prompts.shape[1]
  tokens = np.pad(prompts, ((0, 0), (0, num_tokens)))
  for end in range(length, length + num_tokens):
    tokens[:, end] = _next(model, params, tokens, end)
  return tokens[:, length:]


def main(_) -> None:
  """Times both, prints a table."""
  model = GPT2(GPT2Config.published(_SIZE.value))
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  rng = np.random.default_rng(0)
  print("batch  how       tokens/s: median (range)   ms a token of each text")
  for batch_size in map(int, _BATCH_SIZES.value):
    prompts = rng.integers(0, model.config.vocab_size, (batch_size, _PROMPT.value))
    ways = {"cached": (cached, _NEW.value), "uncached": (uncached, _NEW_UNCACHED.value)}
    made, seconds = {}, {name: [] for name in ways}
    for _ in range(1 + _ROUNDS.value):
      for name, (generate, num_tokens) in ways.items():
        began = time.perf_counter()
        made[name] = generate(model, params, prompts, num_tokens)
        seconds[name].append(time.perf_counter() - began)
    shared = min(_NEW.value, _NEW_UNCACHED.value)
    assert (made["cached"][:, :shared] == made["uncached"][:, :shared]).all()
    for name, (_, num_tokens) in ways.items():
      rates = sorted(batch_size * num_tokens / s for s in seconds[name][1:])
      median = statistics.median(rates)
      spread = f"({rates[0]:.2f} to {rates[-1]:.2f})"
      print(
        f"{batch_size:5d}  {name:8s}  {median:8.2f} {spread:20s}"
        f"  {1000 * batch_size / median:8.1f}"
      )


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  app.run(main)
