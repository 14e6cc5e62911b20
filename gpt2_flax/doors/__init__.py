"""What a person calls: a door parses flags, and makes one call.

A door is imported only to be opened, for importing it defines its flags, and two doors
may define the same one.
"""

DOORS = ("train", "sample", "evaluate", "explain", "export")
