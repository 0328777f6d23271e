"""The 1,000 classes of ImageNet (ILSVRC 2012), their WordNet ids, and two orders in which they are numbered."""

from pathlib import Path
from types import MappingProxyType

_WORDS = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split()
DEVKIT_NAMES = MappingProxyType(dict(zip(_WORDS[::2], _WORDS[1::2], strict=True)))
"""WordNet id -> name, in the order of the development kit's `map_clsloc.txt`: label 1 is kit_fox, 1000 is dumbbell.

ImageNet32 is labelled in this order. The kit calls two classes crane and two maillot; here, as in torchvision, the bird
is crane_bird, and n03710721 is maillot_tank_suit.
"""
SORTED_NAMES = MappingProxyType(dict(sorted(DEVKIT_NAMES.items())))
"""WordNet id -> name, sorted by id, as torchvision and its pretrained networks number the classes: 0 is tench."""
