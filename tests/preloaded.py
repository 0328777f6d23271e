"""Imported once by the server that every tested command is forked from: all that a command reads before its work."""

import matplotlib.backends.backend_agg  # noqa: F401

import lightning_depth.cli.probe
import lightning_depth.cli.report
import lightning_depth.cli.train
import lightning_depth.cli.tune  # noqa: F401
from lightning_depth import plugins
from lightning_depth.data.embedded_digits import digits_table

plugins.built_in()
digits_table()  # without torch, whose threads would not survive the fork
