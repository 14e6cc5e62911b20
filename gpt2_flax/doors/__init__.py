"""What a person calls: a door parses flags, and makes one call.

A door is imported only when it is called: importing it defines its flags, and two doors
may define the same flag.
"""

DOORS = ("train", "sweep", "sample", "evaluate", "explain", "export")
