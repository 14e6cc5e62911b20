"""Throughput: tokens, waiting and operations of each second since the last restart."""

from unittest import mock

import chex

from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training import throughput as throughput_lib
from gpt2_flax.training.flops import flops_per_token
from gpt2_flax.training.throughput import Throughput

CONFIG = GPT2Config(11, 6, num_layers=1, num_heads=2, embed_dim=8)
TOKENS = 4 * 6  # in a step


class ThroughputTest(chex.TestCase):
  def setUp(self):
    super().setUp()
    self.now = 100.0
    clock = mock.Mock(perf_counter=lambda: self.now)
    self.enterContext(mock.patch.object(throughput_lib, "time", clock))

  def throughput(self, peak: float | None) -> Throughput:
    with mock.patch.object(throughput_lib, "peak_flops", return_value=peak):
      return Throughput(CONFIG, batch_size=4)

  def test_counts_from_one_restart_to_the_next(self):
    throughput = self.throughput(peak=None)
    throughput.stepped(0.25)
    throughput.stepped(0.5)
    for seconds in (2.0, 4.0):  # to look at it changes nothing
      self.now += 2.0
      tokens = 2 * TOKENS / seconds
      expected = {
        "tokens_per_second": tokens,
        "data_wait_share": 0.75 / seconds,
        "model_flops_per_second": tokens * flops_per_token(CONFIG),
      }
      self.assertEqual(throughput.measures(), expected)
    throughput.restart()
    throughput.stepped(0.125)
    self.now += 0.5
    measures = throughput.measures()
    self.assertEqual(measures["tokens_per_second"], TOKENS / 0.5)
    self.assertEqual(measures["data_wait_share"], 0.125 / 0.5)

  def test_mfu_is_the_share_of_what_the_device_can_do(self):
    throughput = self.throughput(peak=4.0 * TOKENS * flops_per_token(CONFIG))
    throughput.stepped(0.0)
    self.now += 0.5
    self.assertEqual(throughput.measures()["mfu"], 0.5)
