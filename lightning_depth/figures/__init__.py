"""Figures: a table in, a picture out. Nothing here trains or measures."""
