"""A run goes on only with a config that would not change its numbers."""

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

  def test_a_run_may_go_on_for_longer(self):
    before, now = toy.get_config(), toy.get_config()
    now.train.num_steps += 1
    now.eval.every_steps += 1
    now.mesh.fsdp = 2
    now.model.scan_layers = True
    now.model.remat = "full"
    experiments = [parse(config)[0] for config in (before, now)]
    self.assertEqual(differences(*experiments), [])
