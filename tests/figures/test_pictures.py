"""The arrays that probes leave, read again and drawn: what is shown, what is left out, and that it says so."""

import shutil

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Text

from lightning_depth.callbacks import ActivationImages, FeatureSimilarity, Spectrum
from lightning_depth.errors import UserError
from lightning_depth.figures.clustering import clustered_order
from lightning_depth.figures.page import compose
from lightning_depth.figures.pictures import draw_pictures, parts_of
from lightning_depth.figures.report import draw
from lightning_depth.figures.style import STYLE
from lightning_depth.results import read_arrays, write_declarations
from tests.figures.seen import cut_off, overlaps

PROBES = [Spectrum(), Spectrum(name="gram_spectrum"), FeatureSimilarity(), ActivationImages()]
DECLARED = {probe.name: probe.declaration for probe in PROBES}
LONG = "netz.größe.层归一化." + "sehr_langer_name_" * 6


def write(directory, probe, epoch, arrays, names=()):
    folder = directory / "pictures" / probe
    folder.mkdir(parents=True, exist_ok=True)
    members = {**arrays, **{f"names:{key}": np.array(of_key) for key, of_key in dict(names).items()}}
    np.savez_compressed(folder / f"epoch-{epoch:05d}.npz", **members)


def drawn(directory, until=None):
    """The page of all pictures, after every text and axes was found to lie on it and no two texts on each other."""
    with mpl.rc_context(STYLE):
        figure = compose(parts_of(read_arrays(directory, until), DECLARED))
        assert overlaps(figure) == []
        assert cut_off(figure) == []
    return figure


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def axes_of(figure, label):
    return [ax for ax in figure.axes if ax.get_label() == label]


def test_reading_gathers_layers_and_epochs_and_names(tmp_path):
    for epoch in (1, 2, 10):
        arrays = {"a/images": np.full((2, 3, 3), epoch), "a.b/images": np.zeros((2, 3, 3)), "/cka": np.eye(2)}
        write(tmp_path, "some", epoch, arrays, {"/cka": ["x", "größe"]})
    write(tmp_path, "other", 2, {"net/0/x": np.zeros(3)})
    found = {(arrays.probe, arrays.key): arrays for arrays in read_arrays(tmp_path, until=2)}
    assert found.keys() == {("some", "images"), ("some", "cka"), ("other", "x")}
    images = found["some", "images"]
    assert (list(images.layers), list(images.layers["a"])) == (["a", "a.b"], [1, 2])
    assert images.layers["a"][2].tolist() == np.full((2, 3, 3), 2.0).tolist()
    assert found["some", "cka"].names[""] == ["x", "größe"]
    assert list(found["other", "x"].layers) == ["net/0"]
    assert list(read_arrays(tmp_path)[1].layers["a"]) == [1, 2, 10]
    assert read_arrays(tmp_path, until=0) == read_arrays(tmp_path / "nowhere") == []


def broken(kind, path):
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no arrays")
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "bits":  # in the middle of a member
        data = bytearray(path.read_bytes())
        data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        path.write_bytes(data)
    elif kind == "one array":
        np.save(path.with_suffix(".npy"), np.zeros(3))
        path.with_suffix(".npy").rename(path)
    else:
        np.savez(path, **{"net/x": np.array([{}, []], dtype=object)})


@pytest.mark.parametrize("kind", ["empty", "text", "truncated", "bits", "one array", "objects"])
def test_a_broken_file_is_named(tmp_path, kind):
    write(tmp_path, "spectrum", 3, {"net/x": np.random.default_rng(0).random(500)})
    path = tmp_path / "pictures" / "spectrum" / "epoch-00003.npz"
    broken(kind, path)
    with pytest.raises(UserError, match=r"spectrum/epoch-00003.npz: not a file of arrays"):
        read_arrays(tmp_path)
    assert read_arrays(tmp_path, until=2) == []


