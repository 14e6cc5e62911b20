"""Every line and block of docs/interpret.md runs, and is right where it can be told."""

import copy
import functools
import pathlib
import re
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_flax import generation
from gpt2_flax.interpret import page, patch, select, Trace, trace
from tests import snippets
from tests.close import assert_close

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "interpret.md").read_text()
ROWS = dict(re.findall(r"^\| ([^|]+) \| .*? \| `([^|]*)` \|$", PAGE, re.MULTILINE))


def blocks(heading):
  section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
  found = [text for text in section if text.startswith(heading)]
  assert len(found) == 1, heading
  return re.findall(r"```python\n(.*?)```", found[0], re.DOTALL)


@functools.cache
def started():
  """What the page's first blocks leave behind: a trained model, two texts."""
  names = {}
  with jax.numpy_rank_promotion("allow"):  # a reader's own code may broadcast
    for block in blocks("A model to try it on"):
      exec(block, names)
  return names


def read(heading):
  names = dict(started())
  with jax.numpy_rank_promotion("allow"):
    for block in blocks(heading):
      exec(block, names)
  return names


class At:
  """The names of the page, as attributes."""

  def __init__(self):
    self.__dict__ = dict(started())

  def said(self, params=None):
    return self.model.apply(params or self.params, self.tokens)

  def without_a_head(self):
    """Params that say nothing through the second layer's second head."""
    params = copy.deepcopy(jax.tree.map(np.array, self.params))
    params["params"]["blocks_1"]["attention"]["output"]["kernel"][16:] = 0
    return params

  def patched(self, site, **places):
    """What the metric changes by with one patch, which is written out."""
    mask = select(self.model, site, length=6, **places)
    edit = patch(site, self.source[site], mask)
    logits, _ = trace(self.model, self.params, self.tokens, [edit], ())
    return self.metric(logits) - self.metric(self.said())


def check_generated(at, found):
  plain = generation.generate(
    at.model,
    at.without_a_head(),
    [at.encode("the cat")],
    num_tokens=3,
    key=jax.random.key(0),
  )
  assert found == plain


def check_stream_patched(at, found):
  whole = at.metric(at.model.apply(at.params, at.others)) - at.metric(at.said())
  assert_close(found[0, 2], whole, scale=at.said())  # the one word that differs
  assert_close(found[0, [0, 1, 3, 4, 5]], np.zeros(5), scale=at.said())


def check_steered(at, found):
  moved = found[1].residual_before[1] - at.run.residual_before[1]
  expected = np.zeros((1, 6, 32))
  expected[:, 4] = 1
  assert_close(moved, expected, scale=at.run.residual_before)


def check_gradient(at, found):
  nothing = Trace(head_output=0 * at.run.head_output)
  to_nothing = at.attribution_patching(
    at.model, at.params, at.tokens, nothing, at.metric, "head_output", "LH"
  )
  assert_close(found, -to_nothing)


def check_loss(at, found):
  said = jax.nn.log_softmax(at.model.apply(at.params, at.held_out[:, :-1]))
  targets = at.held_out[:, 1:]
  chosen = np.take_along_axis(np.asarray(said, np.float64), targets[..., None], -1)
  assert_close(found, -chosen.mean(), dtype=np.float32)


def same(expected, scale=None):
  """What is found is what is expected, of the page's names."""
  return lambda at, found: assert_close(found, expected(at), scale=scale and scale(at))


