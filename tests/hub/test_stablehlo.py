"""An exported function gives what the model gives, where this package is not."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import parameterized
import chex
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from gpt2_flax import GPT2, GPT2Config, InputError, SelfAttention
from gpt2_flax.hub import stablehlo
from gpt2_flax.tokenizer import ByteTokenizer
from tests.close import assert_close
from tests.params import random_params

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "pretrained.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCS.read_text("utf-8"), re.S | re.M)
TOKENS = np.random.default_rng(0).integers(0, 256, (3, 16), np.int32)


class LongerHead(SelfAttention):
  """Asks for a number that nobody knows before a text is there."""

  def scores(self, query_BTK, key_BSK, *args):
    return super().scores(query_BTK, key_BSK, *args) * int(key_BSK.shape[1])


def small_model(head=None, **changes):
  values = dict(vocab_size=256, context_length=16, num_layers=2, num_heads=2)
  model = GPT2(GPT2Config(**(values | dict(embed_dim=8) | changes)), head=head)
  return model, random_params(model, scale=0.5)


class StableHLOTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    scratch = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.folder = scratch / "my-hlo"

  def open(self):
    content = (self.folder / "model.stablehlo").read_bytes()
    return (
      export.deserialize(bytearray(content)),
      load_file(self.folder / "params.safetensors"),
    )

  @parameterized.parameters(
    dict(positional_encoding="learned", attention="flash"),
    dict(positional_encoding="rotary", scan_layers=True, tied_embeddings=False),
  )
  def test_texts_of_any_number_and_length(self, **changes):
    model, params = small_model(**changes)
    stablehlo.save(self.folder, model, params)
    function, stored = self.open()
    self.assertEqual(set(function.platforms), {"cpu", "cuda", "tpu"})
    apply = jax.jit(model.apply)
    for batch, length in ((1, 1), (3, 16)):
      tokens = TOKENS[:batch, :length]
      assert_close(function.call(stored, tokens), apply(params, tokens))
    with self.assertRaises(ValueError):
      function.call(stored, np.zeros((1, 17), np.int32))

  def test_half_of_the_size(self):
    model, params = small_model()
    stablehlo.save(self.folder, model, params, dtype="bfloat16")
    function, stored = self.open()
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), params)
    assert_close(function.call(stored, TOKENS), jax.jit(model.apply)(rounded, TOKENS))
    self.assertEqual({str(value.dtype) for value in stored.values()}, {"bfloat16"})

  def test_as_the_docs_load_it_in_a_process_without_this_package(self):
    model, params = small_model(positional_encoding="alibi")
    stablehlo.save(self.folder, model, params, ByteTokenizer())
    [loader] = [block for block in BLOCKS if "deserialize" in block]
    self.assertNotIn("gpt2_flax", loader)
    self.assertLessEqual(len(loader.splitlines()), 12)
    code = (
      f"{loader}\nimport sys\nassert not any('gpt2_flax' in name for name in"
      " sys.modules)\nfrom safetensors.numpy import save_file\nimport numpy\n"
      "save_file(dict(tokens=numpy.array(tokens_BT), logits=numpy.array(logits_BTV)),"
      " 'made.safetensors')\n"
    )
    done = subprocess.run(
      [sys.executable, "-I", "-c", code],
      cwd=self.folder.parent,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    made = load_file(self.folder.parent / "made.safetensors")
    [text] = re.findall(r'encode\("(.*?)"\)', loader)
    self.assertEqual(made["tokens"].tolist(), [list(text.encode())])
    assert_close(made["logits"], jax.jit(model.apply)(params, made["tokens"]))

  def test_files(self):
    model, params = small_model()
    stablehlo.save(self.folder, model, params, ByteTokenizer())
    modes = {path.name: os.stat(path).st_mode for path in self.folder.iterdir()}
    beside = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    self.assertEqual(modes.keys(), {"model.stablehlo", "params.safetensors"} | beside)
    self.assertLen(set(modes.values()), 1)
    about = json.loads((self.folder / "tokenizer_config.json").read_text())
    self.assertEqual(about["model_max_length"], 16)
    with self.assertRaisesRegex(InputError, "is not empty: choose a new folder"):
      stablehlo.save(self.folder, model, params)

  @parameterized.parameters(
    (dict(causal=False), "must know how long a text is"),
    (dict(head=LongerHead), "must know how long a text is"),
  )
  def test_what_cannot_be_of_any_length(self, changes, says):
    model, params = small_model(**changes)
    with self.assertRaisesRegex(InputError, says):
      stablehlo.save(self.folder, model, params)
    self.assertFalse(self.folder.exists())

  def test_a_tokenizer_with_more_tokens_than_the_model(self):
    model, params = small_model(vocab_size=255)
    with self.assertRaisesRegex(InputError, "has 256 tokens, the model knows 255"):
      stablehlo.save(self.folder, model, params, ByteTokenizer())
    self.assertFalse(self.folder.exists())
