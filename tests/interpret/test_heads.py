import functools
import math

from absl.testing import parameterized
import chex
import jax
import numpy as np

from gpt2_flax import GPT2, GPT2Config, InputError, interpret
from tests.close import assert_close, ROUNDINGS
from tests.params import random_params
from tests.reference import reference_logits

B, T, L, H, K = 3, 6, 2, 2, 4
RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.integers(0, 9, (2, B, T))
TARGETS[1, 2:] = -1  # the text ended
BATCH = {"inputs": INPUTS, "targets": TARGETS}
UNIFORM = np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None]
TO_SELF = np.eye(T)
TO_FIRST = np.eye(T)[np.zeros(T, int)]
TO_PREVIOUS = np.eye(T)[[0, 0, 1, 2, 3, 4]]
MEAN = B * T  # roundings: of a weight, of a mean over all queries but the first
ENTROPY = 4 + T + MEAN  # of a logarithm (two) and a product, a row, and the mean


def random_weights(*leading):
  odds = RNG.exponential(size=(*leading, T, T)) * np.tril(np.ones((T, T)))
  return (odds / odds.sum(-1, keepdims=True)).astype("f4")


# each as one program, not step by step
previous_token_score = jax.jit(interpret.previous_token_score)
first_token_score = jax.jit(interpret.first_token_score)
attention_entropy = jax.jit(interpret.attention_entropy)
induction_score = jax.jit(interpret.induction_score)
head_similarity = jax.jit(interpret.head_similarity)


def of_batch(pattern):
  return np.tile(pattern, (B, 1, 1)).astype("f4")


