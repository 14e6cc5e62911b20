"""Devices: who holds which part of which array."""

import re
from unittest import mock

from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from gpt2_flax.errors import InputError
from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training import mesh as mesh_lib
from gpt2_flax.training.config import MeshConfig, TrainConfig
from gpt2_flax.training.step import abstract_state
from gpt2_flax.transformer import GPT2


def train_config(batch_size: int = 8, accumulation_steps: int = 1) -> TrainConfig:
  return TrainConfig(
    num_steps=1,
    batch_size=batch_size,
    accumulation_steps=accumulation_steps,
    seed=0,
    log_every_steps=1,
    max_skipped_steps=0,
    max_loss_jump=0.0,
  )


class MeshTest(chex.TestCase):
  def test_takes_all_devices_that_are_left(self):
    mesh = mesh_lib.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1), train_config())
    self.assertEqual(mesh.size, jax.device_count())
    self.assertEqual(mesh.axis_names, ("data", "fsdp", "tensor"))

  @parameterized.parameters((2, 1, 1), (1, 3, 1), (-1, 1, 2))
  def test_refuses_another_number_of_devices(self, *sizes):
    config = MeshConfig(*sizes)
    with self.assertRaisesRegex(InputError, "number of devices, which is 1"):
      mesh_lib.make_mesh(config, train_config())

  @parameterized.parameters(
    ((-1, 1, 1), (8, 1, 1)), ((-1, 2, 4), (1, 2, 4)), ((2, 1, 4), (2, 1, 4))
  )
  def test_its_parts_are_in_order(self, sizes, shape):
    with (
      mock.patch.object(jax, "device_count", return_value=8),
      mock.patch.object(jax, "make_mesh") as made,
    ):
      mesh_lib.make_mesh(MeshConfig(*sizes), train_config())
    self.assertEqual(made.call_args.args, (shape, ("data", "fsdp", "tensor")))

  @parameterized.parameters(((2, 2, 2), 6, 1), ((4, 1, 2), 8, 4), ((1, 8, 1), 12, 1))
  def test_refuses_pieces_that_devices_cannot_share(self, sizes, batch_size, pieces):
    rows, sharers = batch_size // pieces, sizes[0] * sizes[1]
    message = f"batch_size is {batch_size}: .* = {rows} must be divisible by the"
    with (
      mock.patch.object(jax, "device_count", return_value=8),
      self.assertRaisesRegex(InputError, f"{message} {sharers} devices"),
    ):
      mesh_lib.make_mesh(MeshConfig(*sizes), train_config(batch_size, pieces))

  def test_rows_are_shared_by_all_but_those_that_share_a_layer(self):
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    self.assertEqual(mesh_lib.batch_sharding(mesh).spec, P(("data", "fsdp")))

  def test_what_each_process_puts_is_moved_by_name(self):
    sharding = mesh_lib.batch_sharding(mesh_lib.one_device_mesh())
    whole = np.arange(6).reshape(3, 2)
    with jax.transfer_guard("disallow"):
      found = mesh_lib.put_parts(whole, sharding)
    self.assertEqual(found.sharding, sharding)
    chex.assert_trees_all_equal(np.asarray(found), whole)

  @parameterized.parameters(
    ([slice(0, 2), slice(2, 4)], [0, 1, 2, 3]),
    ([slice(4, 6), slice(0, 2), slice(4, 6)], [0, 1, 4, 5]),
    ([slice(None)], [0, 1, 2, 3, 4, 5, 6, 7]),
  )
  def test_a_process_holds_the_rows_of_its_devices(self, slices, rows):
    sharding = mock.Mock()
    devices = {number: (rows,) for number, rows in enumerate(slices)}
    sharding.addressable_devices_indices_map.return_value = devices
    self.assertEqual(mesh_lib.held_rows(sharding, 8).tolist(), rows)
    sharding.addressable_devices_indices_map.assert_called_once_with((8,))

  def test_each_array_is_split_as_its_names_say(self):
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    model = GPT2(
      GPT2Config(vocab_size=8, context_length=4, num_layers=1, num_heads=2, embed_dim=8)
    )
    state = abstract_state(model, optax.adamw(0.1), mesh)
    block = state.params["params"]["blocks_0"]
    expected = {
      ("attention", "heads", "query", "kernel"): P("tensor", "fsdp", None),
      ("attention", "heads", "query", "bias"): P("tensor", None),
      ("attention", "output", "kernel"): P("tensor", "fsdp"),
      ("feed_forward", "expand", "kernel"): P("fsdp", "tensor"),
      ("feed_forward", "contract", "kernel"): P("tensor", "fsdp"),
      ("attention_norm", "scale"): P("fsdp"),
    }
    for path, spec in expected.items():
      leaf = block
      for key in path:
        leaf = leaf[key]
      self.assertEqual(leaf.sharding.spec, spec, path)
    token_embedding = state.params["params"]["token_embedding"]["embedding"]
    self.assertEqual(token_embedding.sharding.spec, P("tensor", "fsdp"))
    self.assertEqual(state.step.sharding.spec, P())
    # the optimizer's moments lie where their parameters lie
    moments = state.opt_state[0].mu
    chex.assert_trees_all_equal(
      jax.tree.map(lambda leaf: str(leaf.sharding), moments),
      jax.tree.map(lambda leaf: str(leaf.sharding), state.params),
    )
    self.assertEqual(state.rng.dtype, jax.random.key(0).dtype)
    self.assertEqual(state.step.dtype, jnp.int32)

  def test_a_vocabulary_that_cannot_be_shared_is_copied(self):
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    for vocab_size, spec in ((8, P("tensor", "fsdp")), (9, P(None, "fsdp"))):
      state = abstract_state(
        GPT2(GPT2Config(vocab_size, 4, num_layers=1, num_heads=2, embed_dim=8)),
        optax.adamw(0.1),
        mesh,
      )
      for tree in (state.params, state.opt_state[0].nu):
        table = tree["params"]["token_embedding"]["embedding"]
        self.assertEqual(table.sharding.spec, spec)

  @parameterized.parameters(
    ((1, 1, 8), {}, "model.num_heads is 12: must be divisible by mesh.tensor"),
    ((1, 5, 1), {}, "model.embed_dim is 768: must be divisible by mesh.fsdp"),
    ((1, 1, 4), dict(mlp_dim=30), "model.mlp_dim is 30: must be .* which is 4"),
  )
  def test_heads_and_features_are_shared_equally_or_refused(
    self, shape, changes, message
  ):
    mesh = jax.sharding.AbstractMesh(shape, ("data", "fsdp", "tensor"))
    model = GPT2(GPT2Config.published("small", **changes))
    with self.assertRaisesRegex(InputError, message):
      abstract_state(model, optax.adamw(0.1), mesh)

  def test_stacked_layers_lie_where_each_layer_would(self):
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    config = GPT2Config(8, 4, num_layers=3, num_heads=2, embed_dim=8, scan_layers=True)
    state = abstract_state(GPT2(config), optax.adamw(0.1), mesh)
    kernel = state.params["params"]["blocks"]["feed_forward"]["expand"]["kernel"]
    self.assertEqual(kernel.shape, (3, 8, 32))
    self.assertEqual(kernel.sharding.spec, P(None, "fsdp", "tensor"))

  def test_embeddings_are_brought_together_in_the_dtype_they_are_used_in(self):
    model = GPT2(
      GPT2Config(11, 4, num_layers=1, num_heads=1, embed_dim=8, dtype="bfloat16")
    )
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    mesh = mesh_lib.one_device_mesh()
    params = abstract_state(model, optax.sgd(0.1), mesh).params
    with mesh_lib.spread_over(mesh):
      lowered = jax.jit(model.apply).lower(params, tokens)
    found = re.findall(
      r"sharding_constraint .*, \[(.*)\]> : tensor<11x8x(\w+)>", lowered.as_text()
    )
    in_parts, whole = '{"tensor"}, {"fsdp"}', '{"tensor"}, {}'
    self.assertEqual(found, [(in_parts, "bf16"), (whole, "bf16")])
