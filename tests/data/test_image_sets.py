import builtins
import hashlib
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import functional as tv
from torchvision.transforms import v2

from lightning_depth.data import CIFAR100, MNIST, EmbeddedDigits, FashionMNIST, ImageNet, ImageNet32
from lightning_depth.data.base.batches import EpochOrder, TensorBatches, Transform, resized_crop, resized_crop_boxes
from lightning_depth.data.base.imagenet_classes import DEVKIT_NAMES, SORTED_NAMES
from lightning_depth.data.base.pickles import read_pickle
from lightning_depth.data.cifar import SUPERCLASSES
from lightning_depth.data.imagenet32 import NICHANI2020_CLASSES, read_batch
from lightning_depth.errors import UserError
from lightning_depth.seeds import generator

# ImageNet32


def batch(n=12, labels=None, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": labels or [1 + i % 4 for i in range(n)], "mean": pixels.mean(0)}


@pytest.fixture(params=["pickle", "npz"])
def imagenet32(request, tmp_path):
    """The eleven official files in small: 12 images each, of labels 1 to 4."""
    home = tmp_path / "imagenet32"
    home.mkdir()
    for i, name in enumerate([*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]):
        if request.param == "pickle":
            (home / name).write_bytes(pickle.dumps(batch(seed=i), protocol=3))
        else:
            np.savez(home / name, **batch(seed=i))
    return home


def test_imagenet32_reads_all_its_files_and_labels_start_from_one(imagenet32):
    data = ImageNet32(root=str(imagenet32.parent), classes=["Siberian_husky", "n02119789"])
    data.setup()
    assert data.source.kind == "batch files"
    assert (data.class_names, data.input_shape, data.train_size) == (["Siberian_husky", "kit_fox"], (3, 32, 32), 60)
    loader, first = data.train_dataloader(), batch()["data"]
    planes = loader.images.permute(0, 3, 1, 2).flatten(1)
    assert torch.equal(planes[0], torch.from_numpy(first[0]))  # label 1, the second class asked for
    assert torch.equal(planes[1], torch.from_numpy(first[2]))
    assert loader.labels[:4].tolist() == [1, 0, 1, 0]
    assert data.test_dataloader().labels.tolist() == [1, 0] * 3
    pixels = loader.images.double() / 255
    torch.testing.assert_close(torch.tensor(data.normalisation[0]).double(), pixels.mean((0, 1, 2)))


def test_imagenet32_numbers_are_those_of_the_kit_less_one(imagenet32):
    by_number = ImageNet32(root=str(imagenet32.parent), classes=[0, 3])
    assert by_number.class_names == ["kit_fox", "Australian_terrier"]


def test_the_classes_of_nichani2020_exist_and_lie_within_one_another():
    two, five, ten = (NICHANI2020_CLASSES[n] for n in (2, 5, 10))
    assert [len(two), len(five), len(ten)] == [2, 5, 10]
    assert ten[:5] == five
    assert five[:2] == two
    assert set(ten) <= set(ImageNet32.names)


def test_the_table_of_imagenets_classes():
    kit, by_id = list(DEVKIT_NAMES.values()), list(SORTED_NAMES.values())
    assert len(set(kit)) == len(kit) == len(set(DEVKIT_NAMES)) == 1000
    assert by_id == [name.replace(" ", "_") for name in torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]]
    # Of map_clsloc.txt: labels from 1.
    for label, name in {
        1: "kit_fox",
        2: "English_setter",
        8: "Egyptian_cat",
        429: "crane_bird",
        1000: "dumbbell",
    }.items():
        assert kit[label - 1] == name
    assert (DEVKIT_NAMES["n02119789"], DEVKIT_NAMES["n01440764"], by_id[0]) == ("kit_fox", "tench", "tench")


