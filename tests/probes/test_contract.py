"""A probe's name, its splits, when it looks, and what of it a page shows."""

import pickle
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import nn

from lightning_depth import results
from lightning_depth.callbacks import EffectiveRank, FeatureSimilarity, JacobianNorm, OperatorNorm, Spectrum
from lightning_depth.cli.main import main
from lightning_depth.errors import UserError
from lightning_depth.figures.report import draw
from lightning_depth.probes import AbstractProbe, ArrayKey, Key, Picture
from lightning_depth.probes.probe import check_samples, snake_case
from lightning_depth.results import Table
from lightning_depth.runs.probing import write_looks
from lightning_depth.runs.record import RunRecord
from tests.probes.foreign import Data, Foreign, convnet, loaders, readings, trainer, validated
from tests.probes.looks import PROBES
from tests.probes.test_conformance import make

# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NTKSpectrum", "ntk_spectrum"), ("CKA", "cka"), ("OperatorNorm", "operator_norm"), ("NC1ToNC4", "nc1_to_nc4")],
)
def test_the_default_name_keeps_acronyms_together(name, expected):
    assert snake_case(name) == expected


def test_a_probe_has_the_name_that_it_is_given():
    probe = OperatorNorm(name="norms-1.0")
    fit = trainer([probe, OperatorNorm()], max_epochs=1)
    fit.fit(convnet(), *loaders())
    assert {r.probe for r in probe.readings} == {"norms-1.0"}
    assert "norms-1.0/model.3/norm" in fit.callback_metrics
    assert "operator_norm/model.3/norm" in fit.callback_metrics
    for bad in ("", "a/b", "..", "a b"):
        with pytest.raises(UserError, match=r"OperatorNorm: name .* must be one word"):
            OperatorNorm(name=bad)


def test_two_probes_of_one_name_are_refused_with_a_word_on_how_to_name_them():
    for two in ([Spectrum(), Spectrum(of="gram")], [EffectiveRank(), OperatorNorm(name="effective_rank")]):
        with pytest.raises(UserError, match=r"Two probes are called (\w+): .*\nGive .* name: \1_2") as error:
            trainer(two).fit(convnet(), *loaders())
        assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize("name", ["train", "val", "test", "train_eval", "epoch"])
def test_a_probe_may_not_be_called_as_metrics_are(name):
    said = rf"A probe is called {name}: .*\nGive it another name, .*: operator_norm\."
    with pytest.raises(UserError, match=said) as error:
        trainer([OperatorNorm(name=name)]).fit(convnet(), *loaders())
    assert len(str(error.value).splitlines()) == 2


def test_metrics_under_the_name_of_a_probe_stay_in_the_table(tmp_path):
    class Mine(Foreign):
        def validation_step(self, batch, batch_idx):
            self.log("spectral/gap", 1.0)

    record = RunRecord(tmp_path, {}, {})
    fit = trainer([OperatorNorm(name="spectral", every=2)], max_epochs=3)
    fit.callbacks.append(record)
    fit.fit(Mine(convnet().model), *loaders())
    rows = record.metrics.rows()
    assert [row["spectral/gap"] for row in rows] == ["1.0"] * 3
    assert rows[0].keys() == {"epoch", "spectral/gap", "lr", "seconds"}


# --- what it yields ---------------------------------------------------------------------------------------------------


class Yields(AbstractProbe):
    """Yields what it is given."""

    def __init__(self, *values):
        super().__init__()
        self.values = values

    def measure(self, look):
        yield from self.values


def test_numbers_of_any_kind_come_back_from_the_table_as_numbers(tmp_path):
    kinds = [3, True, np.float32(0.5), np.int64(7), np.bool_(True), torch.tensor(3.0), torch.tensor([2]), np.array(4.0)]
    kinds += [torch.tensor(1.5, dtype=torch.bfloat16), Fraction(1, 4)]
    probe, table = Yields(*(("a,b", f"k{i}", kind, kind) for i, kind in enumerate(kinds))), tmp_path / "readings.csv"
    validated(convnet(), probe)
    write_looks(tmp_path, Table(table, results.Reading._fields), [probe], 0)
    assert results.read_readings(tmp_path) == probe.readings
    expected = [float(kind) for kind in kinds]
    assert [(r.value, r.at) for r in probe.readings[:-1]] == list(zip(expected, expected, strict=True))
    assert {type(number) for r in probe.readings for number in (r.value, r.at)} == {float, type(None)}


