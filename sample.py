"""gpt2_flax/doors/sample.py, in a checkout."""

from gpt2_flax.doors import command_line, sample

if __name__ == "__main__":
  command_line.run(sample.main)