@pytest.mark.parametrize("epochs", [(1,), (1, 2, 8)], ids=["one epoch", "many"])
def test_spectra_of_many_layers_over_time(tmp_path, epochs):
    layers = [f"net.stage{i}.conv{j}" for i in range(7) for j in range(3)]
    for epoch in epochs:
        write(tmp_path, "spectrum", epoch, {f"{n}/spectrum": np.geomspace(1, 1e-9, 40) for n in layers})
    figure = drawn(tmp_path)
    panels = axes_of(figure, "spectrum")
    assert "Spectrum, divided by its largest value (6 of 21 layers)" in texts(figure)
    assert {"stage0.conv0", "stage6.conv2"} < set(texts(figure))
    assert [len(ax.lines) for ax in panels] == [len(epochs)] * 6
    assert {ax.get_yscale() for ax in panels} == {"log"}
    values = panels[0].lines[0].get_ydata()
    assert (np.nanmin(values) > 1e-6, np.isnan(values).any()) == (True, True)  # down to a millionth of the largest
    assert len(axes_of(figure, "spectrum epochs")) == (len(epochs) > 1)
    assert not any("mathdefault" in t.get_text() for ax in panels for t in ax.get_yticklabels(which="both"))


def test_profiles_with_zeros_negative_values_and_none(tmp_path):
    arrays = {"z": np.zeros(9), "negative": np.linspace(-1, 1, 50), "nan": np.full(4, np.nan), "one": np.array([2.0])}
    arrays["part"] = np.array([1.0, np.nan, 0.0])
    write(tmp_path, "mine", 3, {f"{name}/profile": values for name, values in arrays.items()})
    figure = drawn(tmp_path)
    panels = axes_of(figure, "mine")
    for ax, values in zip(panels, arrays.values(), strict=True):
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), values)
        assert ax.get_yscale() == "linear"
    assert ["no number" in [t.get_text() for t in ax.texts] for ax in panels] == [False, False, True, False, False]
    assert "Mine: profile" in texts(figure)


def test_matrices_at_the_first_and_the_last_epoch(tmp_path):
    names = ["input", "net.stem", "net.head"]
    for epoch in (1, 4, 9):
        matrix = np.eye(3) * epoch - 2.0
        write(tmp_path, "feature_similarity", epoch, {"/cka": matrix}, {"/cka": names})
    figure = drawn(tmp_path)
    first, last = axes_of(figure, "feature_similarity")
    np.testing.assert_array_equal(first.images[0].get_array(), np.eye(3) - 2.0)
    np.testing.assert_array_equal(last.images[0].get_array(), np.eye(3) * 9 - 2.0)
    assert (first.images[0].get_clim(), last.images[0].get_clim()) == ((-2.0, 1.0), (-2.0, 7.0))
    assert [label.get_text() for label in first.get_yticklabels()] == ["input", "stem", "head"]
    assert {"epoch 1", "epoch 9"} < set(texts(figure))
    assert "Similarity of the representations of all stages (debiased linear CKA)" in texts(figure)


def test_similarities_are_shown_in_the_order_of_their_clustering(tmp_path):
    blocks = np.repeat([0, 1, 2], [5, 9, 6])
    mixed = np.random.default_rng(0).permutation(20)
    similar = np.where(blocks[:, None] == blocks, 0.9, 0.1)[np.ix_(mixed, mixed)]
    np.fill_diagonal(similar, 1.0)
    unknown = np.where(np.eye(20) > 0, np.nan, similar)
    write(tmp_path, "gram_spectrum", 1, {"a/similarity": similar, "b/similarity": unknown, "c/other": similar})
    figure = drawn(tmp_path)
    clustered, as_it_is, other = axes_of(figure, "gram_spectrum")
    shown = clustered.images[0].get_array()
    order = clustered_order(similar)
    np.testing.assert_array_equal(shown, similar[np.ix_(order, order)])
    assert (np.abs(np.diff(shown, axis=0)) > 0.5).sum() < (np.abs(np.diff(similar, axis=0)) > 0.5).sum() / 2
    np.testing.assert_array_equal(as_it_is.images[0].get_array().filled(np.nan), unknown)
    np.testing.assert_array_equal(other.images[0].get_array(), similar)
    assert "Cosine similarity of features, samples in the order of a clustering (gram_spectrum)" in texts(figure)