BAD = [None, "3", b"3", 1j, np.complex64(1), torch.tensor(1j), torch.ones(2), np.ones(2), [1.0]]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_what_is_no_number_is_refused_by_name(bad):
    with pytest.raises(UserError, match=r"yields: size of fc must be a number, not ") as error:
        validated(convnet(), Yields(("fc", "size", bad)))
    assert len(str(error.value).splitlines()) == 1
    if bad is not None:  # no place
        with pytest.raises(UserError, match=r"yields: `at` of size of the network must be a number"):
            validated(convnet(), Yields(("", "size", 1.0, bad)))


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "\0", "\x1b[0m", "\x85", "\udc80", None, 3], ids=ascii)
def test_names_that_no_table_holds_are_refused_at_the_yield(bad):
    for values in ((bad, "size", 1.0), ("fc", bad, 1.0)):
        with pytest.raises(UserError, match=r"yields: a layer's name or a key must be one line of text") as error:
            validated(convnet(), Yields(values))
        assert len(str(error.value).splitlines()) == 1


CONFIG = """
seed_everything: 0
model: {class_path: lightning_depth.models.ResNet, init_args: {depth: 10, width: 2}}
data: {class_path: lightning_depth.data.EmbeddedDigits, init_args: {samples_per_class: 5}}
trainer: {accelerator: cpu, max_epochs: 1, callbacks: %s}
"""
REFUSED = {
    "[{class_path: OperatorNorm}, {class_path: OperatorNorm}]": "Two probes are called operator_norm: ",
    "[{class_path: EffectiveRank, init_args: {split: held_out}}]": "held_out is called val now.",
}


@pytest.mark.parametrize("probes", REFUSED)
def test_yaml_of_before_is_refused_in_two_lines(tmp_path, probes, monkeypatch, capsys):
    (tmp_path / "mine.yaml").write_text(CONFIG % probes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["main.py"])
    assert main(["fit", "--config", "mine.yaml"]) == 2
    error = capsys.readouterr().err
    said = error[error.index("error: ") :].splitlines()
    assert len(said) <= 2
    assert REFUSED[probes] in "\n".join(said)


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", [EffectiveRank, JacobianNorm, FeatureSimilarity])
def test_splits_are_train_and_val(probe):
    with pytest.raises(UserError, match=f"{probe.__name__}: split must be train or val, not test: "):
        probe(split="test")
    with pytest.raises(UserError, match=f"{probe.__name__}: .*, not held_out: it is called val now"):
        check_samples(probe(), "held_out", None)


def test_states_are_told_apart_by_name_and_by_every_argument():
    keys = [
        EffectiveRank().state_key,
        EffectiveRank(split="train").state_key,
        EffectiveRank(samples=3).state_key,
        EffectiveRank(name="other").state_key,
        Spectrum(samples=3).state_key,
        Spectrum().state_key,
    ]
    assert len(set(keys)) == len(keys)


# --- when -------------------------------------------------------------------------------------------------------------


class Tested(Data):
    """Data whose test split is other data than its validation split."""

    def test_dataloader(self):
        return loaders(train=48, held_out=23)[1]


class Testable(Foreign):
    def test_step(self, batch, batch_idx):
        self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


def data():
    return Tested(*loaders())


NOT_OF_DATA = ("OperatorNorm", "Spectrum", "WeightDistance", "LinearOperator", "IdentityConstant")


@pytest.mark.parametrize("probe", [p for p in PROBES if p.__name__ not in NOT_OF_DATA], ids=lambda p: p.__name__)
def test_a_test_shows_the_test_split_and_a_validation_the_validation_split(probe):
    def looked(action, module, loader):
        made = make(probe)
        getattr(trainer([made]), action)(module, datamodule=loader, verbose=False)
        assert not any(m._forward_hooks for m in module.modules())
        return {key: value for key, value in readings(made).items() if "seconds" not in key}

    module = Testable(convnet().model)
    tested = looked("test", module, data())
    swapped = Data(loaders()[0], data().test_dataloader())
    assert tested == looked("validate", module, swapped)
    assert len(tested) > 0
    assert tested != looked("validate", module, data())  # the control: they are not the same samples


@pytest.mark.parametrize("probe", [OperatorNorm, Spectrum])
def test_weights_are_read_in_a_test_too(probe):
    found = []
    for action in ("test", "validate"):
        made = probe()
        getattr(trainer([made]), action)(Testable(convnet().model), datamodule=data(), verbose=False)
        found.append({key: value for key, value in readings(made).items() if "seconds" not in key})
    assert found[0] == found[1]
    assert len(found[0]) > 3


def test_what_is_seen_in_a_test_is_called_test():
    seen = []

    class Splits(AbstractProbe):
        train_samples = 5

        def select(self, look):
            return look.calls[:1]

        def observe(self, given):
            seen.append((given.split, len(given.inputs)))

        def measure(self, look):
            seen.append(look.split)
            return []

    trainer([Splits()]).test(Testable(convnet().model), datamodule=data(), verbose=False)
    assert seen == [("train", 5), ("test", 16), ("test", 7), "test"]


