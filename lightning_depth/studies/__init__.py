"""Grids of runs, and searches."""
