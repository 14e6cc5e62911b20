import functools
import gc
import json
import pathlib
import re
import shutil
import stat
import tempfile
import tracemalloc
from unittest import mock

from absl.testing import parameterized
import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from gpt2_flax import generation, GPT2, GPT2Config, InputError, pretrained
from gpt2_flax.hub.folder import StoredTensor
from gpt2_flax.tokenizer import WordTokenizer
from tests.close import assert_close, ROUNDINGS, sizes
from tests.params import random_params, shapes_of
from tests.reference import reference_logits

GOLDEN = pathlib.Path(__file__).parent / "golden"
SHAPES = ("plain", "wide", "untied", "by_layer", "unscaled", "sharded", "old")
WEIGHTS = "model.safetensors"


def small_model(**changes):
  values = dict(vocab_size=11, context_length=8, num_layers=1, num_heads=2, embed_dim=4)
  return GPT2(GPT2Config(**(values | changes)))


def assert_identical(first, second):
  chex.assert_trees_all_equal_structs(first, second)
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def change_config(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder, changes):
  """Adds or replaces tensors of model.safetensors; None takes one away."""
  weights = load_file(folder / WEIGHTS) | changes
  weights = {name: value for name, value in weights.items() if value is not None}
  save_file(weights, folder / WEIGHTS, {"format": "pt"})


# Changes to config.json that the weights contradict, and what the one line must say.
BAD_CONFIGS = {
  "fewer_layers": (dict(n_layer=1), "n_layer is 1: the weights have 2 layers"),
  "more_layers": (dict(n_layer=3), "n_layer is 3: the weights have 2 layers"),
  "too_many_layers": (dict(n_layer=10**9), "num_layers is 1000000000: must be at most"),
  "too_many_tokens": (dict(vocab_size=2**40), "is 1099511627776: must be at most 2147"),
  "width": (dict(n_embd=32), "wte.weight is [37, 16]: must be [37, 32] by con"),
  "vocabulary": (
    dict(vocab_size=38),
    "wte.weight is [37, 16]: must be [38, 16] by con",
  ),
  "context": (dict(n_positions=9), "wpe.weight is [16, 16]: must be [9, 16] by config"),
  "inner": (dict(n_inner=65), "c_fc.weight is [16, 64]: must be [16, 65] by config"),
  "untied": (dict(tie_word_embeddings=False), "the weights have no lm_head.weight"),
}
# Changes to the weights, likewise.
NORM, PREFIXED = "h.0.ln_1.weight", "transformer.h.0.ln_1.weight"
BAD_WEIGHTS = {
  "missing": ({PREFIXED: None}, f"the weights have no {NORM}"),
  "extra": ({"score.weight": np.ones((2, 16), "f4")}, "score.weight is not part of"),
  "twice": ({NORM: np.ones(16, "f4")}, f"has both {NORM} and {PREFIXED}"),
  "rank": ({PREFIXED: np.ones((16, 1), "f4")}, f"{PREFIXED} is [16, 1]: must be [16]"),
  "integers": ({PREFIXED: np.ones(16, "i4")}, f"{PREFIXED} is I32: must be F32 or F16"),
  "double": ({PREFIXED: np.ones(16, "f8")}, f"{PREFIXED} is F64: must be F32 or F16"),
  "head": (
    {"lm_head.weight": np.ones((36, 16), "f4")},
    "is [36, 16]: must be [37, 16]",
  ),
}


def logits_and_loss(model, params, tokens):
  logits = model.apply(params, tokens)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits[:, :-1], tokens[:, 1:]
  )
  return logits, losses.mean()


@functools.cache
def golden(name):
  """What `load` gives: it is not to be changed."""
  return pretrained.load(GOLDEN / name)


class PretrainedTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.scratch = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def copy(self, name):
    return pathlib.Path(shutil.copytree(GOLDEN / name, self.scratch / name))

  @parameterized.parameters(*SHAPES)
  def test_equals_pytorch(self, name):
    expected = load_file(GOLDEN / name / "expected.safetensors")
    model, params = golden(name)
    logits, loss = jax.jit(functools.partial(logits_and_loss, model))(
      params, expected["tokens"]
    )
    assert_close((logits, loss), (expected["logits"], expected["loss"]))

  def test_gradients_are_pytorchs(self):
    self.assert_gradients("by_layer")

  @parameterized.parameters(*(name for name in SHAPES if name != "by_layer"))
  @pytest.mark.slow
  def test_so_are_those_of_other_shapes(self, name):
    self.assert_gradients(name)

  def assert_gradients(self, name):
    tokens = load_file(GOLDEN / name / "expected.safetensors")["tokens"]
    model, params = golden(name)
    loss = lambda params: logits_and_loss(model, params, tokens)[1]  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(params)
    # PyTorch's gradients, under the names of the weights, are read as weights are.
    folder = self.scratch / "gradients"
    folder.mkdir()
    shutil.copy(GOLDEN / name / "config.json", folder)
    shutil.copy(GOLDEN / name / "gradients.safetensors", folder / WEIGHTS)
    _, expected = pretrained.load(folder)
    assert_close(gradients, expected, 2 * ROUNDINGS, scale=sizes(expected))

  def test_writes_greedily_what_transformers_writes(self):
    self.write_greedily("untied")

  @parameterized.parameters(*(name for name in SHAPES if name != "untied"))
  @pytest.mark.slow  # test_equals_pytorch has the logits of all
  def test_so_it_does_in_other_shapes(self, name):
    self.write_greedily(name)

  def write_greedily(self, name):
    expected = load_file(GOLDEN / name / "expected.safetensors")
    prompts, greedy = expected["prompts"].tolist(), expected["greedy"].tolist()
    model, params = golden(name)
    sampling = generation.Sampling(temperature=0)
    made = generation.generate(model, params, prompts, num_tokens=8, sampling=sampling)
    self.assertEqual(made, greedy)

  @parameterized.parameters(*SHAPES)
  def test_params_are_those_of_init(self, name):
    model, params = golden(name)
    init = nn.unbox(shapes_of(model))
    chex.assert_trees_all_equal_structs(params, init)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, init)

  @parameterized.parameters(*SHAPES)
  def test_load_save_load_changes_no_bit(self, name):
    model, params = golden(name)
    pretrained.save(self.scratch / "saved", model, params)
    model_again, params_again = pretrained.load(self.scratch / "saved")
    self.assertEqual(model_again, model)
    assert_identical(params_again, params)

    saved = load_file(self.scratch / "saved" / WEIGHTS)
    stored = {}
    for path in (GOLDEN / name).glob("model*.safetensors"):
      stored |= load_file(path)
    masks = r"(.*\.)?attn\.(masked_)?bias"
    stored = {
      name
      if "lm_head" in name
      else "transformer." + name.removeprefix("transformer."): (
        value.astype(np.float32)
      )
      for name, value in stored.items()
      if not re.fullmatch(masks, name)
    }
    assert_identical(saved, stored)

  @parameterized.product(
    positional_encoding=("sinusoidal", "none", "learned"), tied_embeddings=(True, False)
  )
  def test_any_positional_encoding_is_saved_as_a_table(self, **fields):
    model = small_model(**fields)
    params = random_params(model)
    pretrained.save(self.scratch / "saved", model, params)
    loaded, table = pretrained.load(self.scratch / "saved")
    self.assertEqual(loaded.config.positional_encoding, "learned")
    tokens = np.arange(16).reshape(2, 8) % 11
    expected = jax.jit(model.apply)(params, tokens)
    table = jax.tree.map(np.asarray, table)
    assert_close(reference_logits(table, tokens, loaded.config), expected)

  def test_a_copy_of_the_tied_embeddings_is_left_out(self):
    folder = self.copy("plain")
    weights = load_file(folder / WEIGHTS)
    change_weights(folder, {"lm_head.weight": weights["transformer.wte.weight"]})
    assert_identical(pretrained.load(folder)[1], pretrained.load(GOLDEN / "plain")[1])

  def test_tied_embeddings_that_differ(self):
    folder = self.copy("untied")
    change_config(folder, tie_word_embeddings=True)
    with self.assertRaisesRegex(InputError, "lm_head.weight must be equal to wte.weig"):
      pretrained.load(folder)

  @parameterized.named_parameters((name, *case) for name, case in BAD_CONFIGS.items())
  def test_config_that_the_weights_contradict(self, changes, says):
    folder = self.copy("plain")
    change_config(folder, **changes)
    self.assert_refused(folder, says)

  @parameterized.named_parameters((name, *case) for name, case in BAD_WEIGHTS.items())
  def test_weights_that_are_not_the_config_s(self, changes, says):
    folder = self.copy("plain")
    change_weights(folder, changes)
    self.assert_refused(folder, says)

  def assert_refused(self, folder, says):
    """In one line, and before any value has been read."""
    with (
      mock.patch.object(StoredTensor, "read", side_effect=AssertionError),
      self.assertRaises(InputError) as raised,
    ):
      pretrained.load(folder)
    message = str(raised.exception)
    self.assertStartsWith(message, str(folder))
    self.assertNotIn("\n", message)
    self.assertIn(says, message)

  def test_one_tensor_at_a_time_in_memory(self):
    """numpy's memory is traced, jax's is not: what is traced is what load holds
    besides the params. Objects in cycles, 7 kB for each tensor, are memory until Python
    looks for them: so it looks at each tensor, and only among what is new."""
    model = small_model(num_layers=12, embed_dim=128, positional_encoding="learned")
    params = random_params(model)
    pretrained.save(self.scratch / "saved", model, params)
    pretrained.load(self.scratch / "saved")  # what is made only once
    read = StoredTensor.read

    def without_garbage(tensor):
      gc.collect()
      return read(tensor)

    gc.collect()
    gc.freeze()
    tracemalloc.start()
    try:
      before = tracemalloc.get_traced_memory()[0]
      tracemalloc.reset_peak()
      with mock.patch.object(StoredTensor, "read", without_garbage):
        pretrained.load(self.scratch / "saved")
      peak = tracemalloc.get_traced_memory()[1] - before
    finally:
      tracemalloc.stop()
      gc.unfreeze()
    self.assertLess(peak, (self.scratch / "saved" / WEIGHTS).stat().st_size / 4)

  def test_the_largest_tensor_is_read_first(self):
    sizes, read = [], StoredTensor.read

    def noted(tensor):
      sizes.append(np.prod(tensor.shape))
      return read(tensor)

    with mock.patch.object(StoredTensor, "read", noted):
      pretrained.load(GOLDEN / "plain")
    self.assertEqual(sizes, sorted(sizes, reverse=True))
    self.assertGreater(sizes[0], sizes[-1])

  def test_hub_id(self):
    with mock.patch("huggingface_hub.snapshot_download") as download:
      download.return_value = str(GOLDEN / "plain")
      _, params = pretrained.load("openai-community/gpt2")
    assert_identical(params, pretrained.load(GOLDEN / "plain")[1])

  def test_params_do_not_live_in_the_file(self):
    folder = self.copy("plain")
    _, params = pretrained.load(folder)
    with (folder / WEIGHTS).open("r+b") as file:
      file.write(bytes((folder / WEIGHTS).stat().st_size))
    assert_identical(params, pretrained.load(GOLDEN / "plain")[1])

  def test_saves_params_as_init_and_numpy_give_them(self):
    model = small_model()
    params = random_params(model)
    boxed = jax.tree.map(
      lambda box, leaf: box.replace_boxed(jnp.asarray(leaf)),
      shapes_of(model),
      params,
      is_leaf=lambda node: isinstance(node, nn.LogicallyPartitioned),
    )
    columns_first = jax.tree.map(np.asfortranarray, params)
    for name, given in (("a", boxed), ("b", params), ("c", columns_first)):
      pretrained.save(self.scratch / name, model, given)
    saved = [(self.scratch / name / WEIGHTS).read_bytes() for name in "abc"]
    self.assertEqual(saved[0], saved[1])
    self.assertEqual(saved[0], saved[2])

  def test_load_tokenizer(self):
    model = small_model(vocab_size=3)
    tokenizer = WordTokenizer(["a", "b"])
    pretrained.save(self.scratch / "saved", model, random_params(model), tokenizer)
    loaded = pretrained.load_tokenizer(self.scratch / "saved")
    self.assertEqual(loaded.start("b a b"), tokenizer.start("b a b"))
    self.assertEqual(loaded.start(""), [0])
    self.assertEqual(loaded.decode(loaded.start("b a b")), "b a b")
    with self.assertRaisesRegex(InputError, "unknown word 'c': allowed: <s>, a, b"):
      loaded.encode("a c")
    with self.assertRaisesRegex(InputError, "tokenizer.json is missing"):
      pretrained.load_tokenizer(GOLDEN / "plain")

  @parameterized.parameters("float32", "bfloat16")
  def test_weights_are_stored_as_asked_for(self, dtype):
    """Rounding to bfloat16, the nearest with 8 bits, is off by at most 2^-8."""
    model = small_model(positional_encoding="learned")
    params = random_params(model)
    folder = self.scratch / "saved"
    pretrained.save(folder, model, params, dtype=dtype)
    config = json.loads((folder / "config.json").read_text())
    self.assertEqual((config["dtype"], config["torch_dtype"]), (dtype, dtype))
    for name, value in load_file(folder / WEIGHTS).items():
      self.assertEqual(value.dtype, jnp.dtype(dtype), name)
    loaded_model, loaded = pretrained.load(folder)
    self.assertEqual(loaded_model, model)
    if dtype == "float32":
      assert_identical(loaded, params)
    else:
      assert_close(loaded, params, roundings=1, dtype=jnp.bfloat16)
      pretrained.save(self.scratch / "again", model, loaded, dtype=dtype)
      self.assertEqual(
        (self.scratch / "again" / WEIGHTS).read_bytes(), (folder / WEIGHTS).read_bytes()
      )

  def test_a_dtype_that_is_none(self):
    model = small_model()
    with self.assertRaisesRegex(InputError, "'bfloat': did you mean 'bfloat16'"):
      pretrained.save(
        self.scratch / "saved", model, random_params(model), dtype="bfloat"
      )
    self.assertEmpty(list(self.scratch.iterdir()))

  def test_a_tokenizer_with_more_tokens_than_the_model(self):
    model, few, many = (
      small_model(),
      WordTokenizer(["a"]),
      WordTokenizer(list("bcdefghijkl")),
    )
    params = random_params(model)
    with self.assertRaisesRegex(
      InputError, "tokenizer has 12 tokens, the model knows 11"
    ):
      pretrained.save(self.scratch / "saved", model, params, many)
    pretrained.save(self.scratch / "saved", model, params, few)

  def test_saved_files(self):
    model = small_model()
    (self.scratch / "empty").mkdir()
    pretrained.save(self.scratch / "empty", model, random_params(model))
    pretrained.save(self.scratch / "a" / "new", model, random_params(model))
    for folder in (self.scratch / "empty", self.scratch / "a" / "new"):
      modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()
      }
      self.assertEqual(modes.keys(), {"config.json", WEIGHTS})
      self.assertLen(set(modes.values()), 1)
    self.assertEqual({path.name for path in self.scratch.iterdir()}, {"a", "empty"})

  @parameterized.parameters(("config.json",), ("",))
  def test_save_takes_nothing_away(self, name):
    folder = self.copy("plain")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model, params = pretrained.load(folder)
    with self.assertRaisesRegex(InputError, "is not empty: choose a new folder"):
      pretrained.save(folder / name, model, params)
    self.assertEqual({path: path.read_bytes() for path in folder.iterdir()}, before)

  @parameterized.parameters(
    (dict(positional_encoding="rotary"), "positional_encoding is 'rotary'"),
    (dict(positional_encoding="alibi"), "positional_encoding is 'alibi'"),
    (dict(feed_forward=False), "feed_forward is False"),
  )
  def test_save_refuses_what_the_format_cannot_say(self, fields, says):
    model = small_model(**fields)
    with self.assertRaisesRegex(InputError, f"model.{says}: must be .* GPT-2's format"):
      pretrained.save(self.scratch / "saved", model, random_params(model))
    self.assertEmpty(list(self.scratch.iterdir()))

  def test_save_where_nothing_can_be_written(self):
    (self.scratch / "file").write_text("")
    model = small_model()
    with self.assertRaisesRegex(InputError, "cannot be written"):
      pretrained.save(self.scratch / "file" / "folder", model, random_params(model))

  def test_a_save_that_fails_leaves_nothing(self):
    model = small_model()
    save = mock.Mock(side_effect=RuntimeError)
    tokenizer = mock.Mock(end_of_text_id=0, start_id=None, save=save)
    with self.assertRaises(RuntimeError):
      pretrained.save(self.scratch / "saved", model, random_params(model), tokenizer)
    tokenizer.save.assert_called_once()
    self.assertEmpty(list(self.scratch.iterdir()))

  @parameterized.parameters(
    (dict(num_layers=2), r"params/blocks_1/.* is missing: must be \("),
    (dict(embed_dim=8), r"params/blocks_0/.* is \(.*\): must be \("),
    (dict(tied_embeddings=False), "params/output_embedding/embedding is missing"),
    (dict(positional_encoding="learned"), "params/positional_encoding/.* is missing"),
  )
  def test_params_of_another_model(self, changes, says):
    params = random_params(small_model())
    with self.assertRaisesRegex(InputError, says):
      pretrained.save(self.scratch / "saved", small_model(**changes), params)
    with self.assertRaisesRegex(InputError, "must be left out|must be"):
      pretrained.save(self.scratch / "saved", small_model(), params["params"])
    self.assertEmpty(list(self.scratch.iterdir()))
