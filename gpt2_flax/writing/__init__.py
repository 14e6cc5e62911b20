"""Writing for those who use it: on top of `generation`, with texts in place of tokens.

texts.py         prompts in, texts out, whole or as they grow
growing_text.py  one of them, as its tokens come
stop_strings.py  where a text ends
beams.py         beam search
conversation.py  one text that a person and a model write in turn
"""
