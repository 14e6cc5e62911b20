"""gpt2_flax/doors/evaluate.py, in a checkout."""

from gpt2_flax.doors import command_line, evaluate

if __name__ == "__main__":
  command_line.run(evaluate.main)
