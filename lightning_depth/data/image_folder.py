"""The user's own images: `<root>/{train,test}/<class>/*.png|jpg|jpeg`."""

from typing import final

from lightning_depth.data.base.images import AbstractImageData
from lightning_depth.data.base.sources import ImageFiles, Source, SourceSplit, class_folders, image_files
from lightning_depth.errors import UserError


@final
class ImageFolder(AbstractImageData):
    """Images in `<root>/{train,test}/<class>/*.png|jpg|jpeg`; the classes are the folders' names, sorted.

    One channel where every training image is grey (mode L), else three. Without a `test` folder, `val_fraction` must be
    positive, and there is nothing to test on. `mean` and `std` are those of the training images unless they are given.
    """

    def find(self) -> Source:
        if not (self.root / "train").is_dir() or not class_folders(self.root / "train"):
            files = f"{self.root}/train/<class>/*.png|jpg|jpeg"
            raise UserError(f"There are no images in {files}: set root to their folder.")
        if not (self.root / "test").is_dir() and self.val_fraction == 0:
            advice = "Add it, or set val_fraction (0.1, say) to hold out a part of the training split."
            raise UserError(f"There is no folder {self.root}/test to validate on.\n{advice}")
        return Source(self.root.resolve().name, "image folder", str(self.root))

    def read(self, split: SourceSplit) -> ImageFiles:
        if not (self.root / split).is_dir():
            raise UserError(f"There is no folder {self.root}/{split} to test on.")
        names = class_folders(self.root / "train")
        unknown = sorted(set(class_folders(self.root / split)) - set(names))
        if unknown:
            raise UserError(f"{self.root / split / unknown[0]} has no counterpart in {self.root}/train.")
        return image_files(self.root / split, names, self.input_shape[0] if split == "test" else None)
