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
    assert_close(interpret.previous_token_score(of_batch(pattern)), expected, MEAN)

  @parameterized.named_parameters(
    ("uniform", UNIFORM, sum(1 / t for t in range(2, T + 1)) / (T - 1)),
    ("to_self", TO_SELF, 0.0),
    ("to_previous", TO_PREVIOUS, 1 / (T - 1)),
    ("to_first", TO_FIRST, 1.0),
  )
  def test_first_token_score(self, pattern, expected):
    assert_close(interpret.first_token_score(of_batch(pattern)), expected, MEAN)

  @parameterized.named_parameters(
    ("uniform", UNIFORM, sum(math.log(t) for t in range(2, T + 1)) / (T - 1)),
    ("to_previous", TO_PREVIOUS, 0.0),
    ("half_half", (TO_SELF + TO_PREVIOUS) / 2, math.log(2)),
  )
  def test_attention_entropy(self, pattern, expected):
    assert_close(interpret.attention_entropy(of_batch(pattern)), expected, ENTROPY)

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
    score = interpret.induction_score(weights, tokens)
    assert_close(score, (0.1 + 0.4 + 0.7) / 3, 1 + T * T)  # all weights are summed

  def test_induction_score_of_a_perfect_head_on_a_repeated_text(self):
    tokens = np.array([[3, 1, 2, 3, 1, 2]])
    perfect = np.eye(T)[[0, 0, 0, 1, 2, 3]][None].astype("f4")
    self.assertEqual(float(interpret.induction_score(perfect, tokens)), 1.0)
    self.assertEqual(float(interpret.induction_score(TO_SELF[None], tokens)), 0.0)

  def test_without_a_repeated_token_there_is_no_induction_score(self):
    score = interpret.induction_score(random_weights(1), np.arange(T)[None])
    self.assertTrue(math.isnan(score))

  @chex.variants(with_jit=True, without_jit=True)
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
      (interpret.previous_token_score, lambda w, b, t: w[t, t - 1]),
      (interpret.first_token_score, lambda w, b, t: w[t, 0]),
      (
        interpret.attention_entropy,
        lambda w, b, t: -sum(p * math.log(p) for p in w[t, : t + 1]),
      ),
      (lambda w: interpret.induction_score(w, INPUTS), followers),
    ):
      found = self.variant(score)(weights)
      assert_close(found, brute_force(pick), T * MEAN)  # the most that are summed

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
    patterns = np.stack([of_batch(p) for p in (TO_SELF, TO_PREVIOUS)])
    similarity = interpret.head_similarity(patterns[None])
    assert_close(similarity[0, :, 0], np.eye(2))

  def test_is_one_minus_the_jensen_shannon_divergence_in_bits(self):
    weights = random_weights(L, H, B)
    similarity = interpret.head_similarity(weights)
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


def loss_with_scaled_head(layer, head, scale, add=0.0):
  params = jax.tree.map(np.float64, model_and_params()[1])
  output = params["params"][f"blocks_{layer}"]["attention"]["output"]
  rows = output["kernel"][head * K : (head + 1) * K]
  output["bias"] += add @ rows if np.ndim(add) else 0
  rows *= scale
  return loss(params)


class AblationTest(chex.TestCase):
  @parameterized.parameters(("zero", None), ("zero", 3), ("mean", 100))
  def test_is_the_loss_without_the_head_minus_the_loss(self, to, heads_at_once):
    model, params = model_and_params()
    trace = jax.jit(functools.partial(interpret.trace, model))(params, INPUTS)[1]
    expected = np.zeros((L, H))
    for layer, head in np.ndindex(L, H):
      mean = np.asarray(trace.head_output[layer, head]).reshape(-1, K).mean(0)
      add = mean if to == "mean" else 0.0
      expected[layer, head] = loss_with_scaled_head(layer, head, 0, add) - loss(params)
    self.assertGreater(np.abs(expected).min(), 1e-3)
    found = interpret.head_ablation(
      model, params, BATCH, to=to, heads_at_once=heads_at_once
    )
    assert_close(found, expected, scale=loss(params))  # a difference of two

  def test_heads_that_are_gone_already_cost_nothing(self):
    model, params = model_and_params()
    gone = interpret.ablate_heads([[1, 0], [0, 1]])
    rise = interpret.head_ablation(*interpret.edited(model, params, [gone]), BATCH)
    assert_close(rise[[0, 1], [0, 1]], np.zeros(2), scale=loss(params))
    self.assertGreater(float(abs(rise[0, 1])), 1e-3)

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
