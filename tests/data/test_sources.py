import pickle
import shutil
import struct
import warnings
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from lightning_depth.data import CIFAR10, MNIST, EmbeddedDigits, ImageFolder
from lightning_depth.data.base.published import JPEG_NOTE
from lightning_depth.data.base.sources import Arrays, decoded, resized
from lightning_depth.data.embedded_digits import embedded_digits
from lightning_depth.errors import UserError


def test_embedded_digits_are_the_real_ones():
    train, test = embedded_digits("train"), embedded_digits("test")
    assert train.images.shape == (4000, 28, 28, 1)
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    assert int(train.images.long().sum() + test.images.long().sum()) == 131_267_102
    image = train.images[train.labels == 0].float().mean(0)[..., 0]
    assert image[14, 14] < 40 < image[14, 7]  # a zero has a hole


def test_cifar_files_are_read_as_torchvision_reads_them(cifar_files, monkeypatch):
    data = CIFAR10(root=str(cifar_files.parent), download=False)
    assert data.locate().kind == "torchvision files"
    data.setup("fit")
    meta = cifar_files / "batches.meta"
    meta.write_bytes(pickle.dumps({"label_names": list(CIFAR10.names)}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    for split, loader in ((True, data.train_dataloader()), (False, data.test_dataloader())):
        reference = torchvision.datasets.CIFAR10(str(cifar_files.parent), train=split)
        assert np.array_equal(loader.images.numpy(), reference.data)
        assert loader.labels.tolist() == reference.targets
    assert tuple(data.class_names) == CIFAR10.names


def test_a_corrupt_cifar_batch_is_named_and_never_unpickled(cifar_files):
    path = cifar_files / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="data_batch_3 is not the published file"):
        CIFAR10(root=str(cifar_files.parent)).setup()


def test_a_missing_cifar_batch_is_named(cifar_files):
    (cifar_files / "test_batch").unlink()
    with pytest.raises(UserError, match="test_batch is missing"):
        CIFAR10(root=str(cifar_files.parent)).locate()


def test_mnist_files_are_read_as_torchvision_reads_them(mnist_files):
    root = str(mnist_files.parent.parent)
    data = MNIST(root=root, download=False)
    for split, loader in ((True, data.train_dataloader()), (False, data.test_dataloader())):
        reference = torchvision.datasets.MNIST(root, train=split)
        assert torch.equal(loader.images[..., 0], reference.data)
        assert torch.equal(loader.labels, reference.targets)
    assert data.class_names == list("0123456789")
    assert data.input_shape == (1, 28, 28)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-1], lambda b: b"\x00" * 8 + b[8:], lambda b: b[:3], lambda b: b""],
    ids=["truncated", "header", "short", "empty"],
)
def test_a_corrupt_mnist_file_is_named(mnist_files, damage):
    path = mnist_files / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="train-images-idx3-ubyte is corrupt"):
        MNIST(root=str(mnist_files.parent.parent)).setup()


@pytest.mark.parametrize(("labels", "said"), [(bytes(39), "39 labels for 40"), (bytes([77] * 40), "label above 9")])
def test_mnist_labels_that_do_not_fit_are_named(mnist_files, labels, said):
    (mnist_files / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, len(labels)) + labels)
    with pytest.raises(UserError, match=f"train-labels-idx1-ubyte .*{said}"):
        MNIST(root=str(mnist_files.parent.parent)).setup()


@pytest.mark.parametrize(("suffix", "note"), [("jpg", JPEG_NOTE), ("png", "")])
def test_a_published_set_as_an_image_folder(image_folder, suffix, note):
    root = image_folder("cifar10", CIFAR10.names[::-1], train=2, test=1, suffix=suffix).parent
    data = CIFAR10(root=str(root), classes=["dog", "cat"])
    assert data.source.describe() == f"CIFAR-10 (image folder, {root}/cifar10)" + (f": {note}" if note else "")
    assert data.class_names == ["dog", "cat"]
    images, labels = data.train_dataloader().images, data.train_dataloader().labels
    assert labels.tolist() == [1, 1, 0, 0]  # standard order in memory: cats first
    red = images[:, 0, 0, 0].float()
    torch.testing.assert_close(red, 20.0 * torch.tensor([6, 6, 4, 4]), atol=3, rtol=0)


def test_only_what_is_needed_is_decoded(image_folder):
    root = image_folder("cifar10", CIFAR10.names, train=2, test=1)
    for split in ("train", "test"):
        (root / split / "ship" / "000.png").write_bytes(b"not an image")
    CIFAR10(root=str(root.parent), classes=["cat", "dog"]).setup()
    with pytest.raises(UserError, match=r"train/ship/000\.png cannot be read"):
        CIFAR10(root=str(root.parent), classes=["ship", "dog"]).setup()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_named(image_folder, suffix):
    root = image_folder(size=(40, 40), suffix=suffix)
    path = root / "train" / "dog" / f"004.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"dog/004\.{suffix} cannot be read"):
        ImageFolder(root=str(root)).setup()