CHECKS = {
  "tokens of a text": lambda at, found: chex.assert_trees_all_equal(
    at.tokens[0].tolist(), found
  ),
  "all activations": lambda at, found: assert_close(found[0], at.said()),
  "some of them": lambda at, found: chex.assert_trees_all_equal(
    list(found[1]), ["weights", "residual_after"]
  ),
  "attention patterns": lambda at, found: assert_close(
    found.sum(-1), np.ones((2, 1, 6), "f4")
  ),
  "the loss": check_loss,
  "a head taken away": lambda at, found: assert_close(
    found[0], at.said(at.without_a_head())
  ),
  "any function as a hook": lambda at, found: assert_close(
    found[1].mlp_hidden[0], jnp.minimum(at.run.mlp_hidden[0], 0.5)
  ),
  "at chosen places only": check_steered,
  "hooks that stay": lambda at, found: assert_close(
    found[0].apply(found[1], at.tokens), at.said(at.without_a_head())
  ),
  "generation with hooks": check_generated,
  "patches of the stream": check_stream_patched,
  "of attention's output": lambda at, found: assert_close(
    found[1, 5],
    at.patched("attention_output", layers=[1], positions=[5]),
    scale=at.said(),
  ),
  "of heads, all positions": lambda at, found: assert_close(
    found[0, 1], at.patched("head_output", layers=[0], heads=[1]), scale=at.said()
  ),
  "of heads, by position": lambda at, found: assert_close(
    found[1, 5, 0],
    at.patched("head_output", layers=[1], heads=[0], positions=[5]),
    scale=at.said(),
  ),
  "of patterns": lambda at, found: assert_close(
    found[1, 0], at.patched("weights", layers=[1], heads=[0]), scale=at.said()
  ),
  "the same by one gradient": lambda at, found: chex.assert_shape(found, (2, 2)),
  "path patching": lambda at, found: assert_close(
    found[1], np.zeros(2), 2, scale=at.said()
  ),
  "logit lens": lambda at, found: assert_close(found[-1], at.said()),
  "the stream as it grows": same(
    lambda at: jnp.stack(
      [
        at.run.residual_before[0],
        at.run.residual_between[0],
        at.run.residual_after[0],
        at.run.residual_between[1],
        at.run.residual_after[1],
      ]
    )
  ),
  "the stream by part": lambda at, found: assert_close(
    sum(x.reshape(-1, 1, 6, 32).sum(0) for x in found),
    at.run.residual_after[-1],
    scale=found.token_embeddings,
  ),
  "by head": lambda at, found: assert_close(
    found.sum(1)
    + jnp.stack(
      [
        at.params["params"][f"blocks_{layer}"]["attention"]["output"]["bias"]
        for layer in (0, 1)
      ]
    )[:, None, None],
    at.run.attention_output,
  ),
  "logit attribution": lambda at, found: assert_close(
    sum(x.reshape(-1, 1, 6).sum(0) for x in found),
    at.said()[..., at.singular],
    scale=max(float(abs(x).max()) for x in found),
  ),
  "composition scores": lambda at, found: chex.assert_trees_all_equal(
    np.asarray(found > 0),
    np.tile(np.triu(np.ones((2, 2), bool), 1)[:, None, :, None], (1, 2, 1, 2)),
  ),
  "the OV circuit, its SVD": lambda at, found: assert_close(
    found.S[16:], np.zeros(16), scale=found.S
  ),
  "the QK circuit": lambda at, found: assert_close(
    found.sum(0), np.zeros(32), scale=32 * found
  ),
  # "the" is the one word that comes twice
  "induction heads": same(lambda at: at.run.weights[..., 0, 4, 2]),
  "previous-token heads": same(
    lambda at: np.diagonal(at.run.weights[:, :, 0], -1, 2, 3).mean(-1)
  ),
  "a gradient at an activation": check_gradient,
}


class TableTest(parameterized.TestCase):
  def test_every_row_is_checked(self):
    self.assertEqual(list(ROWS), list(CHECKS))
    self.assertLen(re.findall(r"^\|", PAGE, re.MULTILINE), len(ROWS) + 2)

  def test_each_row_knows_its_names(self):
    snippets.check([*blocks("A model to try it on"), *ROWS.values()])

  @parameterized.parameters(*CHECKS)
  @pytest.mark.slow  # what it names is looked up always
  def test_row(self, name):
    found = eval(ROWS[name], dict(started()))
    CHECKS[name](At(), found)


class RecipesTest(parameterized.TestCase):
  @pytest.mark.slow  # test_notebook.py has what it calls
  def test_in_a_notebook(self):
    data = mock.create_autospec(page.page_data)  # its making has tests of its own
    render = mock.create_autospec(page.render_page, return_value="a page")
    with mock.patch.multiple(page, page_data=data, render_page=render):
      names = read("In a notebook")
    self.assertEqual(names["page"].html, "a page")
    self.assertEqual(data.call_args.args[-1], names["tokens"][0].tolist())
    self.assertEqual(names["of_head"].weights.shape, (1, 10, 10))
    self.assertEqual(names["names"], ["<s>", "the", "cat", "near", "the", "dog"])

  @pytest.mark.slow  # test_patching.py has what it calls
  def test_patching(self):
    names = read("Where the number of the subject goes")
    self.assertGreater(names["correlation"], 0.9)
    # layer 0: all of it enters at the one word that differs, and so at no other
    stream = np.asarray(names["stream_LT"])
    self.assertEqual(np.argmax(stream[0]), 2)
    self.assertGreater(stream[0, 2], 1)
    # layer 1: the last position has most of it by then
    self.assertEqual(np.argmax(stream[1]), 5)
    paths = np.asarray(names["paths_NLH"])
    self.assertBetween(np.abs(paths[2:, 0]).max(), 1e-3, 0.1)
    assert_close(paths[:, 1], np.zeros((4, 2)), 2, scale=names["logits"])

  @pytest.mark.slow
  def test_probe(self):
    names = read("A probe")
    self.assertGreater(min(names["probe_trained"]), 0.95)
    self.assertGreater(names["probe_untrained"][0], 0.95)
    self.assertLess(names["probe_untrained"][1], 0.8)

  @pytest.mark.slow
  def test_tuned_lens(self):
    names = read("A tuned lens")
    self.assertTrue((names["kl_tuned"] < names["kl_plain"] / 5).all())

  @pytest.mark.slow
  def test_sparse_autoencoder(self):
    names = read("A sparse autoencoder")
    self.assertBetween(float(names["loss_recovered"]), 0.9, 1.0)
    self.assertLess(names["active"], 16)
    self.assertGreater(names["with_mean"], names["with_sae"] + 1)
