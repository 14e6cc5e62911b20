"""Configs that are made by a rule."""

from absl.testing import parameterized
import chex

from configs import depth, scaling_law
from gpt2_flax.training.experiment import parse


class DepthTest(chex.TestCase):
  @parameterized.parameters(1, 2, 4, 12)
  def test_sets_shape_data_and_batch(self, turned):
    config, _ = parse(depth.get_config(str(turned)))
    model, train = config.model, config.train
    shape = model.num_layers, model.num_heads, model.embed_dim, model.head_dim
    self.assertEqual(shape, (turned, turned, 16 * turned, 16))
    of_blocks = 12 * turned * (16 * turned) ** 2
    tokens = train.num_steps * train.batch_size * model.context_length
    self.assertAlmostEqual(tokens / of_blocks, 20, delta=0.2)
    tokens = train.batch_size * model.context_length
    self.assertBetween(tokens, 512 * turned - model.context_length, 512 * turned)
    self.assertEqual(config.optimizer.name, "muon")
    self.assertEqual(config.optimizer.warmup_steps, train.num_steps // 10)

  def test_on_other_data(self):
    config = depth.get_config("3:induction")
    self.assertEqual(config.data.name, "induction")
    self.assertEqual(config.model.num_layers, 3)
    self.assertEqual(depth.get_config().model.num_layers, 2)

  @parameterized.parameters("0", "-1", "2.5", "", "deep", ":babel")
  def test_a_depth_that_is_none(self, argument):
    with self.assertRaisesRegex(ValueError, "depth is .*: must be an integer from 1"):
      depth.get_config(argument)

  def test_the_study_gives_all_depths_the_same_batches(self):
    for turned in ("1", "7"):
      config, _ = parse(scaling_law.get_config(turned))
      tokens = config.train.batch_size * config.model.context_length
      self.assertEqual((tokens, config.model.num_layers), (2048, int(turned)))
      self.assertEqual(config.data.num_topics, 10)
