"""Studies: what is run, one cell of it, the table and the picture."""
