"""Colab, emulated: one notebook alone in an empty folder, in a Python that lacks the package."""

import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from address import address, files
from conftest import ROOT
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """This very tree, uncommitted work included, as a commit that pip can clone."""
    repo = tmp_path_factory.mktemp("checkout")
    for path in files():
        copy = repo / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "this tree"]):
        subprocess.run(["git", *command], cwd=repo, check=True)
    return repo


@pytest.fixture
def python(tmp_path):
    """A fresh environment that sees torch and Jupyter, as Colab's does, but not segcourse."""
    venv.create(tmp_path / "venv", symlinks=True)
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "segcourse" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (site / "colab.pth").write_text(f"{packages}\n")
    return tmp_path / "venv" / "bin" / "python"


def test_a_notebook_alone_installs_the_course_and_runs(
    name, notebook, checkout, python, tmp_path, monkeypatch
):
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(
        f'{{"argv": {argv}, "display_name": "x", "language": "python"}}'.replace("'", '"')
    )
    environment = {
        "JUPYTER_PATH": str(tmp_path / "jupyter"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{checkout}/.git.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{address()}.git",
        "PIP_NO_BUILD_ISOLATION": "0",  # means: no isolation, so that nothing is downloaded
        "SEGCOURSE_PRESET": "smoke",
    }
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    empty = tmp_path / "content"
    empty.mkdir()
    notebook.cells.append(new_code_cell("import segcourse; print(segcourse.__file__)"))
    NotebookClient(notebook, timeout=300).execute(cwd=str(empty))
    where = Path(notebook.cells[-1].outputs[0].text.strip())
    assert python.parents[1] in where.parents
