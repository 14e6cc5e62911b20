"""The shape of a model: what fits together, and what is refused by name."""

import dataclasses
import math

from absl.testing import parameterized
import chex

from gpt2_flax.errors import InputError
from gpt2_flax.model_config import GPT2Config
from tests.params import random_params
from tests.test_transformer import TINY, tiny, tokens


class GPT2ConfigTest(chex.TestCase):
  @parameterized.parameters(
    ("vocab_size", 0),
    ("context_length", 0),
    ("num_layers", -1),
    ("num_heads", 0),
    ("embed_dim", 0),
    ("embed_dim", 9),
    ("mlp_dim", -1),
    ("dropout_rate", -0.1),
    ("dropout_rate", 1.0),
    ("dropout_rate", math.nan),
    ("layer_norm_epsilon", 0.0),
    ("layer_norm_epsilon", 1.0),
    ("num_layers", 1025),
    ("vocab_size", 2**31),
    ("context_length", 2**31),
    ("mlp_dim", 2**31),
  )
  def test_a_bad_number_is_refused_by_field_and_value(self, field, value):
    with self.assertRaisesRegex(InputError, f"model.{field} is {value}: must be"):
      dataclasses.replace(TINY, **{field: value})

  @parameterized.parameters(
    ("positional_encoding", "sinusoid", "sinusoidal"),
    ("positional_encoding", "learnt", "learned"),
    ("dtype", "bfloat", "bfloat16"),
    ("activation", "gelu_than", "gelu_tanh"),
    ("attention", "flush", "flash"),
    ("remat", "dot", "dots"),
  )
  def test_an_unknown_name_is_refused_with_the_nearest(self, field, value, nearest):
    message = f"unknown model.{field} '{value}': did you mean '{nearest}'"
    with self.assertRaisesRegex(InputError, message):
      dataclasses.replace(TINY, **{field: value})

  def test_indivisible_width_names_the_heads_too(self):
    with self.assertRaisesRegex(InputError, "model.num_heads, which is 2"):
      dataclasses.replace(TINY, embed_dim=9)
    with self.assertRaisesRegex(InputError, "model.num_heads, which is 3"):
      dataclasses.replace(TINY, num_heads=3)

  def test_rotary_needs_an_even_head_dim(self):
    message = "model.embed_dim / model.num_heads is 3: must be even for .*=rotary"
    with self.assertRaisesRegex(InputError, message):
      dataclasses.replace(TINY, embed_dim=6, positional_encoding="rotary")

  def test_flash_attention_has_no_weights_to_drop(self):
    message = "model.dropout_rate is 0.1: must be 0 for model.attention=flash"
    with self.assertRaisesRegex(InputError, message):
      dataclasses.replace(TINY, attention="flash", dropout_rate=0.1)

  def test_layers_that_differ_cannot_be_one(self):
    with self.assertRaisesRegex(InputError, "model.scan_layers is True: must be False"):
      dataclasses.replace(TINY, scan_layers=True, scale_attention_by_layer=True)

  def test_plain_is_the_same_model_as_it_is_saved(self):
    other = dict(dropout_rate=0.1, positional_encoding="rotary", num_layers=3)
    trained = dataclasses.replace(TINY, scan_layers=True, remat="full", **other)
    self.assertEqual(trained.plain, dataclasses.replace(TINY, **other))

  def test_unknown_published_size(self):
    with self.assertRaisesRegex(InputError, "'mediun': did you mean 'medium'"):
      GPT2Config.published("mediun")

  def test_published_can_be_changed(self):
    config = GPT2Config.published("xl", dropout_rate=0.1, positional_encoding="none")
    self.assertEqual(
      (config.num_layers, config.num_heads, config.embed_dim, config.head_dim),
      (48, 25, 1600, 64),
    )
    self.assertEqual((config.dropout_rate, config.positional_encoding), (0.1, "none"))
    self.assertEqual(GPT2Config.published("xl").positional_encoding, "learned")

  def test_never_changes(self):
    with self.assertRaises(dataclasses.FrozenInstanceError):
      GPT2Config().num_layers = 3

  def test_too_many_tokens(self):
    model = tiny()
    with self.assertRaisesRegex(InputError, "9 tokens.*context_length.* 8"):
      model.apply(random_params(model), tokens((1, 9)))
