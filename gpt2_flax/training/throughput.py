"""How fast training goes: tokens a second, the share spent waiting for data, MFU."""

import time

from gpt2_flax.model_config import GPT2Config
from gpt2_flax.training.flops import flops_per_token, peak_flops


class Throughput:
  """Counts steps from one `restart` to the next."""

  def __init__(self, config: GPT2Config, batch_size: int):
    self._tokens_per_step = batch_size * config.context_length
    self._flops_per_token = flops_per_token(config)
    self._peak_flops = peak_flops(config)
    self.restart()

  def restart(self) -> None:
    """Counts anew from here, as after an evaluation, which is no training time."""
    self._since, self._steps, self._waited = time.perf_counter(), 0, 0.0

  def stepped(self, waited: float) -> None:
    """One more step, before which data was waited for so many seconds."""
    self._steps += 1
    self._waited += waited

  def measures(self) -> dict[str, float]:
    """What is written to the metrics; "mfu" only where a device's peak is known."""
    seconds = time.perf_counter() - self._since
    tokens_per_second = self._steps * self._tokens_per_step / seconds
    flops_per_second = tokens_per_second * self._flops_per_token
    measures = {
      "tokens_per_second": tokens_per_second,
      "data_wait_share": self._waited / seconds,
      "model_flops_per_second": flops_per_second,
    }
    if self._peak_flops:
      measures["mfu"] = flops_per_second / self._peak_flops
    return measures
