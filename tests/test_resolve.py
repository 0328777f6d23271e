"""Words -> config, in one process, as often as one likes."""

import os

import pytest
import yaml

from lightning_depth.config.resolve import _parsed, resolve
from lightning_depth.errors import UserError

CONFIG = {
    "seed_everything": 3,
    "model": {"class_path": "lightning_depth.models.MLP", "init_args": {"depth": 2, "width": 20}},
    "data": {"class_path": "lightning_depth.data.EmbeddedDigits", "init_args": {"batch_size": 20}},
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "callbacks": [{"class_path": "EffectiveRank"}]},
}


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return ["--config", str(path)]


def test_every_default_is_written_out(base):
    values = resolve("fit", base).values
    assert values["model"]["init_args"]["depth"] == 2
    assert values["model"]["init_args"]["loss"] == "mse"  # a default
    assert values["trainer"]["callbacks"][0]["class_path"] == "lightning_depth.callbacks.EffectiveRank"
    assert values["seed_everything"] == 3
    assert values["run"]["root"] == "runs"


def test_later_words_win_and_lists_grow(base, tmp_path):
    over = tmp_path / "over.yaml"
    over.write_text(yaml.safe_dump({"model": {"init_args": {"depth": 4, "width": 7}}}))
    config = resolve("fit", [*base, "--config", str(over), "--model.width", "9", "--trainer.callbacks+=OperatorNorm"])
    assert (config.values["model"]["init_args"]["depth"], config.values["model"]["init_args"]["width"]) == (4, 9)
    assert [c["class_path"].split(".")[-1] for c in config.values["trainer"]["callbacks"]] == [
        "EffectiveRank",
        "OperatorNorm",
    ]
    assert resolve("fit", ["--seed_everything=9", *base]).values["seed_everything"] == 3  # the file comes later


def test_what_was_given_is_known(base):
    given = resolve("fit", [*base, "--model.loss", "cross_entropy", "--run.name=x"]).given
    assert {"model.class_path", "model.depth", "model.loss", "data.batch_size", "run.name", "seed_everything"} <= given
    assert "model.optimizer" not in given


def test_a_config_is_its_own_and_the_file_is_read_again_when_it_changes(base, tmp_path):
    first = resolve("fit", base)
    first.values["model"]["init_args"]["depth"] = 99
    assert resolve("fit", base).values["model"]["init_args"]["depth"] == 2
    changed = yaml.safe_dump({**CONFIG, "seed_everything": 4})
    path = tmp_path / "base.yaml"
    path.write_text(changed)
    assert resolve("fit", base).values["seed_everything"] == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.dept", "3"], "Unknown key dept. Did you mean depth?"),
        (["--model.depth", "deep"], "model.*depth: expected int, not 'deep'"),
        (["--trainer.max_epoch", "3"], "Unknown key trainer.max_epoch. Did you mean max_epochs?"),
        (["--modle.depth", "3"], "Unknown option --modle.depth. Did you mean model?"),
        (["stray"], None),
    ],
)
def test_mistakes_are_named_without_a_process(base, words, said):
    with pytest.raises(UserError, match=said) as wrong:
        resolve("fit", [*base, *words])
    assert len(str(wrong.value).splitlines()) <= 2


def test_cells_of_a_grid_are_parsed_as_far_as_they_differ(base):
    before = _parsed.cache_info().misses
    for depth in range(2, 12):
        for seed in range(10):
            config = resolve("fit", [*base, "--model.depth", str(depth), "--seed_everything", str(seed)])
            assert (config.values["model"]["init_args"]["depth"], config.values["seed_everything"]) == (depth, seed)
    # 10 networks, 10 seeds, one trainer, one data set: each once, for a hundred cells
    assert 10 <= _parsed.cache_info().misses - before <= 10 + 10 + 1 + 1


def test_what_a_cell_does_with_its_config_is_its_own_business(base):
    resolve("fit", base).parsed["model"].model.init_args.depth = 99
    assert resolve("fit", base).parsed["model"].model.init_args.depth == 2


def test_files_named_in_values_are_read_again_and_from_where_one_is(base, tmp_path, monkeypatch):
    def network(folder, depth):
        folder.mkdir(exist_ok=True)
        (folder / "m.yaml").write_text(yaml.safe_dump({"class_path": "MLP", "init_args": {"depth": depth}}))

    def depth(*words):
        return resolve("fit", words).values["model"]["init_args"]["depth"]

    (tmp_path / "of_file.yaml").write_text("model: a/m.yaml")
    for folder, of, again in (("a", 3, 7), ("b", 4, 8)):
        network(tmp_path / folder, of)
        monkeypatch.chdir(tmp_path / folder)
        assert depth("--model", "m.yaml") == of
        assert depth("--config", "../of_file.yaml") == (of if folder == "a" else 7)
        network(tmp_path / folder, again)
        assert depth("--model", "m.yaml") == again
        assert depth("--config", "../of_file.yaml") == 7
    for folder, of in (("a", 1), ("b", 2)):
        path = tmp_path / folder / "c.yaml"
        path.write_text(yaml.safe_dump({"model": {"class_path": "MLP", "init_args": {"depth": of}}}))
        os.utime(path, (0, 0))
        monkeypatch.chdir(tmp_path / folder)
        assert depth("--config", "c.yaml") == of