def test_a_deep_image_is_named(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png has more than 8 bits"):
        decoded(str(tmp_path / "deep.png"), 1)


def test_images_of_different_sizes_need_image_size(image_folder):
    root = image_folder()
    Image.new("RGB", (12, 10)).save(root / "train" / "dog" / "002.png")
    with pytest.raises(UserError, match=r"dog/002\.png is 12 x 10, but .*cat/000\.png is 8 x 8"):
        ImageFolder(root=str(root)).setup()
    assert ImageFolder(root=str(root), image_size=4).input_shape == (3, 4, 4)


def test_resizing_is_antialiased_and_the_same_from_files_and_arrays(tmp_path):
    board = torch.zeros(1, 8, 8, 1, dtype=torch.uint8)
    board[:, ::2, ::2], board[:, 1::2, 1::2] = 200, 200
    assert (resized(board, 2).float() - 100).abs().max() < 10  # without antialiasing: 0 or 200
    arrays = Arrays(torch.tensor([0]), ["board"], None, board)
    for split in ("train", "test"):
        (tmp_path / split / "board").mkdir(parents=True)
        Image.fromarray(board[0, ..., 0].numpy()).save(tmp_path / split / "board" / "0.png")
    files = ImageFolder(root=str(tmp_path)).read("train")
    assert files.channels == 1
    assert torch.equal(files.pixels(torch.tensor([0]), 3), arrays.pixels(torch.tensor([0]), 3))


def test_a_folder_is_grey_only_if_all_its_training_images_are(image_folder):
    root = image_folder(mode="L")
    assert ImageFolder(root=str(root)).input_shape == (1, 8, 8)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(root / "train" / "cat" / "colour.png")
    data = ImageFolder(root=str(root))
    data.setup()
    assert data.input_shape == (3, 8, 8)
    assert data.test_dataloader().images.shape[-1] == 3


def test_a_folder_without_images_says_where_they_belong(tmp_path):
    with pytest.raises(UserError, match="set root to their folder"):
        ImageFolder(root=str(tmp_path)).locate()


def test_a_folder_without_test_split_needs_val_fraction(image_folder):
    root = image_folder(test=0)
    for cls in ("cat", "dog"):
        (root / "test" / cls).rmdir()
    (root / "test").rmdir()
    with pytest.raises(UserError, match="set val_fraction"):
        ImageFolder(root=str(root)).locate()
    data = ImageFolder(root=str(root), val_fraction=0.5)
    data.setup("fit")
    assert len(data.val_dataloader().labels) == 6
    with pytest.raises(UserError, match="to test on"):
        data.test_dataloader()


def test_a_test_class_that_is_not_trained_on_is_a_mistake(image_folder):
    root = image_folder()
    (root / "test" / "emu").mkdir()
    with pytest.raises(UserError, match="test/emu has no counterpart"):
        ImageFolder(root=str(root)).setup()


def test_an_empty_class_is_a_mistake(image_folder):
    root = image_folder()
    (root / "train" / "emu").mkdir()
    with pytest.raises(UserError, match="no images of class 'emu'"):
        ImageFolder(root=str(root)).setup()


def no_network(*_, **__):
    raise URLError("Name or service not known")


@pytest.fixture
def offline(monkeypatch):
    for module in ("cifar", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", no_network)


@pytest.mark.parametrize("cls", [CIFAR10, MNIST])
@pytest.mark.usefixtures("offline")
def test_missing_data_is_a_mistake_that_says_where_to_put_it(cls, tmp_path):
    with pytest.raises(UserError, match="Name or service not known") as error:
        cls(root=str(tmp_path)).locate()
    assert f"Put its original files in {tmp_path}/" in str(error.value)
    assert len(str(error.value).splitlines()) == 2
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    with pytest.raises(UserError, match="download is off"):
        cls(root=str(tmp_path / "elsewhere"), download=False).locate()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("offline")
def test_the_fallback_is_loud_once_and_complete(tmp_path, capsys):
    data = CIFAR10(
        root=str(tmp_path),
        fallback="embedded_digits",
        classes=["cat", "dog"],
        samples_per_class=5000,
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    source = data.locate()
    data.prepare_data()
    data.setup("fit")
    assert source.fallback
    said = capsys.readouterr().err
    assert said.count("stands in for CIFAR-10") == 1
    assert len(said.strip().splitlines()) == 5
    assert "\n" not in source.describe()
    assert (data.class_names, data.input_shape, data.train_size) == (["3", "5"], (1, 28, 28), 800)
    assert data.normalisation == ([0.1307], [0.3081])


def test_a_download_is_moved_into_place_whole(cifar_files, tmp_path, monkeypatch):
    stored = cifar_files.rename(tmp_path / "server")
    fetched = []

    def fetch(url, folder, **_):
        fetched.append(url)
        shutil.copytree(stored, Path(folder) / cifar_files.name)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda _: bool(fetched))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda _: None)
    data = CIFAR10(root=str(tmp_path))
    assert data.locate().kind == "download"
    assert CIFAR10(root=str(tmp_path)).locate().kind == "torchvision files"
    assert len(fetched) == 1
    data.setup()
    assert data.train_size == 100
    left = sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock"))
    assert left == ["cifar-10-batches-py", "server"]


def test_nothing_warns_on_the_plain_path():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EmbeddedDigits().setup()
