"""One self-contained HTML page that shows a model at work on a text.

data.py         what the page shows, as JSON values
render.py       the page, with everything it needs inside
template.html, style.css, *.js    its parts, put together by render.py
"""

from gpt2_flax.interpret.page.data import page_data
from gpt2_flax.interpret.page.render import render_page

__all__ = ["page_data", "render_page"]
