"""ImageNet (ILSVRC 2012, Russakovsky et al. 2015) as a folder of photographs, reduced to what fits in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any, final

from lightning_depth.data.base.imagenet_classes import SORTED_NAMES
from lightning_depth.data.base.published import AbstractReplaceableImages
from lightning_depth.data.base.sources import AbstractImages, Source, SourceSplit, class_folders, image_files
from lightning_depth.errors import UserError

CONSTANTS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@final
class ImageNet(AbstractReplaceableImages):
    """ImageNet from `<root>/imagenet/{train,val}/<class>/*.JPEG`; a folder's name is a WordNet id or a class's name.

    The validation images are the test split. Any part of ImageNet will do: the classes are those whose folders are
    there, in the order of their WordNet ids as in torchvision. Nothing is downloaded.

    All of ImageNet does not fit: a data set here lives decoded in memory, and 1,281,167 images of 224 x 224 are 193 GB
    (at 64 x 64, 16 GB). So choose `classes`, `samples_per_class` or a smaller `image_size`: ten classes are 2 GB. And
    random resized crops are cut from the stored square of image_size x image_size, not from the original photograph, of
    which they show less, and less sharply, than in torchvision's pipeline. Raises a UserError where a number is out of
    its range.

    Args:
        image_size: side of the square to which every image is reduced.
        centre: side of the central square that is cut out of every image, as a part of its shorter side; 0.875 is
            torchvision's Resize(256), CenterCrop(224).
        max_bytes: the most that the images of a split may take in memory.
        kwargs: the arguments of `AbstractReplaceableImages`; `root` is the folder that holds `imagenet`, and `classes`
            go by name (kit_fox), WordNet id (n02119789) or number.
    """

    title = "ImageNet"
    names = tuple(SORTED_NAMES.values())
    aliases = SORTED_NAMES

    def __init__(
        self, image_size: int = 224, centre: float = 0.875, max_bytes: int = 8_000_000_000, **kwargs: Any
    ) -> None:
        super().__init__(image_size=image_size, **kwargs)
        if not 0 < centre <= 1:
            raise UserError(f"{centre=}: it must be above 0 and at most 1.")
        self.centre, self.max_bytes = centre, max_bytes

    def find(self) -> Source:
        """The folder, and which classes are in it."""
        home = self.root / "imagenet"
        if (home / "train").is_dir() and (home / "val").is_dir():
            # Sorted by WordNet id; folders of other names come after them.
            ids = {name: wnid for wnid, name in SORTED_NAMES.items()}
            self.folders: dict[str, list[str]] = {}
            for name in sorted(class_folders(home / "train"), key=lambda name: ids.get(name, name)):
                self.folders.setdefault(SORTED_NAMES.get(name, name), []).append(name)
            self.names = tuple(self.folders)
            return Source(self.title, "image folder", str(home))
        absent = f"is not in {home}, and nothing downloads it"
        remedy = f"Put its images in {home}/{{train,val}}/<WordNet id>/*.JPEG (a link to the folder will do)."
        return self.stand_in(absent, remedy)

    def read_found(self, split: SourceSplit, source: Source) -> AbstractImages:
        """The files of the classes asked for: to list a thousand folders of a thousand files takes long."""
        wanted = {self.names[number] for number in self.class_numbers(self.classes, self.names)}
        folders = {name: parts if name in wanted else [] for name, parts in self.folders.items()}
        folder = Path(source.path) / ("val" if split == "test" else "train")
        files = image_files(folder, self.names, 3, CONSTANTS, folders)
        return replace(files, centre=self.centre, max_bytes=self.max_bytes)
