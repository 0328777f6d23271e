"""Which configs are those of one run: an argument that came later, at its default, makes no difference."""

import copy

import pytest
import yaml

from lightning_depth.config.resolve import resolve
from lightning_depth.results import read_config
from lightning_depth.runs.differences import differences

CONFIG = {
    "model": {"class_path": "lightning_depth.models.MLP", "init_args": {"depth": 2}},
    "data": {"class_path": "lightning_depth.data.EmbeddedDigits"},
    "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "EffectiveRank"}, {"class_path": "OperatorNorm"}]},
}


@pytest.fixture
def new(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(CONFIG))
    return resolve("fit", ["--config", str(tmp_path / "a.yaml")]).values


def without(config, *path):
    """The config of a run from before there was this argument."""
    old = copy.deepcopy(config)
    tree = old
    for part in path[:-1]:
        tree = tree[part]
    del tree[path[-1]]
    return old


@pytest.mark.parametrize(
    ("path", "other"),
    [
        (("model", "init_args", "width"), 7),
        (("model", "init_args", "activation"), "tanh"),
        (("data", "init_args", "batch_size"), 3),
        (("trainer", "gradient_clip_val"), 1.0),
        (("trainer", "callbacks", 1, "init_args", "rtol"), 0.1),
        (("model", "init_args", "optimizer"), "torch.optim.Adam"),
        (("goals", "judge"), "current"),
        (("goals", "every"), 3),
    ],
)
def test_an_argument_that_came_later_counts_only_where_it_is_not_at_its_default(new, path, other):
    old = without(new, *path)
    assert differences(old, new) == []
    tree = new
    for part in path[:-1]:
        tree = tree[part]
    tree[path[-1]] = other
    assert [key for key, *_ in differences(old, new)] == [".".join(map(str, path))]


def test_what_a_run_had_and_a_config_has_no_more_is_a_difference(new):
    assert [key for key, *_ in differences(new, without(new, "model", "init_args", "width"))]
    assert differences(new, without(new, "run")) == []  # free


def test_a_run_of_an_earlier_version_has_the_names_of_today(new, tmp_path):
    old = copy.deepcopy(new)
    del old["goals"]
    old["model"]["init_args"] |= {"stop_at_train_acc": None, "stop_at_train_loss": None, "check_every": 1}
    for callback in old["trainer"]["callbacks"]:
        callback["class_path"] = callback["class_path"].removeprefix("lightning_depth.")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert differences(read_config(tmp_path), new) == []
    for key in ("stop_at_train_acc", "stop_at_train_loss", "check_every"):  # taken out by hand
        del old["model"]["init_args"][key]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert differences(read_config(tmp_path), new) == []
    new["goals"]["train_acc"] = 1.0
    assert differences(read_config(tmp_path), new) == [("goals.train_acc", None, 1.0)]
