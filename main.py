#!/usr/bin/env python
"""The one entrance: `python main.py fit --config configs/resnet_depth.yaml`, and `python main.py --help`."""

from lightning_depth.training import signals

signals.arm()  # before anything slow: see lightning_depth/training/signals.py

from lightning_depth.cli.main import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