class ScoresTest(chex.TestCase):
  @parameterized.named_parameters(
    ("uniform", UNIFORM, sum(1 / t for t in range(2, T + 1)) / (T - 1)),
    ("to_self", TO_SELF, 0.0),
    ("to_previous", TO_PREVIOUS, 1.0),
    ("to_first", TO_FIRST, 1 / (T - 1)),  # the second token's previous is the first
  )
  def test_previous_token_score(self, pattern, expected):
    assert_close(previous_token_score(of_batch(pattern)), expected, MEAN)

  @parameterized.named_parameters(
    ("uniform", UNIFORM, sum(1 / t for t in range(2, T + 1)) / (T - 1)),
    ("to_self", TO_SELF, 0.0),
    ("to_previous", TO_PREVIOUS, 1 / (T - 1)),
    ("to_first", TO_FIRST, 1.0),
  )
  def test_first_token_score(self, pattern, expected):
    assert_close(first_token_score(of_batch(pattern)), expected, MEAN)

  @parameterized.named_parameters(
    ("uniform", UNIFORM, sum(math.log(t) for t in range(2, T + 1)) / (T - 1)),
    ("to_previous", TO_PREVIOUS, 0.0),
    ("half_half", (TO_SELF + TO_PREVIOUS) / 2, math.log(2)),
  )
  def test_attention_entropy(self, pattern, expected):
    assert_close(attention_entropy(of_batch(pattern)), expected, ENTROPY)

  def test_induction_score_by_hand(self):
    tokens = np.array([[7, 4, 4, 7, 5, 4]])
    # t=2 (4): what followed the 4 at 1 is itself, at 2. t=3 (7): the 4 at 1.
    # t=5 (4): the 4 at 2 and the 7 at 3. No other token was there before.
    weights = np.zeros((1, T, T), "f4")
    weights[0, 2, 2], weights[0, 3, 1], weights[0, 5, 2], weights[0, 5, 3] = (
      0.1,
      0.4,
      0.2,
      0.5,
    )
    weights[0, 4, 1] = 1.0  # of a token that is new
    weights[0, 5, 0] = weights[0, 3, 0] = 0.3  # nothing stands before the first
    score = induction_score(weights, tokens)
    assert_close(score, (0.1 + 0.4 + 0.7) / 3, 1 + T * T)  # all weights are summed

  def test_induction_score_of_a_perfect_head_on_a_repeated_text(self):
    tokens = np.array([[3, 1, 2, 3, 1, 2]])
    perfect = np.eye(T)[[0, 0, 0, 1, 2, 3]][None].astype("f4")
    to_self = TO_SELF[None].astype("f4")
    self.assertEqual(float(induction_score(perfect, tokens)), 1.0)
    self.assertEqual(float(induction_score(to_self, tokens)), 0.0)

  def test_without_a_repeated_token_there_is_no_induction_score(self):
    score = induction_score(random_weights(1), np.arange(T)[None])
    self.assertTrue(math.isnan(score))

  def test_every_head_has_its_own_scores(self):
    weights = random_weights(L, H, B)

    def brute_force(pick):
      scores = np.zeros((L, H))
      for layer, head in np.ndindex(L, H):
        values = [
          value
          for b in range(B)
          for t in range(1, T)
          if (value := pick(weights[layer, head, b], b, t)) is not None
        ]
        scores[layer, head] = np.mean(values)
      return scores

    def followers(w, b, t):
      at = [s for s in range(1, t + 1) if INPUTS[b, s - 1] == INPUTS[b, t]]
      return sum(w[t, s] for s in at) if at else None

    for score, pick in (
      (previous_token_score, lambda w, b, t: w[t, t - 1]),
      (first_token_score, lambda w, b, t: w[t, 0]),
      (
        attention_entropy,
        lambda w, b, t: -sum(p * math.log(p) for p in w[t, : t + 1]),
      ),
      (lambda w: induction_score(w, INPUTS), followers),
    ):
      assert_close(
        score(weights), brute_force(pick), T * MEAN
      )  # the most that are summed

  @parameterized.parameters((2, 3), (1, 1))
  def test_weights_of_a_cached_call_are_refused(self, length, num_keys):
    weights = np.ones((1, length, num_keys), "f4")
    for score in (
      interpret.previous_token_score,
      interpret.first_token_score,
      interpret.attention_entropy,
      lambda w: interpret.induction_score(w, np.ones((1, length), int)),
      lambda w: interpret.head_similarity(w[None, None]),
    ):
      with self.assertRaisesRegex(InputError, f"T = {length} .* S = {num_keys} "):
        score(weights)

  def test_tokens_of_another_shape_are_refused(self):
    with self.assertRaisesRegex(InputError, r"shape \(3, 5\): must be \(3, 6\)"):
      interpret.induction_score(random_weights(B), INPUTS[:, 1:])


