"""gpt2_flax/doors/explain.py, in a checkout."""

from gpt2_flax.doors import command_line, explain

if __name__ == "__main__":
  command_line.run(explain.main)
