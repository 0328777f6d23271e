#!/usr/bin/env python
"""The one entrance: `python main.py fit --config configs/resnet_depth.yaml`, and `python main.py --help`."""

from lightning_depth import early

early.arm()  # before anything slow: see lightning_depth/early.py

from lightning_depth.entrance import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
