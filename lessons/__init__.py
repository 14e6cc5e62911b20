"""Claims about attention, each tried out: one runnable file a claim.

    python -m lessons          the claims, and how long each takes
    python -m lessons order    one of them; as good as python -m lessons.order
    python -m lessons all      all of them, into lessons/README.md

A lesson is a module with

    CLAIM     one sentence, which may turn out wrong
    SECONDS   how long it takes on two CPU cores, about
    run       run(reduced=False) -> Report; reduced is a size for tests, with the same
              verdict in a few seconds
"""

LESSONS = (  # in the order of reading
  "order",
  "positions",
  "induction",
  "relations",
  "agreement",
  "limit",
  "scaling",
  "stacking",
)
