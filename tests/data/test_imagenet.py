"""ImageNet as a folder of images."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as tv
from torchvision.transforms import v2

from lightning_depth.data import ImageNet
from lightning_depth.errors import UserError


@pytest.fixture
def imagenet(tmp_path):
    """ImageNet in small: photographs of different sizes and kinds, in folders named by WordNet id."""
    home = tmp_path / "imagenet"
    for split, count in (("train", 4), ("val", 2)):
        for c, wnid in enumerate(["n02119789", "n01440764", "n02100735"]):
            folder = home / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                mode = ("RGB", "CMYK", "L", "RGB")[i]
                picture = Image.new("RGB", (60 + 10 * i, 48), (80 * c, 40, 200 - 80 * c)).convert(mode)
                picture.save(folder / f"{wnid}_{i}.JPEG", format="PNG" if i == 3 else "JPEG")
    return home


def test_imagenet_is_a_folder_of_wordnet_ids(imagenet):
    data = ImageNet(root=str(imagenet.parent), image_size=16)
    data.setup()
    assert data.class_names == ["tench", "English_setter", "kit_fox"]  # by WordNet id, as torchvision numbers them
    assert (data.input_shape, data.train_size, data.val_source) == ((3, 16, 16), 12, "test split")
    assert len(data.test_dataloader().labels) == 6
    assert data.normalisation[0] == [0.485, 0.456, 0.406]
    two = ImageNet(root=str(imagenet.parent), image_size=16, classes=["kit_fox", "n01440764"])
    assert two.class_names == ["kit_fox", "tench"]
    mean = two.train_dataloader().images.double().mean((1, 2))
    assert (mean[two.train_dataloader().labels == 0, 0][[0, 3]] < 5).all()
    assert (mean[two.train_dataloader().labels == 1, 0][[0, 3]] - 80 < 5).all()


def test_only_the_classes_asked_for_are_decoded(imagenet):
    (imagenet / "train" / "n01440764" / "n01440764_0.JPEG").write_bytes(b"broken")
    ImageNet(root=str(imagenet.parent), image_size=8, classes=["kit_fox"]).setup()
    with pytest.raises(UserError, match=r"n01440764_0\.JPEG cannot be read"):
        ImageNet(root=str(imagenet.parent), image_size=8).setup()


def test_the_central_square_is_torchvisions(tmp_path):
    draws = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(draws).resize((400, 320), Image.Resampling.BICUBIC)
    for split in ("train", "val"):
        folder = tmp_path / "imagenet" / split / "n02119789"
        folder.mkdir(parents=True)
        picture.save(folder / "1.png")
    image = ImageNet(root=str(tmp_path)).train_dataloader().images[0].permute(2, 0, 1)
    expected = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(tv.pil_to_tensor(picture))
    assert (image.int() - expected.int()).abs().max() <= 3  # cut and resize, or resize and cut
    off = tv.resize(tv.pil_to_tensor(picture), [224, 224])
    assert (image.int() - off.int()).abs().max() > 20


def test_imagenet_that_would_not_fit_says_what_to_reduce(imagenet):
    with pytest.raises(UserError, match=r"12 images of 224 x 224 need 0\.00 GB.*max_bytes") as error:
        ImageNet(root=str(imagenet.parent), max_bytes=12 * 224 * 224 * 3 - 1).setup()
    assert "fewer classes, samples_per_class or a smaller image_size" in str(error.value)
    ImageNet(root=str(imagenet.parent), max_bytes=12 * 224 * 224 * 3).setup("fit")
    held_out = {"image_size": 32, "samples_per_class": 1, "val_fraction": 0.5}  # 3 for training, 6 for validation
    ImageNet(root=str(imagenet.parent), max_bytes=6 * 32 * 32 * 3, **held_out).split("val")
    with pytest.raises(UserError, match="6 images of 32 x 32"):
        ImageNet(root=str(imagenet.parent), max_bytes=6 * 32 * 32 * 3 - 1, **held_out).split("val")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"centre": 0.0}, "centre=0.0"),
        ({"classes": ["kit fox"]}, r"no class 'kit fox'. Did you mean 'kit_fox'"),
        ({"image_size": 0}, "image_size=0"),
        ({"crop_scale": (0.5, 0.2)}, r"crop_scale=\[0.5, 0.2\]"),
        ({"crop_scale": (0.5, 1.2)}, "at most 1"),
        ({"crop_ratio": (0.0, 1.0)}, "crop_ratio"),
    ],
)
def test_user_errors_are_told(imagenet, arguments, said):
    with pytest.raises(UserError, match=said):
        ImageNet(root=str(imagenet.parent), **arguments).setup()


def test_imagenet_that_is_nowhere_says_where_to_put_it(tmp_path):
    with pytest.raises(UserError, match=r"Put its images in .*imagenet/\{train,val\}/<WordNet id>") as error:
        ImageNet(root=str(tmp_path)).setup()
    assert len(str(error.value).splitlines()) == 2
