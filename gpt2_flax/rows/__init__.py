"""The rows of a batch of texts in the making: how they begin, what they hold already.

prompts.py  checked, and padded to one length
windows.py  what the model still sees of each, and which have ended
repeats.py  what is there already is made less likely, or impossible
"""
