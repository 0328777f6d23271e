"""The format of a run directory: names, columns, reading and writing."""
