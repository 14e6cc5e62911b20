"""gpt2_flax/doors/sweep.py, in a checkout."""

from gpt2_flax.doors import command_line, sweep

if __name__ == "__main__":
  command_line.run(sweep.main)