def test_a_class_that_does_not_exist_is_told_in_two_short_lines(imagenet32):
    with pytest.raises(UserError, match=r"no class 'kitfox'. Did you mean 'kit_fox'\?") as error:
        ImageNet32(root=str(imagenet32.parent), classes=["kitfox"]).setup()
    assert len(str(error.value)) < 200


def test_imagenet32_is_complete_or_a_mistake(imagenet32):
    last = sorted(imagenet32.iterdir())[-1]
    last.unlink()
    with pytest.raises(UserError, match=f"ImageNet32 is incomplete: .*{last.name} is missing"):
        ImageNet32(root=str(imagenet32.parent)).setup()


def test_imagenet32_that_is_nowhere_says_where_to_put_it(tmp_path):
    with pytest.raises(UserError, match="Put train_data_batch_1 to train_data_batch_10 and val_data there") as error:
        ImageNet32(root=str(tmp_path)).setup()
    assert len(str(error.value).splitlines()) == 2


def python_2(name, pixels, labels):
    """A batch as Python 2 pickled it: protocol 2, with byte strings for keys, names and pixels."""

    def text(value):
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<I", len(value)) + value

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01"
        b"M" + struct.pack("<H", pixels.shape[0]) + b"M" + struct.pack("<H", pixels.shape[1]) + b"\x86"
        b"cnumpy\ndtype\n"
        + text(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + text(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89" + text(pixels.tobytes()) + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "python 2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_any_protocol_give_what_was_pickled(tmp_path, protocol, order):
    was = batch(labels=[4] * 12)
    was["data"] = np.asarray(was["data"], order=order)
    path = tmp_path / "batch"
    if protocol == "python 2":
        path.write_bytes(python_2("batch", was["data"], was["labels"]))
        assert np.array_equal(pickle.loads(path.read_bytes(), encoding="latin1")["data"], was["data"])
    else:
        path.write_bytes(pickle.dumps({**was, b"bytes": np.float32(1.5), "big": np.arange(3, dtype=">i4")}, protocol))
        got = read_pickle(path)
        assert got["bytes"] == 1.5
        assert got["big"].tolist() == [0, 1, 2]
        assert np.array_equal(got["mean"], was["mean"])
    pixels, numbers = read_batch(path)
    assert np.array_equal(pixels, was["data"])
    assert numbers.tolist() == [3] * 12


class Calls:
    """Pickles as the call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(canary):
    """Pickles that would write `canary`, and what the refusal names."""
    command, code = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    by_hand = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c" + bytes([len(command)]) + command.encode() + b"\x85R."
    inherited = b"\x80\x04\x8c\x15numpy.core.multiarray\x8c\x0f__loader__.load\x93."
    return {
        "system": (pickle.dumps(Calls(os.system, command)), r"posix\.system"),
        "by hand": (by_hand, r"posix\.system"),
        "eval": (pickle.dumps(Calls(builtins.eval, code)), r"builtins\.eval"),
        "exec, old protocol": (pickle.dumps(Calls(builtins.exec, code), 0), r"exec"),
        "nested": (pickle.dumps({"data": [{"deep": (1, Calls(os.system, command))}]}), r"posix\.system"),
        "as labels": (pickle.dumps({**batch(), "labels": Calls(builtins.eval, code)}), r"builtins\.eval"),
        "in an object array": (
            pickle.dumps({"data": np.array([Calls(os.system, command)], dtype=object)}, 4),
            r"array of type 'O8'",
        ),
        "in an object array, protocol 5": (
            pickle.dumps({"data": np.array([Calls(os.system, command)], dtype=object)}, 5),
            r"array of type 'O8'",
        ),
        "attribute": (inherited, r"__loader__"),
        "getattr": (b"cbuiltins\ngetattr\n.", r"builtins\.getattr"),
        "numpy's own": (b"cnumpy\nload\n.", r"numpy\.load"),
        "another dtype": (b"cos\ndtype\n.", r"os\.dtype"),
        "altered": (b"\x80\x02cnumpy\ndtype\n}X\x05\x00\x00\x00_makeK\x01sb.", r"alters a function of numpy"),
        "codec": (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", r"_codecs\.encode"),
        "structured": (pickle.dumps({"data": np.zeros(2, [("a", "u1")])}, 4), r"array of type 'V1'"),
        "persistent": (b"Pname\n.", r"outside itself"),
    }


@pytest.mark.parametrize("name", hostile("x"))
def test_a_hostile_pickle_is_refused_by_name_and_executes_nothing(tmp_path, name):
    canary = tmp_path / "canary"
    content, named = hostile(canary)[name]
    path = tmp_path / "train_data_batch_1"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"train_data_batch_1 was not read: .*{named}"):
        read_batch(path)
    assert not canary.exists()


def test_the_canary_would_have_been_touched(tmp_path):
    pickle.loads(hostile(tmp_path / "canary")["system"][0])
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("length", [0, 1, 2, 50, 300, -5000, -100, -1])
@pytest.mark.parametrize("format", ["pickle", "npz"])
def test_a_truncated_batch_is_named(tmp_path, format, length):
    path = tmp_path / ("batch.npz" if format == "npz" else "batch")
    if format == "npz":
        np.savez(path, **batch())
    else:
        path.write_bytes(pickle.dumps(batch()))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"batch(.npz)? (is corrupt|cannot be read as arrays)"):
        read_batch(path)


def test_random_bytes_are_a_mistake(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "batch"
    good = bytearray(pickle.dumps({"data": np.zeros((1, 4), np.uint8), "labels": [1]}, 4))
    for _ in range(300):
        damaged = bytearray(good)
        damaged[int(rng.integers(len(good)))] = int(rng.integers(256))
        path.write_bytes(damaged)
        with pytest.raises(UserError):  # the shape is wrong even where the damage does not show
            read_batch(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": np.zeros((12, 3071), np.uint8)}, r"data are uint8 \(12, 3071\)"),
        ({"data": np.zeros((12, 3, 32, 32), np.uint8)}, r"data are uint8 \(12, 3, 32, 32\)"),
        ({"data": np.zeros((12, 3072), np.float32)}, r"data are float32 \(12, 3072\)"),
        ({"data": [[0] * 3072] * 12}, "data are a list"),
        ({"labels": [1] * 11}, "labels are not 12 whole numbers"),
        ({"labels": [1.0] * 12}, "labels are not 12 whole numbers"),
        ({"labels": ["1"] * 12}, "labels are not 12 whole numbers"),
        ({"labels": [[1]] * 12}, "labels are not 12 whole numbers"),
        ({"labels": [0] + [1] * 11}, "labels from 0 to 1; ImageNet32 has them from 1 to 1000"),
        ({"labels": [1001] * 12}, "labels from 1001 to 1001"),
    ],
)
def test_a_batch_of_another_format_is_told(tmp_path, change, said):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({**batch(), **change}))
    with pytest.raises(UserError, match=said):
        read_batch(path)


@pytest.mark.parametrize(("content", "said"), [([1, 2], "holds a list"), ({"data": 1}, "has no 'labels'")])
def test_a_pickle_without_the_arrays_is_told(tmp_path, content, said):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=said):
        read_batch(path)


def test_objects_in_npz_are_refused_and_execute_nothing(tmp_path):
    path, canary = tmp_path / "batch.npz", tmp_path / "canary"
    objects = np.array([Calls(os.system, f"touch {canary}")] * 12, dtype=object)
    np.savez(path, data=batch()["data"], labels=objects)
    with pytest.raises(UserError, match=r"batch\.npz cannot be read as arrays: Object arrays cannot be loaded"):
        read_batch(path)
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {canary}")))  # no archive at all
    with pytest.raises(UserError, match=r"batch\.npz cannot be read as arrays"):
        read_batch(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", b"not an array")
        archive.writestr("labels.npy", pickle.dumps(Calls(os.system, f"touch {canary}")))
    with pytest.raises(UserError, match=r"batch\.npz"):
        read_batch(path)
    assert not canary.exists()


# CIFAR-100


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """CIFAR-100's two pickles in small, every class twice, and their MD5 sums published."""
    home, published = tmp_path / "cifar-100-python", torchvision.datasets.CIFAR100
    home.mkdir()
    coarse = [
        list(SUPERCLASSES).index(c) for name in CIFAR100.names for c, names in SUPERCLASSES.items() if name in names
    ]
    for attribute, seed in (("train_list", 0), ("test_list", 1)):
        ((name, _),) = getattr(published, attribute)
        fine = [i % 100 for i in range(200)]
        content = {
            "data": batch(200, seed=seed)["data"],
            "fine_labels": fine,
            "coarse_labels": [coarse[c] for c in fine],
        }
        (home / name).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(published, attribute, [[name, hashlib.md5((home / name).read_bytes()).hexdigest()]])
    return home


def test_cifar100_files_are_read_as_torchvision_reads_them(cifar100, monkeypatch):
    (cifar100 / "meta").write_bytes(pickle.dumps({"fine_label_names": list(CIFAR100.names)}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = CIFAR100(root=str(cifar100.parent), download=False)
    for split, loader in ((True, data.train_dataloader()), (False, data.test_dataloader())):
        reference = torchvision.datasets.CIFAR100(str(cifar100.parent), train=split)
        assert np.array_equal(loader.images.numpy(), reference.data)
        assert loader.labels.tolist() == reference.targets
    assert (data.num_classes, data.class_names[0], data.class_names[-1]) == (100, "apple", "worm")


def test_cifar100_coarse_labels(cifar100):
    data = CIFAR100(labels="coarse", root=str(cifar100.parent), classes=["people", "aquatic_mammals"])
    assert (data.class_names, data.train_size) == (["people", "aquatic_mammals"], 20)
    fine = CIFAR100(root=str(cifar100.parent), classes=["whale"])
    mammals = data.train_dataloader().images[data.train_dataloader().labels == 1]
    assert {tuple(x.flatten().tolist()) for x in fine.train_dataloader().images} <= {
        tuple(x.flatten().tolist()) for x in mammals
    }
    with pytest.raises(UserError, match="no class 'whale'"):
        CIFAR100(labels="coarse", root=str(cifar100.parent), classes=["whale"]).setup()


def test_the_superclasses_are_the_published_ones():
    # The published coarse label of each fine label, in order.
    published = """
        4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 5 19 8 8 15 13
        14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 16 19 2 4 6 19 5 5 8 19
        18 1 2 15 6 0 17 8 14 13"""
    groups = list(SUPERCLASSES.values())
    assert [next(i for i, group in enumerate(groups) if name in group) for name in CIFAR100.names] == [
        int(number) for number in published.split()
    ]


def test_cifar100_as_a_folder_of_fine_classes_has_coarse_labels_too(image_folder):
    root = image_folder("cifar100", ["whale", "boy", "seal"], train=2, test=1).parent
    data = CIFAR100(labels="coarse", root=str(root), classes=["people", "aquatic_mammals"])
    assert torch.bincount(data.train_dataloader().labels).tolist() == [2, 4]
    assert CIFAR100(root=str(root), classes=["whale", "boy"]).train_size == 4


def test_a_corrupt_cifar100_is_named_and_never_unpickled(cifar100, tmp_path):
    (cifar100 / "train").write_bytes(pickle.dumps(Calls(os.system, f"touch {tmp_path / 'canary'}")))
    with pytest.raises(UserError, match="cifar-100-python/train is not the published file"):
        CIFAR100(root=str(cifar100.parent)).setup()
    assert not (tmp_path / "canary").exists()


# Fashion-MNIST


def test_fashion_mnist_is_read_as_torchvision_reads_it(mnist_files):
    home = mnist_files.parent.parent
    (home / "MNIST").rename(home / "FashionMNIST")
    data = FashionMNIST(root=str(home), download=False, classes=["Ankle boot", "T-shirt/top"])
    reference = torchvision.datasets.FashionMNIST(str(home), train=True)
    loader = data.train_dataloader()
    clothes = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
    assert list(FashionMNIST.names) == reference.classes == clothes.split(", ")
    assert torch.equal(loader.images[loader.labels == 0][..., 0], reference.data[reference.targets == 9])
    assert torch.equal(loader.images[loader.labels == 1][..., 0], reference.data[reference.targets == 0])
    assert data.normalisation == ([0.2860], [0.3530])
    with pytest.raises(UserError, match="download is off"):
        MNIST(root=str(home), download=False).setup()  # the one is not the other


def test_fashion_mnist_as_a_folder(image_folder):
    names = [name.replace("/", "_") for name in FashionMNIST.names]
    root = image_folder("fashion_mnist", names, train=2, test=1, mode="L").parent
    data = FashionMNIST(root=str(root))
    assert (data.num_classes, data.class_names[0], data.train_size) == (10, "T-shirt/top", 20)


# ImageNet


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


# The fallback


@pytest.mark.parametrize(
    ("cls", "arguments", "digits"),
    [
        (FashionMNIST, {"download": False, "classes": ["Bag", "Trouser"]}, "81"),
        (CIFAR100, {"download": False}, "0123456789"),
        (CIFAR100, {"download": False, "labels": "coarse", "classes": ["people", "trees"]}, "01"),
        (ImageNet32, {"classes": list(NICHANI2020_CLASSES[5]), "samples_per_class": 1300}, "01234"),
        (ImageNet, {"classes": ["dumbbell", 7], "image_size": 32}, "01"),
    ],
)
def test_the_digits_stand_in(tmp_path, capsys, cls, arguments, digits):
    data = cls(root=str(tmp_path), fallback="embedded_digits", augment="random_resized_crop_flip", **arguments)
    data.setup()
    assert data.source.fallback
    assert capsys.readouterr().err.count("stands in for") == 1
    assert data.class_names == list(digits)
    assert data.train_size == 400 * len(digits)
    assert data.train_dataloader().transform.augment == "random_resized_crop"  # a mirrored 2 is no digit
    with pytest.raises(UserError, match="no class 'kit_foks'"):
        cls(root=str(tmp_path), fallback="embedded_digits", **{**arguments, "classes": ["kit_foks"]}).setup()


# Random resized crops


def pictures(n, height=24, width=24, channels=3):
    return torch.randint(
        256, (n, height, width, channels), dtype=torch.uint8, generator=generator(0, "pictures", height, width)
    )


@pytest.mark.parametrize("size", [(24, 24), (17, 30), (32, 32)])
def test_resized_crops_are_torchvisions_on_the_same_boxes(size):
    images = pictures(64, *size)
    boxes = resized_crop_boxes(64, *size, (0.08, 1.0), (3 / 4, 4 / 3), generator(0))
    ours = resized_crop(images, boxes).permute(0, 3, 1, 2).int()
    exact, bytewise = [], []
    for image, box in zip(images.permute(0, 3, 1, 2), boxes.tolist(), strict=True):
        exact.append(v2.functional.resized_crop(image.float(), *box, list(size), antialias=True))
        bytewise.append(v2.functional.resized_crop(image, *box, list(size), antialias=True).int())
    off = (ours - torch.stack(exact)).abs()
    assert off.max() < 0.502  # rounding to whole levels
    assert (ours - torch.stack(bytewise)).abs().max() <= 1


def test_the_whole_image_is_a_box_that_changes_nothing():
    images = pictures(5)
    assert torch.equal(resized_crop(images, torch.tensor([[0, 0, 24, 24]] * 5)), images)
    one = images[:, 3:4, 5:6]
    assert torch.equal(resized_crop(images, torch.tensor([[3, 5, 1, 1]] * 5)), one.expand(-1, 24, 24, -1))
    assert torch.equal(resized_crop(one, torch.tensor([[0, 0, 1, 1]] * 5)), one)


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)), ((20, 40), (0.5, 0.9), (0.9, 1.1)), ((6, 6), (0.01, 0.02), (1.0, 1.0))],
)
def test_boxes_are_distributed_as_torchvisions(size, scale, ratio):
    n = 4000
    ours = resized_crop_boxes(n, *size, scale, ratio, generator(0)).double()
    image = torch.zeros(3, *size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        draw = torchvision.transforms.RandomResizedCrop.get_params
        theirs = torch.tensor([draw(image, list(scale), list(ratio)) for _ in range(n)]).double()
    top, left, tall, wide = ours.unbind(1)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (top + tall <= size[0]).all()
    assert (left + wide <= size[1]).all()
    error = 5 * (theirs.std(0) + ours.std(0)) / n**0.5 + 1e-9
    assert ((ours.mean(0) - theirs.mean(0)).abs() <= error).all()
    assert ((ours.std(0) - theirs.std(0)).abs() <= error).all()


def test_where_no_box_fits_it_is_the_largest_central_one_as_in_torchvision():
    for size, ratio in (((10, 40), (0.5, 0.5)), ((40, 10), (2.0, 2.0)), ((30, 30), (1.0, 1.0))):
        ours = resized_crop_boxes(1, *size, (1.0, 1.0), ratio, generator(0))[0].tolist()
        theirs = torchvision.transforms.RandomResizedCrop.get_params(torch.zeros(3, *size), [1.0, 1.0], list(ratio))
        assert ours == list(theirs)


def batches(rank=0, world=1, batch_size=6, augment="random_resized_crop_flip", **kwargs):
    order = EpochOrder(37, batch_size, 5, rank, world)
    transform = Transform([0.4, 0.5, 0.6], [0.2, 0.3, 0.1], augment, **kwargs)
    return TensorBatches(pictures(37), torch.arange(37), batch_size, transform, order)


def test_a_resized_crop_depends_on_seed_epoch_and_position_alone():
    one, again, ranks = batches(), batches(), [batches(rank, 3, 2) for rank in range(3)]
    again.batch(0, 0)
    assert torch.equal(one.batch(3, 5)[0], again.batch(3, 5)[0])
    for step in range(6):
        together = torch.cat([rank.batch(2, step)[0] for rank in ranks])
        assert torch.equal(one.batch(2, step)[0], together)
    assert not torch.equal(one.batch(0, 0)[0], one.batch(1, 0)[0])


def test_resized_crops_leave_flips_and_order_as_they_are():
    whole = batches(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)).batch(1, 2)
    padded = batches(augment="crop_flip", padding=0).batch(1, 2)
    for ours, theirs in zip(whole, padded, strict=True):
        assert torch.equal(ours, theirs)
    plain, flipped = (batches(augment=f"random_resized_crop{end}").batch(1, 2)[0] for end in ("", "_flip"))
    same = [torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert {*same} == {True, False}
    assert all(s or torch.equal(a, b.flip(-1)) for s, a, b in zip(same, plain, flipped, strict=True))


def test_a_data_set_crops_and_resizes_while_training_alone():
    data = EmbeddedDigits(augment="random_resized_crop", crop_scale=(0.2, 0.5), samples_per_class=5)
    data.setup()
    train = data.train_dataloader()
    (x, y), still = train.batch(0, 0), data.probe_dataloader(50).images
    assert x.shape == (50, 1, 28, 28)
    assert len(y) == 50
    assert train.transform.crop_scale == (0.2, 0.5)
    assert (x > 0).float().mean() > 1.2 * (still > 33).float().mean()  # a part of a digit fills its frame
    assert data.val_dataloader().transform.augment == "none"
