"""What tests of different kinds share: the notebooks, their executed copies, the built book, and
whether an answer fails a hidden test."""

import importlib
import shutil
from pathlib import Path

import hypothesis
import nbformat
import pytest
import torchvision_shim  # noqa: F401  before any library that imports torchvision
from nbclient import NotebookClient

from segcourse.exercises.contract import AnswerError, LocalCall
from segcourse.grading import sandbox

# No time limit for an example: machines that share their cores would fail at random.
hypothesis.settings.register_profile("course", deadline=None)
hypothesis.settings.load_profile("course")

ROOT = Path(__file__).resolve().parents[1]
SECRETS = [bytes([n]) * 16 for n in range(5)]  # of five graders, for the hidden tests
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def built(path):
    """A path that `make book` makes; says so where it is missing."""
    if not path.exists():
        pytest.fail(f"{path.relative_to(ROOT)} is not there: run `make book` first", pytrace=False)
    return path


def committed(name):
    """A notebook as it is committed."""
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def in_the_book(name):
    """A notebook with the outputs that the book shows."""
    path = built(ROOT / "_build" / "source" / "notebooks" / f"{name}.ipynb")
    return nbformat.read(path, as_version=4)


def right_answer(name):
    """The reference solution of a graded exercise."""
    return getattr(importlib.import_module(f"hidden.{name}.reference"), name)


def fails(function, tests):
    """Does an answer to a graded exercise fail a test? The first failure is enough."""
    for test in tests:
        try:
            test(LocalCall(function))
        except (AssertionError, AnswerError):
            return True
    return False


@pytest.fixture(scope="session")
def bubblewrap():
    """Fails, with the reason, each test of the grader where its sandbox does not run."""
    try:
        name = sandbox.find()
    except sandbox.SandboxError as error:
        name = f"no sandbox: {' '.join(str(error).split())}"
    if name != "bubblewrap":
        pytest.fail(
            f"the tests of the grader need bubblewrap (.ci/run installs it); {name}", False
        )


@pytest.fixture(params=NOTEBOOKS)
def name(request):
    """The name of each notebook in turn."""
    return request.param


@pytest.fixture
def notebook(name):
    """Each notebook in turn, as it is committed."""
    return committed(name)


@pytest.fixture
def executed(name):
    """Each notebook in turn, with the outputs that the book shows."""
    return in_the_book(name)


@pytest.fixture
def execute(monkeypatch):
    """Run a notebook in its place in memory, with the settings of `make book`."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("SEGCOURSE_PRESET", "cpu")
    return lambda notebook: NotebookClient(notebook, timeout=600).execute()


@pytest.fixture(scope="session")
def html():
    """The folder of the built book."""
    built(ROOT / "_build" / "html" / "index.html")
    return ROOT / "_build" / "html"


@pytest.fixture(scope="module")
def browser():
    """Chromium: the system's, or the one that playwright brought."""
    from playwright.sync_api import sync_playwright  # not where only the package is tested

    names = ("chromium", "chromium-browser", "google-chrome")
    system = next(filter(None, map(shutil.which, names)), None)
    # Without these it would look for updates, and say so on the console.
    quiet = (
        "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    ).split()
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=system, args=quiet)
