"""Sweeps of patches, each against a NumPy model that is patched by hand."""

import functools

from absl.testing import parameterized
import chex
import jax
import numpy as np
import pytest

from gpt2_flax import GPT2, GPT2Config, InputError, interpret
from tests.close import assert_close, ROUNDINGS
from tests.interpret import by_hand
from tests.params import random_params

B, T, L, H, D, K = 2, 4, 3, 2, 8, 4
TOKENS, OTHERS = np.random.default_rng(0).integers(0, 9, (2, B, T))
OTHERS[:, 0] = TOKENS[:, 0]
ANSWER, OTHER = 3, 5


def metric(logits_BTV):
  return (logits_BTV[:, -1, ANSWER] - logits_BTV[:, -1, OTHER]).mean()


@functools.cache
def model_and_params():
  config = GPT2Config(
    vocab_size=9,
    context_length=T,
    num_layers=L,
    num_heads=H,
    embed_dim=D,
    mlp_dim=6,
    positional_encoding="learned",
    layer_norm_epsilon=by_hand.EPSILON,
  )
  model = GPT2(config)
  # of this seed every head has something to tell every other
  return model, random_params(model, seed=5)


@functools.cache
def traced(others=True):
  model, params = model_and_params()
  run = jax.jit(functools.partial(interpret.trace, model))
  return jax.tree.map(np.asarray, run(params, OTHERS if others else TOKENS)[1])


def run_by_hand(tokens=TOKENS, replace=lambda name, layer, value: value):
  return by_hand.forward(by_hand.exact(model_and_params()[1]), tokens, H, replace)


def changed_by(replace):
  return metric(run_by_hand(replace=replace)[0]) - metric(run_by_hand()[0])


SCALE = 13.0  # of the logits, whose roundings a difference of metrics has
SEEN = 10 * ROUNDINGS * 2**-24 * SCALE  # what is larger is no rounding


class ActivationPatchingTest(chex.TestCase):
  def test_of_the_stream_by_position_and_layer(self):
    self.assert_is_by_hand("TL", 5)
    run = functools.partial(interpret.activation_patching, metric=metric)
    of = (*model_and_params(), TOKENS, traced())
    chex.assert_shape(jax.eval_shape(lambda: run(*of)), (L, T))

  @pytest.mark.slow  # the axes' order is that of the other way, and of heads
  def test_of_the_stream_by_layer_and_position(self):
    self.assert_is_by_hand("LT", None)

  def assert_is_by_hand(self, over, at_once):
    _, others = run_by_hand(OTHERS)
    expected = np.zeros((L, T))
    for layer, position in np.ndindex(L, T):

      def replace(name, at, value, layer=layer, position=position):
        if (name, at) != ("residual_before", layer):
          return value
        patched = value.copy()
        patched[:, position] = others[name, at][:, position]
        return patched

      expected[layer, position] = changed_by(replace)
    found = interpret.activation_patching(
      *model_and_params(), TOKENS, traced(), metric, over=over, at_once=at_once
    )
    assert_close(found, expected if over == "LT" else expected.T, scale=SCALE)
    self.assertGreater(np.abs(expected[:, -1]).min(), SEEN)
    at_first = np.asarray(found).T[0] if over == "LT" else found[0]
    assert_close(at_first, np.zeros(L), scale=SCALE)

  def test_of_heads_of_a_model_that_is_edited(self):
    """The patch comes after the edits: a head that was taken away speaks again."""
    _, others = run_by_hand(OTHERS)
    gone = np.zeros((L, H), bool)
    gone[0, 1] = True

    def without(name, at, value):
      if name != "head_output":
        return value
      return np.where(gone[at][:, None, None, None], 0, value)

    expected = np.zeros((L, H))
    for layer, head in np.ndindex(L, H):

      def replace(name, at, value, layer=layer, head=head):
        value = without(name, at, value)
        if (name, at) == ("head_output", layer):
          value[head] = others[name, at][head]
        return value

      expected[layer, head] = metric(run_by_hand(replace=replace)[0])
    expected -= metric(run_by_hand(replace=without)[0])
    model, params = interpret.edited(
      *model_and_params(), [interpret.ablate_heads(gone)]
    )
    found = interpret.activation_patching(
      model, params, TOKENS, traced(), metric, "head_output", "LH"
    )
    assert_close(found, expected, scale=SCALE)
    self.assertGreater(np.abs(expected).min(), SEEN)


class AttributionPatchingTest(chex.TestCase):
  def test_is_activation_patching_for_small_differences(self):
    self.assert_is_by_hand("residual_before", "TL")

  @pytest.mark.slow  # sites differ in their axes only
  def test_so_it_is_of_heads(self):
    self.assert_is_by_hand("head_output", "LH")

  def assert_is_by_hand(self, site, over):
    """By hand: the slope, from steps of a thousandth of the difference to both sides.

    Its square is what a slope may be off by.
    """
    _, here = run_by_hand()
    source = traced()[site]
    axes = interpret.TAPS[site]
    indices = np.ndindex(*(source.shape[axes.index(axis)] for axis in over))
    expected = np.zeros([source.shape[axes.index(axis)] for axis in over])
    for index in indices:
      at = dict(zip(over, index, strict=True))
      place = tuple(at.get(axis, slice(None)) for axis in axes)

      def moved(share, place=place):
        def replace(name, layer, value):
          if (name, layer) != (site, place[0]):
            return value
          patched = value.copy()
          away = np.asarray(source[layer], np.float64) - here[name, layer]
          patched[place[1:]] += share * away[place[1:]]
          return patched

        return changed_by(replace)

      expected[index] = (moved(1e-3) - moved(-1e-3)) / 2e-3
    found = interpret.attribution_patching(
      *model_and_params(), TOKENS, traced(), metric, site, over
    )
    assert_close(found, expected, 4 * ROUNDINGS)


