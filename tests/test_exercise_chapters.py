"""The chapters of the graded exercises: empty of answers, and alive with one in place."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from address import files
from bs4 import BeautifulSoup
from conftest import ROOT, committed, in_the_book, right_answer

CHAPTERS = {
    "boundary_loss": "07_boundary_loss",
    "tta_predict": "08_multi_scale_tta",
    "dense_crf": "09_crf",
}
HIDDEN = ROOT / "tests" / "hidden"
CANARY = re.search(rb"# canary: (\S+)", (HIDDEN / "draw.py").read_bytes())[1]

each_chapter = pytest.mark.parametrize("name", CHAPTERS)


def answer_cell(notebook, name):
    """The one cell whose first line is the marker that the grader looks for."""
    (cell,) = [c for c in notebook.cells if c.source.startswith(f"# exercise: {name}\n")]
    return cell


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def printed(notebook):
    return "".join(output.get("text", "") for output in outputs(notebook))


def figures(notebook):
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


@each_chapter
def test_the_stub_has_the_signature_of_the_contract(name):
    source = answer_cell(committed(CHAPTERS[name]), name).source
    assert re.search(r"raise NotImplementedError\s*\Z", source)
    namespace = {}
    exec(f"from __future__ import annotations\n{source}", namespace)
    functions = namespace[name], right_answer(name)
    pairs = [inspect.signature(f).parameters.values() for f in functions]
    stub, wanted = ([(p.name, p.kind, p.default) for p in each] for each in pairs)
    assert stub == wanted


@each_chapter
def test_with_the_stub_the_page_is_full(name):
    """It says that nothing was attempted, and shows figures and numbers all the same."""
    page = in_the_book(CHAPTERS[name])
    assert f"{name}: not attempted yet\n" in printed(page)
    assert "What follows was recorded with a right answer." in printed(page)
    assert "[x]" not in printed(page) and "[ ]" not in printed(page)
    assert figures(page) >= 5


@each_chapter
def test_the_page_shows_the_points_as_a_table(name, html):
    path = html / "notebooks" / f"{CHAPTERS[name]}.html"
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    rows = {tuple(td.get_text() for td in tr.select("td")) for tr in page.select("table tr")}
    contract = importlib.import_module(f"segcourse.exercises.{name}").CONTRACT
    for item in contract.properties:
        assert (item.name, "needed" if item.points is None else str(item.points)) in rows


@pytest.mark.slow
@each_chapter
def test_with_a_right_answer_the_chapter_runs_and_every_check_passes(name, execute):
    notebook = committed(CHAPTERS[name])
    source = (HIDDEN / name / "reference.py").read_text()
    answer_cell(notebook, name).source = f"# exercise: {name}\n{source}"
    execute(notebook)
    text = printed(notebook)
    assert f"{name}: public checks passed" in text
    assert "What follows was recorded" not in text
    assert f"{name}: not attempted yet" not in text and "OUTSIDE" not in text
    assert figures(notebook) == figures(in_the_book(CHAPTERS[name]))


def test_every_hidden_file_carries_the_canary():
    paths = [p for p in HIDDEN.rglob("*.py") if p.read_bytes().strip()]
    assert len(paths) >= 14
    assert [p.name for p in paths if CANARY not in p.read_bytes()] == []


def test_nothing_hidden_is_in_the_notebooks_or_the_package():
    for folder in ("notebooks", "segcourse", "book"):
        found = [p for p in (ROOT / folder).rglob("*") if p.is_file() and CANARY in p.read_bytes()]
        assert found == []


def test_nothing_hidden_is_in_the_book(html):
    pages = [path for path in html.rglob("*") if path.is_file()]
    assert any("_sources" in path.parts and path.suffix == ".ipynb" for path in pages)
    assert [path for path in pages if CANARY in path.read_bytes()] == []


def test_nothing_hidden_is_in_wheel_and_sdist(tmp_path):
    tree = tmp_path / "tree"
    for path in files():
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    for kind in ("sdist", "wheel"):
        build = f"from setuptools import build_meta; build_meta.build_{kind}({str(tmp_path)!r})"
        command = [sys.executable, "-c", build]
        subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        held = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}
    with zipfile.ZipFile(wheel) as archive:
        held |= {n: archive.read(n) for n in archive.namelist()}
    assert any(name.endswith("exercises/dense_crf.py") for name in held)
    assert [name for name, content in held.items() if CANARY in content] == []
    assert [name for name in held if "hidden" in name and name.endswith("reference.py")] == []


@pytest.mark.parametrize("place", ["notebooks/x.ipynb", "segcourse/x.py"])
def test_the_search_would_find_a_leak(tmp_path, place):
    leak = tmp_path / place
    leak.parent.mkdir()
    leak.write_bytes((HIDDEN / "draw.py").read_bytes())
    assert [p for p in tmp_path.rglob("*") if p.is_file() and CANARY in p.read_bytes()] == [leak]


@each_chapter
def test_no_name_of_the_package_is_a_solution(name):
    """`boundary_loss`, `tta_predict` and `dense_crf` name functions that only students write."""
    for path in (ROOT / "segcourse").rglob("*.py"):
        assert f"def {name}(" not in path.read_text(encoding="utf-8"), path