class SimilarityTest(chex.TestCase):
  def test_alike_and_apart(self):
    patterns = [of_batch(p) for p in (TO_SELF, TO_PREVIOUS, TO_PREVIOUS, UNIFORM)]
    similarity = head_similarity(np.reshape(patterns, (L, H, B, T, T)))
    similarity = np.asarray(similarity).reshape(4, 4)
    expected = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    assert_close(similarity[:3, :3], np.array(expected))

  def test_is_one_minus_the_jensen_shannon_divergence_in_bits(self):
    weights = random_weights(L, H, B)
    similarity = head_similarity(weights)
    chex.assert_shape(similarity, (L, H, L, H))

    def kl(p, q):
      return sum(a * math.log2(a / b) for a, b in zip(p, q, strict=True) if a > 0)

    expected = np.zeros((L, H, L, H))
    for i, j, k, m in np.ndindex(L, H, L, H):
      divergences = []
      for b in range(B):
        for t in range(1, T):
          p, q = (weights[at][b, t].astype("f8") for at in ((i, j), (k, m)))
          divergences.append((kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2)
      expected[i, j, k, m] = 1 - np.mean(divergences)
    assert_close(similarity, expected)


@functools.cache
def model_and_params(**changes):
  values = dict(vocab_size=9, context_length=8, num_layers=L, num_heads=H)
  model = GPT2(GPT2Config(**(values | dict(embed_dim=H * K, mlp_dim=6) | changes)))
  return model, random_params(model, scale=0.4, seed=1)


def loss(params):
  """By hand, in float64: over the targets that are there."""
  logits = reference_logits(params, INPUTS, model_and_params()[0].config)
  chosen = np.take_along_axis(logits, np.maximum(TARGETS, 0)[..., None], -1)[..., 0]
  return (np.log(np.exp(logits).sum(-1)) - chosen)[TARGETS >= 0].mean()


def with_scaled_heads(scale_LH, add=0.0):
  """The params of a model with heads scaled; those at 0 say `add`."""
  params = jax.tree.map(np.float64, model_and_params()[1])
  for layer, head in np.ndindex(L, H):
    output = params["params"][f"blocks_{layer}"]["attention"]["output"]
    rows = output["kernel"][head * K : (head + 1) * K]
    if not scale_LH[layer, head]:
      output["bias"] += np.broadcast_to(add, K) @ rows
    rows *= scale_LH[layer, head]
  return params


def loss_with_scaled_head(layer, head, scale, add=0.0):
  scale_LH = np.ones((L, H))
  scale_LH[layer, head] = scale
  return loss(with_scaled_heads(scale_LH, add))


class AblationTest(chex.TestCase):
  @staticmethod
  @functools.cache
  def head_output():
    model, params = model_and_params()
    run = jax.jit(functools.partial(interpret.trace, model, taps=["head_output"]))
    return np.asarray(run(params, INPUTS)[1].head_output)

  @parameterized.parameters(("zero", 3), ("mean", 100))
  def test_is_the_loss_without_the_head_minus_the_loss(self, to, heads_at_once):
    model, params = model_and_params()
    head_output = self.head_output()
    expected = np.zeros((L, H))
    for layer, head in np.ndindex(L, H):
      mean = head_output[layer, head].reshape(-1, K).mean(0)
      add = mean if to == "mean" else 0.0
      expected[layer, head] = loss_with_scaled_head(layer, head, 0, add) - loss(params)
    self.assertGreater(np.abs(expected).min(), 1e-3)
    found = interpret.head_ablation(
      model, params, BATCH, to=to, heads_at_once=heads_at_once
    )
    assert_close(found, expected, scale=loss(params))  # a difference of two

  def test_heads_that_are_gone_already_cost_nothing(self):
    model, params = model_and_params()
    gone = np.eye(2)
    edited = interpret.edited(model, params, [interpret.ablate_heads(gone)])
    found = interpret.head_ablation(*edited, BATCH)

    def exact_loss(heads):
      return loss(with_scaled_heads(1 - np.maximum(gone, heads)))

    heads = np.eye(L * H).reshape(-1, L, H)
    whole = exact_loss(gone)
    expected = np.reshape([exact_loss(head) - whole for head in heads], (L, H))
    self.assertEqual(expected[0, 0], 0)
    self.assertGreater(np.abs(expected[0, 1]), 1e-3)
    assert_close(found, expected, scale=whole)  # a difference of two

  def test_refuses(self):
    with self.assertRaisesRegex(InputError, "unknown ablation 'men': did you mean"):
      interpret.head_ablation(*model_and_params(), BATCH, to="men")
    with self.assertRaisesRegex(InputError, "heads_at_once is 0"):
      interpret.head_ablation(*model_and_params(), BATCH, heads_at_once=0)

  def test_the_gradient_is_the_slope_of_the_loss(self):
    slopes = np.zeros((L, H))
    step = 1e-4  # whose square is what the slope may be off by
    for layer, head in np.ndindex(L, H):
      above, below = (loss_with_scaled_head(layer, head, 1 + s) for s in (step, -step))
      slopes[layer, head] = (above - below) / (2 * step)
    gradient = interpret.head_gradient(*model_and_params(), BATCH)
    assert_close(gradient, slopes, 2 * ROUNDINGS)
    self.assertGreater(abs(slopes).min(), 5e-3)
