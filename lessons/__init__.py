"""A course: claims about Transformers, each tried out, in an order to be read.

    python -m lessons                  the words of the course, and the path
    python -m lessons order            one lesson: a question, figures, a verdict
    python -m lessons order --write    the same; its outcome goes into lessons/README.md
    python -m lessons all --write      all of them
    python -m lessons --write          the page again, with nothing measured again

A lesson is one file, and a notebook too, in jupytext's percent format: `# %%` begins a
cell of code, `# %% [markdown]` one of prose. The prose is what a reader sees, here and
in the notebook. It has

    # Title            and the story, up to a paragraph that begins with
                       **What do you expect?**
    ## The verdict     after the cell that measures: `show(run)`
    ## Exercise        something to do with what is in the lesson, and
    ## Answer          what came out when we did it

and the code has

    CLAIM     one sentence, which may turn out wrong
    SECONDS   how long it takes on two CPU cores, about
    run       run(reduced=False) -> Report; reduced is a size for tests, with one seed,
              where what holds at the real size holds too

The first line of the module's docstring says what the lesson teaches.
"""

LESSONS = (  # in the order of reading
  "limit",
  "tokens",
  "order",
  "positions",
  "scaling",
  "relations",
  "feed_forward",
  "residual_stream",
  "tied_embeddings",
  "stacking",
  "induction",
  "agreement",
  "learned_when",
  "sampling",
  "cache",
  "scaling_law",
)
