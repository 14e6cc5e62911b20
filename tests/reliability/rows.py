"""All rows of the table, in its order."""

ROWS = ()
