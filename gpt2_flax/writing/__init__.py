"""Writing for those who use it: on top of `generation`, with texts in place of tokens.

beams.py  beam search
"""