@pytest.mark.parametrize("samples", [3, 23, 40])
def test_a_choice_of_samples_of_the_test_split(samples):
    counted = []

    class Rows(AbstractProbe):
        def select(self, look):
            return look.calls[:1]

        def observe(self, given):
            counted.append(len(given.inputs))

        def measure(self, look):
            return []

    probe = Rows()
    probe.watch("val", samples)
    trainer([probe]).test(Testable(convnet().model), datamodule=data(), verbose=False)
    assert sum(counted) == min(samples, 23)


def test_predicting_says_once_that_no_probe_looks():
    probe = OperatorNorm()
    predict = trainer([probe]).predict
    with pytest.warns(UserWarning, match="OperatorNorm: probes look in fit, validate and test; in predict"):
        predict(Testable(convnet().model), loaders()[1])
    with warnings.catch_warnings(record=True) as again:
        warnings.simplefilter("always")
        predict(Testable(convnet().model), loaders()[1])
    assert not [w for w in again if "in predict" in str(w.message)]
    assert probe.readings == []


def test_samples_with_random_transforms_are_drawn_once():
    """The loader's data set gives other noise each time; a probe sees the same samples at each look."""

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 20

        def __getitem__(self, index):
            return torch.randn(3, 8, 8), index % 4

    seen = []

    class Keeps(AbstractProbe):
        def measure(self, look):
            seen.append(look.samples("train", 4)[0])
            return []

    noisy = torch.utils.data.DataLoader(Noisy(), 10)
    trainer([Keeps()], max_epochs=3).fit(convnet(), noisy, loaders()[1])
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_a_probe_can_be_pickled_after_a_look():
    probe = make(EffectiveRank)
    validated(convnet(), probe)
    assert readings(pickle.loads(pickle.dumps(probe))) == readings(probe)


# --- a probe is one file, one line, one test --------------------------------------------------------------------------


class NTKEcho(AbstractProbe):
    """Two keys, one of them on an axis of its own, and an array."""

    keys = (
        Key("gain", title="Gain of each layer (%)", title_one="Gain of {layer} (%)", unit="gain (%)", factor=100.0),
        Key("echo", title="Echo against delay", unit="share of power", rows="delay", at="tau", chance=0.25),
        Key("hidden"),
    )
    arrays = (ArrayKey("trace", "The echo of each layer"),)

    def measure(self, look):
        for number, call in enumerate(look.calls[1:4]):
            yield call.name, "hidden", 1.0
            yield call.name, "gain", number / 10
        for tau in (0.5, 1.0, 2.0) if self.name == "ntk_echo" else ():
            yield "", "echo", 1 / (1 + tau), tau

    def draw(self):
        yield Picture("model.0", "trace", torch.linspace(1, 2, 5))


@pytest.fixture
def echoed(tmp_path):
    """A directory with two looks of the probe above, and of another one under a name of its own."""
    table = Table(tmp_path / "readings.csv", results.Reading._fields)
    probes = [NTKEcho(), NTKEcho(name="late")]
    fit = trainer(probes, max_epochs=2)
    for epoch in (1, 2):
        fit.fit_loop.max_epochs = epoch
        fit.fit(convnet(), *loaders())
        for probe in probes:
            probe.readings = [reading._replace(epoch=epoch) for reading in probe.readings]
        write_looks(tmp_path, table, probes, epoch)
    return tmp_path


def test_a_probe_from_outside_has_its_own_titles_units_and_axis_on_the_page(echoed):
    figure = draw(echoed, {})
    gain, echo = [ax for ax in figure.axes if ax.get_label() == "ntk_echo" and ax.images]
    assert gain.get_title(loc="left") == "Gain of each layer (%) (ntk_echo)"
    np.testing.assert_allclose(gain.images[0].get_array(), [[0, 0], [10, 10], [20, 20]])
    assert echo.get_title(loc="left") == "Echo against delay"  # the other one reads no echo
    assert [label.get_text() for label in echo.get_yticklabels()] == ["tau=0.5", "tau=1", "tau=2"]
    assert echo.get_ylabel() == "delay"
    bars = [ax for ax in figure.axes if ax.get_label() == "ntk_echo colours"]
    assert [bar.get_ylabel() for bar in bars] == ["gain (%)", "share of power"]
    assert "0.25\nchance" in [label.get_text() for label in bars[1].get_yticklabels()]
    titles = {text.get_text() for text in figure.findobj(Text)}
    assert {"The echo of each layer", "The echo of each layer (late)", "Gain of each layer (%) (late)"} < titles
    assert not any("hidden" in title for title in titles)


def test_what_it_read_is_tidy(echoed):
    read = results.read_readings(echoed)
    assert {(r.layer, r.at) for r in read if r.key == "echo"} == {("", 0.5), ("", 1.0), ("", 2.0)}
    assert {r.at for r in read if r.key != "echo"} == {None}


def test_its_readings_are_logged_under_their_place():
    fit = trainer([NTKEcho()], max_epochs=1)
    fit.fit(convnet(), *loaders())
    assert float(fit.callback_metrics["ntk_echo/tau=0.5/echo"]) == pytest.approx(1 / 1.5)
