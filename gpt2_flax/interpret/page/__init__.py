"""One self-contained HTML page that shows a model at work on a text.

data.py     what the page shows, as JSON values
live.py     the weights of a small model, which the page runs by itself
stored.py   one reading of one text, where the weights do not fit
arrays.py   arrays as JSON values
render.py   the page, with everything it needs inside
web/        its parts: the model in JavaScript, what is drawn, the template
"""

from gpt2_flax.interpret.page.data import page_data
from gpt2_flax.interpret.page.live import History, run_history
from gpt2_flax.interpret.page.render import render_page

__all__ = ["History", "page_data", "render_page", "run_history"]
