"""A run goes on only with a config that would not change its numbers."""

import dataclasses

from absl.testing import parameterized
import chex

from configs import markov, toy
from gpt2_flax.training.experiment import parse
from gpt2_flax.training.resume import differences


class DifferencesTest(chex.TestCase):
  def test_names_each_key_that_would_change_the_numbers(self):
    before = toy.get_config()
    now = markov.get_config()
    now.optimizer.learning_rate = 0.5
    changed = differences(*(parse(c)[0] for c in (before, now)))
    self.assertIn("config.optimizer.learning_rate was 0.02, is now 0.5", changed)
    self.assertIn("config.data.order was None, is now 2", changed)
    self.assertIn("config.data.name was 'grammar', is now 'markov'", changed)
    self.assertIn("config.model.vocab_size was 70, is now 9", changed)

  @parameterized.parameters(
    ("train.seed", 1),
    ("train.batch_size", 64),
    ("train.accumulation_steps", 2),
    ("train.max_loss_jump", 1.0),
    ("optimizer.beta2", 0.5),
    ("model.dropout_rate", 0.5),
    ("data.seed", 1),
    ("finetune.layer_decay", 0.5),
  )
  def test_not_with_other_numbers(self, key, value):
    before, now = toy.get_config(), toy.get_config()
    now.update_from_flattened_dict({key: value})
    (line,) = differences(*(parse(c)[0] for c in (before, now)))
    self.assertRegex(line, f"^config.{key} was .*, is now {value}$")

  def test_not_from_other_weights(self):
    before = parse(toy.get_config())[0]
    now = dataclasses.replace(before, init_from="a/model")
    self.assertEqual(
      differences(before, now), ["config.init_from was '', is now 'a/model'"]
    )

  def test_a_run_may_go_on_for_longer(self):
    before, now = toy.get_config(), toy.get_config()
    now.train.num_steps += 1
    now.eval.every_steps += 1
    now.profile = "traces"
    now.train.log_every_steps += 1
    now.train.max_skipped_steps += 1
    now.checkpoint.keep += 1
    now.mesh.fsdp = 2
    now.model.scan_layers = True
    now.model.remat = "full"
    experiments = [parse(config)[0] for config in (before, now)]
    self.assertEqual(differences(*experiments), [])
