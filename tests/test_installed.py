"""Installed from a wheel: the shelf is in the package, and a project's own folder `callbacks` is left alone."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a clean copy: a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tar = ["tar", "cf", folder / "copy.tar", "--null", "-T", "-"]
    subprocess.run(tar, cwd=ROOT, input=tracked, text=True, check=True)
    (folder / "copy").mkdir()
    subprocess.run(["tar", "xf", folder / "copy.tar", "-C", folder / "copy"], check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder, folder / "copy"], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_has_the_shelf_in_the_package_and_no_other_module(wheel):
    with ZipFile(wheel) as file:
        names = file.namelist()
    assert {top for name in names if not (top := name.split("/")[0]).endswith(".dist-info")} == {"lightning_depth"}
    ours = {f"lightning_depth/callbacks/{path.name}" for path in (ROOT / "callbacks").glob("*.py*")}
    assert ours <= set(names)
    assert "lightning_depth/models/__init__.pyi" in names


def test_a_project_with_a_folder_callbacks_of_its_own_is_not_disturbed(wheel, tmp_path):
    site, project = tmp_path / "site", tmp_path / "project"
    with ZipFile(wheel) as file:
        file.extractall(site)
    (project / "callbacks").mkdir(parents=True)
    (project / "callbacks" / "__init__.py").write_text("mine = True\n")
    code = (
        "import lightning_depth\nfrom lightning_depth import plugins\n"
        "from lightning_depth.callbacks import OperatorNorm\n"
        "assert 'OperatorNorm' in plugins.built_in(); import sys; assert 'callbacks' not in sys.modules\n"
        "import callbacks; assert callbacks.mine; print(lightning_depth.__file__)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert Path(ended.stdout.strip()).is_relative_to(site)


def test_the_commit_of_somebody_elses_checkout_is_not_ours(wheel, tmp_path):
    site = tmp_path / "site"
    with ZipFile(wheel) as file:
        file.extractall(site)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y.z"]

    def commit():
        code = "from lightning_depth.runs.provenance import git_commit; print(git_commit())"
        environment = {**os.environ, "PYTHONPATH": str(site)}
        shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True)
        return shown.stdout.decode().strip()

    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    assert commit() == "None"
    for words in (["add", "-f", "site"], ["commit", "-q", "-m", "ours among theirs"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    assert len(commit().removesuffix("+changes")) == 40
