"""The residual stream as a sum, against the trace and by hand."""

import functools

from absl.testing import parameterized
import chex
import jax
import numpy as np

from gpt2_flax import InputError, interpret
from tests.close import assert_close
from tests.interpret import test_logits

total, size = test_logits.total, test_logits.size


@functools.cache
def split(name):
  """Params, tokens, trace and the parts of the stream."""
  model, params, tokens, _, trace, *_ = test_logits.told(name)
  return params, tokens, trace, parts_of(model, params, trace)


def parts_of(model, params, trace):
  parts = jax.jit(functools.partial(interpret.residual_parts, model))(params, trace)
  return jax.device_get(parts)


class ResidualPartsTest(chex.TestCase):
  @parameterized.parameters(*test_logits.CONFIGS, "by_layer")
  def test_the_parts_sum_to_the_stream(self, name):
    _, _, trace, parts = split(name)
    assert_close(total(parts), trace.residual_after[-1], scale=size(parts))

  def test_the_parts_of_a_layer_sum_to_what_it_adds(self):
    params, tokens, trace, parts = split("learned_untied")
    attended = parts.heads.sum(1) + parts.attention_bias
    assert_close(attended, trace.attention_output, scale=size([parts.heads]))
    chex.assert_trees_all_equal(parts.mlp, trace.mlp_output)
    table = params["params"]["token_embedding"]["embedding"]
    chex.assert_trees_all_equal(parts.token_embeddings, table[tokens])
    places = params["params"]["positional_encoding"]["embedding"]["embedding"][:5]
    chex.assert_trees_all_equal(parts.positions, np.tile(places, (3, 1, 1)))

  def test_without_feed_forward(self):
    model = test_logits.make_model(feed_forward=False)
    params, tokens = split("plain")[:2]
    run = jax.jit(functools.partial(interpret.trace, model))
    _, trace = jax.device_get(run(params, tokens))
    parts = parts_of(model, params, trace)
    self.assertIsNone(parts.mlp)
    assert_close(total(parts[:4]), trace.residual_after[-1], scale=size(parts[:4]))

  def test_a_trace_without_what_is_needed_is_refused(self):
    model, params, tokens, *_ = test_logits.told("plain")
    taps = ["token_embeddings", "positions", "head_output"]
    run = functools.partial(interpret.trace, model, taps=taps)
    _, trace = jax.eval_shape(run, params, tokens)
    with self.assertRaisesRegex(InputError, "no 'mlp_output': taps must include"):
      interpret.residual_parts(model, params, trace)
    with self.assertRaisesRegex(InputError, "no 'residual_before': taps must include"):
      interpret.accumulated_residual(trace)


class AccumulatedTest(chex.TestCase):
  def test_each_addition_in_its_turn(self):
    trace = test_logits.told("plain")[4]
    stream = jax.jit(interpret.accumulated_residual)(trace)
    chex.assert_shape(stream, (5, 3, 5, 8))
    added = [
      addition
      for layer in range(2)
      for addition in (trace.attention_output[layer], trace.mlp_output[layer])
    ]
    expected = functools.reduce(
      lambda stream, x: [*stream, stream[-1] + x], added, [trace.residual_before[0]]
    )
    assert_close(stream, np.stack(expected))
