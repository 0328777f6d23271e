"""Pages that several files of tests read and leave as they are."""

from pathlib import Path

import pytest

from lightning_depth.figures.report import draw
from tests.figures.runs import RESNET18, RESNET50, STAGES, SUMMARY, Drawn, run_of, with_data, words


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    directory = run_of(tmp_path_factory.mktemp("resnet18"))
    return Drawn(directory, draw(directory, SUMMARY), RESNET18)


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    directory = run_of(tmp_path_factory.mktemp("resnet50"), RESNET50)
    return Drawn(directory, draw(directory, SUMMARY), RESNET50)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of every panel, six layers and two epochs."""
    return run_of(tmp_path_factory.mktemp("tiny"), STAGES, epochs=2)


@pytest.fixture(scope="module")
def validated_words(tiny: Path) -> str:
    """The words of a run that was validated on training images and does not know its classes."""
    return words(draw(tiny, with_data(validation="a tenth of the training images", num_classes=None)))