class PathPatchingTest(chex.TestCase):
  RECEIVERS = np.array([[0, 0], [0, 1], [1, 0]], bool)

  def expected(self, receivers, to, through_mlps):
    """With the receivers' input by hand: this run's stream, and what senders add."""
    params = by_hand.exact(model_and_params()[1])
    _, here = run_by_hand()
    _, others = run_by_hand(OTHERS)
    changes = np.zeros((L, H))
    for sender, head in np.ndindex(L, H):
      output = params[f"blocks_{sender}"]["attention"]["output"]["kernel"]
      said = others["head_output", sender][head] - here["head_output", sender][head]
      received = {}
      added = said @ output[head * K : (head + 1) * K]
      for layer in range(sender, L):
        block = params[f"blocks_{layer}"]
        if layer > sender:
          heads = block["attention"]["heads"][to]
          normed = by_hand.norm(
            here["residual_before", layer] + added, block["attention_norm"]
          )
          for receiver in np.flatnonzero(receivers[layer]):
            kernel, bias = heads["kernel"][receiver], heads["bias"][receiver]
            received[layer, receiver] = normed @ kernel + bias
        if through_mlps:
          attended = by_hand.dense(
            np.concatenate(here["head_output", layer], -1), block["attention"]["output"]
          )
          between = here["residual_before", layer] + attended
          after = between + added + by_hand.feed_forward(between + added, block)
          added = after - between - here["mlp_output", layer]

      def replace(name, layer, value, received=received):
        value = value.copy()
        for (at, receiver), new in received.items():
          if (name, layer) == (to, at):
            value[receiver] = new
        return value

      changes[sender, head] = changed_by(replace)
    return changes

  @parameterized.parameters(("query", False), ("key", True))
  def test_by_hand(self, to, through_mlps):
    self.assert_is_by_hand(to, through_mlps)

  @parameterized.product(to=("query", "key", "value"), through_mlps=(False, True))
  @pytest.mark.slow
  def test_so_it_is_the_other_way(self, to, through_mlps):
    self.assert_is_by_hand(to, through_mlps)

  def assert_is_by_hand(self, to, through_mlps):
    expected = self.expected(self.RECEIVERS, to, through_mlps)
    found = interpret.path_patching(
      *model_and_params(),
      TOKENS,
      traced(),
      metric,
      self.RECEIVERS,
      to,
      through_mlps=through_mlps,
      at_once=3 if through_mlps else None,
    )
    assert_close(found, expected, scale=SCALE)
    self.assertGreater(np.abs(expected[:2]).min(), SEEN)
    # after the last receiver, or beside it: nothing comes there
    assert_close(np.asarray(found)[2], np.zeros(H), scale=SCALE)

  def test_every_sender_to_every_receiver(self):
    one_hot = np.eye(L * H, dtype=bool).reshape(L * H, L, H)
    by_receiver = jax.vmap(
      lambda receivers_LH: interpret.path_patching(
        *model_and_params(), TOKENS, traced(), metric, receivers_LH, "value"
      )
    )
    found = np.asarray(by_receiver(one_hot))
    for receiver in (2, 5):
      expected = self.expected(one_hot[receiver], "value", False)
      assert_close(found[receiver], expected, scale=SCALE)
    assert_close(found[:2], np.zeros((2, L, H)), 2, scale=SCALE)

  def test_without_feed_forward(self):
    model, params = model_and_params()
    model = GPT2(GPT2Config(**{**vars(model.config), "feed_forward": False}))
    of = (model, params, TOKENS, traced(), metric, self.RECEIVERS)
    found = jax.eval_shape(lambda: interpret.path_patching(*of))
    chex.assert_shape(found, (L, H))


class RefusalsTest(chex.TestCase):
  @parameterized.parameters(
    (dict(over="LH"), "over is 'LH': must be axes of 'residual_before', .*: LBTD"),
    (dict(over=""), "over is '': must be"),
    (dict(over="LL"), "over is 'LL': must be axes .* each once"),
    (dict(site="residual"), "unknown tap 'residual'"),
    (dict(at_once=0), "at_once is 0: must be at least 1"),
    (dict(source=interpret.Trace()), "the trace has no 'residual_before'"),
  )
  def test_a_sweep_that_does_not_exist(self, changes, message):
    values = dict(source=traced(), metric=metric) | changes
    with self.assertRaisesRegex(InputError, message):
      interpret.activation_patching(*model_and_params(), TOKENS, **values)

  def test_a_source_of_other_texts(self):
    model, params = model_and_params()
    source = interpret.Trace(residual_before=traced().residual_before[:, :, :3])
    for function in (interpret.activation_patching, interpret.attribution_patching):
      with self.assertRaisesRegex(InputError, "'residual_before'.* 3"):
        function(model, params, TOKENS, source, metric)

  def test_a_path_to_nowhere(self):
    with self.assertRaisesRegex(InputError, "'valeu': did you mean 'value'"):
      interpret.path_patching(
        *model_and_params(), TOKENS, traced(), metric, np.ones((L, H)), "valeu"
      )
    with self.assertRaisesRegex(InputError, "'query': axis L is 4: must be 1 or 3"):
      interpret.path_patching(
        *model_and_params(), TOKENS, traced(), metric, np.ones((4, H))
      )
