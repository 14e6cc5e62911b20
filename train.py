"""gpt2_flax/doors/train.py, in a checkout."""

from gpt2_flax.doors import command_line, train

if __name__ == "__main__":
  command_line.run(train.main)
