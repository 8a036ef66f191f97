"""What tests of different kinds share: the notebooks, their executed copies, the built book, and
whether an answer fails a hidden test."""

from pathlib import Path

import hypothesis
import nbformat
import pytest
import torchvision_shim  # noqa: F401  before any library that imports torchvision

from segcourse.exercises.contract import AnswerError, LocalCall

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


def fails(function, tests):
    """Does an answer to a graded exercise fail a test? The first failure is enough."""
    for test in tests:
        try:
            test(LocalCall(function))
        except (AssertionError, AnswerError):
            return True
    return False


@pytest.fixture(params=NOTEBOOKS)
def name(request):
    """The name of each notebook in turn."""
    return request.param


@pytest.fixture
def notebook(name):
    """A notebook as it is committed."""
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


@pytest.fixture
def executed(name):
    """The same notebook with the outputs that the book shows."""
    path = built(ROOT / "_build" / "source" / "notebooks" / f"{name}.ipynb")
    return nbformat.read(path, as_version=4)


@pytest.fixture(scope="session")
def html():
    """The folder of the built book."""
    built(ROOT / "_build" / "html" / "index.html")
    return ROOT / "_build" / "html"
