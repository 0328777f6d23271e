"""What does depth do to an over-parameterised network? Families, data, measures, runs and figures to find out."""

__version__ = "0.1.0"