def test_more_matrices_than_the_page_is_wide(tmp_path):
    names = [f"{LONG}{place}" for place in range(30)]
    for epoch in (1, 2):
        arrays = {f"layer{i}/m": np.full((30, 30), np.nan if i == 0 else 0.0) for i in range(21)}
        write(tmp_path, "mine", epoch, arrays, dict.fromkeys(arrays, names))
        write(tmp_path, "plain", epoch, {f"{LONG}{i}/m": np.ones((300, 2)) for i in range(3)})
    figure = drawn(tmp_path)
    assert {"Mine: m (1 of 21 layers)", "Plain: m (2 of 3 layers)"} < set(texts(figure))
    assert (len(axes_of(figure, "mine")), len(axes_of(figure, "plain"))) == (2, 4)
    labels = [label.get_text() for label in axes_of(figure, "mine")[0].get_yticklabels()]
    assert len(set(labels)) == len(labels) <= 24


def test_rows_of_images(tmp_path):
    layers = [f"net.stage{i}" for i in range(13)]
    arrays = {f"{name}/images": np.full((40, 2, 3), epoch) for epoch, name in enumerate(layers)}
    arrays |= {f"{LONG}/images": np.full((2, 4, 4), np.nan), "none/images": np.zeros((0, 4, 4))}
    write(tmp_path, "activation_images", 1, arrays)
    write(tmp_path, "activation_images", 5, arrays, {"net.stage0/images": [f"n{i}" for i in range(40)]})
    figure = drawn(tmp_path)
    title = "Activations: the top singular vector across channels (12 of 15 layers) (16 of 40 images), epoch 5"
    assert title in texts(figure)
    assert {"n0", "n39", "stage0"} < set(texts(figure)) | {"stage0"}
    assert "none" in texts(figure)  # its row is there, and empty
    (ax,) = axes_of(figure, "activation_images")
    first = [image for image in ax.images if image.get_extent()[3] < 1]
    assert len(first) == 16
    assert (first[-1].get_array() == 0).all()
    assert (
        len(ax.images) == 10 * 16 + 1
    )  # of the twelve layers one has two images, the first of which is shown, one none


def test_the_second_probe_of_a_class_has_its_own_row_and_name(tmp_path):
    for probe in ("spectrum", "gram_spectrum"):
        write(tmp_path, probe, 1, {"net/spectrum": np.ones(3)})
    write(tmp_path, "mine", 1, {"net/number": np.array(3.0)})  # no axes: nothing to draw
    plain = "Spectrum, divided by its largest value"
    assert [t for t in texts(drawn(tmp_path)) if t.startswith(("Spec", "Mine"))] == [f"{plain} (gram_spectrum)", plain]


def test_a_picture_of_its_own_and_the_report(tmp_path):
    for epoch in (1, 2, 3):
        write(tmp_path, "feature_similarity", epoch, {"/cka": np.eye(3)}, {"/cka": ["a", "b", "c"]})
        write(tmp_path, "spectrum", epoch, {"net/spectrum": np.ones(3)})
    written = draw_pictures(read_arrays(tmp_path), DECLARED, tmp_path / "some.png")
    assert written.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "some.png"}
    rows = "".join(f"{epoch},feature_similarity,net.{layer},input,0.5\n" for epoch in (1, 2) for layer in "ab")
    (tmp_path / "readings.csv").write_text("epoch,probe,layer,key,value\n" + rows)
    write_declarations(tmp_path, DECLARED)
    said = texts(draw(tmp_path))
    assert "Spectrum, divided by its largest value" in said
    assert {"epoch 1", "epoch 2"} < set(said)
    assert "epoch 3" not in said  # that look has no readings yet
    shutil.rmtree(tmp_path / "pictures")
    assert "Spectrum, divided by its largest value" not in texts(draw(tmp_path))
