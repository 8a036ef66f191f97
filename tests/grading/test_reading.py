"""Submissions as students hand them in: whatever surrounds it, the function is found and runs."""

import json
import os
import re
import subprocess

import pytest
import torch
from conftest import ROOT, committed
from hidden.cheats import notebook

from segcourse.exercises.contract import LocalCall
from segcourse.exercises.dense_crf import PUBLIC
from segcourse.grading import submissions
from segcourse.grading.notebook import NotebookError, load, marked, read

MARKER = "# exercise: double"
DOUBLE = f"{MARKER}\ndef double(x):\n    return 2 * x"


def loaded(*cells, exercise="double"):
    return load({"a.ipynb": notebook(*cells)}, exercise, {})


def raw(*cells, **more):
    """A notebook with these cells as they are."""
    return json.dumps({"cells": list(cells), **more}).encode()


# The marker


@pytest.mark.parametrize(
    "cell",
    [
        DOUBLE,
        f"\n\n  {MARKER}  \ndef double(x):\n    return 2 * x",
        f"# @title My answer\n{DOUBLE}",
        "#exercise:double\ndef double(x):\n    return 2 * x",
        f"%%time\n{DOUBLE}",
        f"%matplotlib inline\n!pip list\n{DOUBLE}\ndouble?",
        f"if True:\n    %pip install x\n{DOUBLE}",
        f"files = !ls\n{DOUBLE}",
        DOUBLE.replace("\n", "\r\n"),
        f"from __future__ import annotations\n{DOUBLE.replace('(x)', '(x: Unknown)')}",
        DOUBLE.replace("(x)", "(x: Unknown) -> Unknown"),
        "import functools\n" + DOUBLE.replace("def", "@functools.lru_cache\ndef"),
        f"{MARKER}\ndouble = lambda x: 2 * x",
        f"{DOUBLE}\ncheck('double', double)\nprint(double(undefined))",
        "def double(x):\n    return 2 * x",  # the marker was deleted
    ],
)
def test_the_function_is_found(cell):
    found = loaded("print('before')", cell, "print('after')")
    assert found.function(3) == 6 and found.remarks == ()


@pytest.mark.parametrize(
    "data",
    [
        raw({"cell_type": "code", "source": [line + "\n" for line in DOUBLE.splitlines()]}),
        raw(*[{"cell_type": "code", "id": "same", "source": s} for s in ("a = 1", DOUBLE)]),
        raw({"cell_type": "code", "source": DOUBLE, "outputs": None, "metadata": None}),
        raw({"cell_type": "markdown", "source": DOUBLE}, {"cell_type": "code", "source": DOUBLE}),
        raw({"cell_type": "code", "source": DOUBLE, "metadata": {"id": "Xy", "colab": {}}}),
        raw(None, {}, {"cell_type": "code"}, {"cell_type": "code", "source": DOUBLE}),
        b"\xef\xbb\xbf" + notebook(DOUBLE),
        raw({"cell_type": "code", "source": DOUBLE}, nbformat=3, metadata={"accelerator": "GPU"}),
    ],
)
def test_what_editors_and_colab_do_to_a_notebook_does_no_harm(data):
    assert load({"a.ipynb": data}, "double", {}).function(3) == 6


def test_of_several_cells_with_the_marker_the_last_definition_counts():
    assert loaded(DOUBLE.replace("2", "3"), DOUBLE).function(3) == 6


def test_of_several_notebooks_the_last_by_name_counts():
    books = {"a.ipynb": notebook(DOUBLE), "a-1.ipynb": notebook(DOUBLE.replace("2", "3"))}
    found = load(books, "double", {})
    assert (found.function(3), found.notebook) == (9, "a-1.ipynb")
    found = load(books | {"b.ipynb": notebook("x = 1"), "c.ipynb": b"{"}, "double", {})
    assert found.notebook == "a-1.ipynb"


# What other cells give


@pytest.mark.parametrize(
    "others",
    [
        [
            "import math",
            "def twice(x):\n    return factor() * x",
            "def factor(): return math.floor(2.5)",
        ],
        ["from math import *", "def twice(x):\n    return floor(2.5) * x"],
        [
            "class Twice:\n    n = 2\n    def __call__(self, x):\n        return self.n * x",
            "twice = Twice()",
        ],
        ["table = [1, 1]\ntable[0] = 2", "table[0] *= 1", "twice = lambda x: table[0] * x"],
        ["def twice(x):\n    return 5 * x", "def twice(x):\n    return 2 * x"],
        [
            "try:\n    import nowhere\nexcept ImportError:\n    nowhere = None",
            "twice = lambda x: x * (1 if nowhere else 2)",
        ],
        ["with open('/dev/null'):\n    n = 2", "twice = lambda x: n * x"],
        ["%%bash\nls -l", "<not python>", "twice = lambda x: 2 * x", "def half("],
        [
            "import numpy as np, torch",
            "def twice(x):\n    return int(np.add(x, x)) + int(torch.zeros(()))",
        ],
    ],
)
def test_the_answer_may_use_what_other_cells_define(others):
    cell = f"{MARKER}\ndef double(x):\n    return twice(x)"
    for cells in ([*others, cell], [cell, *others]):
        found = loaded(*cells)
        assert found.function(3) == 6 and found.remarks == ()


def test_nothing_else_is_run(tmp_path, capsys):
    file = tmp_path / "written"
    found = loaded(
        "print('a figure')",
        f"trained = open({str(file)!r}, 'w').write('x')",
        "def fit():\n    raise RuntimeError",
        "model = fit()",
        DOUBLE,
        "for step in range(1 << 60): loss = step",
    )
    assert found.function(3) == 6 and found.remarks == ()
    assert not file.exists() and capsys.readouterr().out == ""


def test_a_statement_that_fails_is_a_remark_and_the_rest_is_tried():
    found = loaded(
        "import math\nimport nowhere\nhalf = 1 / 2",
        f"{MARKER}\ndef double(x):\n    return math.floor(x / half) if x else nowhere\nz = 1 / 0",
    )
    assert found.function(3) == 6
    assert found.remarks == (
        "a.ipynb, cell 1, line 2: ModuleNotFoundError: No module named 'nowhere'",
        "a.ipynb, cell 2, line 4: ZeroDivisionError: division by zero",
    )


# Faults


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (f"{MARKER}\ndef double(x:\n    return x", "a.ipynb, cell 2, line 2: SyntaxError"),
        (f"{MARKER}\ndef double(x):\nreturn x", "a.ipynb, cell 2, line 3: IndentationError"),
        (
            f"{MARKER}\ndef duoble(x):\n    return x",
            "a.ipynb: the cell with the marker defines no",
        ),
        (f"{MARKER}\ndouble = 3", "defines no double"),
        (f"{MARKER}\nimport nowhere\ndouble = nowhere.f", "line 2: ModuleNotFoundError"),
        (f"{MARKER}\nraise SystemExit(3)", "line 2: SystemExit: 3"),
        (f"{MARKER}\nx = {'(' * 5000}", "cell 2"),
        (f"{MARKER}\nx = '\x00'", "cell 2"),
    ],
)
def test_a_fault_is_named(cell, reason):
    with pytest.raises(NotebookError, match=re.escape(reason)) as error:
        loaded("import math", cell)
    assert error.value.tried


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no whole notebook: JSON ends in line 1"),
        (notebook(DOUBLE)[:-5], "no whole notebook"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"[]", "no list of cells"),
        (b'{"cells": 3}', "no list of cells"),
        (b"[" * 200_000, "no notebook"),
        (b'{"cells": [' + b"1" * 5000 + b"]}", "no notebook"),
    ],
)
def test_what_is_no_notebook_is_a_fault(data, reason):
    with pytest.raises(NotebookError, match=reason):
        load({"a.ipynb": data}, "double", {})


def test_an_exercise_that_was_not_handed_in_is_no_fault():
    with pytest.raises(NotebookError, match="no cell with the line `# exercise: double`") as error:
        loaded("x = 1")
    assert not error.value.tried


# The chapters

ANSWERS = {
    "unary": "return -probs.flatten(1).T.clamp(1e-5).log()",
    "features": """rows, columns = torch.meshgrid(
        torch.arange(image.shape[0]), torch.arange(image.shape[1]), indexing="ij")
    places = torch.stack([columns, rows], -1).view(-1, 2) / sxy
    if srgb is None:
        return places
    return torch.cat([places, image.reshape(-1, 3) / srgb], 1)""",
    "message": """norm = gaussian_filter(
        features, torch.ones(len(features), 1), method="exact").rsqrt()
    return norm * gaussian_filter(features, norm * q, method="exact")""",
    "updated": "return (message - unary).softmax(1)",
    "dense_crf": """if image.dtype != torch.uint8:
        raise TypeError
    u = unary(probs)
    q = (-u).softmax(1)
    near, alike = features(image, sg), features(image, sxy, srgb)
    for _ in range(iters):
        q = updated(u, w_bilateral * message(alike, q) + w_gauss * message(near, q))
    return q.T.reshape(probs.shape)""",
}


def test_a_chapter_that_was_solved_in_small_steps_is_loaded_with_all_of_them():
    book = committed("09_crf")
    for cell in book.cells:
        for name, answer in ANSWERS.items():
            if cell.cell_type == "code" and f"def {name}(" in cell.source:
                cell.source = cell.source.replace("raise NotImplementedError", answer, 1)
    found = load({"09_crf.ipynb": json.dumps(book).encode()}, "dense_crf", {})
    assert found.remarks == ()
    for test in PUBLIC.values():
        test(LocalCall(found.function))


@pytest.mark.parametrize("chapter", submissions.CHAPTERS)
def test_the_chapters_that_submissions_are_named_after_have_one_marked_cell(chapter):
    cells = read((ROOT / "notebooks" / f"{chapter}.ipynb").read_bytes())
    names = ("boundary_loss", "tta_predict", "dense_crf")
    assert [len(marked(cells, name)) for name in names].count(1) == 1


# Folders of submissions


def test_students_of_a_flat_folder_and_of_folders(tmp_path):
    for name in (
        "anna.ipynb",
        "ben_07_boundary_loss.ipynb",
        "ben-09_crf (2).ipynb",
        "dora_1_12.ipynb",
        "carl/ps1/07_boundary_loss.ipynb",
        "carl/ps1/.ipynb_checkpoints/07_boundary_loss-checkpoint.ipynb",
        "carl/ps2/09_crf.ipynb",
        "emil/essay.pdf",
        "notes.txt",
        ".DS_Store",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(notebook(DOUBLE))
    found, others = submissions.find(tmp_path)
    for student in found:
        student.read()
    assert {s.student: sorted(s.notebooks) for s in found} == {
        "anna": ["anna.ipynb"],
        "ben": ["ben-09_crf (2).ipynb", "ben_07_boundary_loss.ipynb"],
        "carl": ["carl/ps1/07_boundary_loss.ipynb", "carl/ps2/09_crf.ipynb"],
        "dora_1_12": ["dora_1_12.ipynb"],
        "emil": [],
    }
    assert all(s.key == s.student and s.faults == [] for s in found)
    assert others == ["notes.txt"]


def test_links_pipes_and_giants_are_faults_and_are_not_read(tmp_path):
    secret = tmp_path / "secret.ipynb"
    secret.write_bytes(notebook(DOUBLE))
    folder = tmp_path / "in"
    (folder / "anna").mkdir(parents=True)
    (folder / "link.ipynb").symlink_to(secret)
    (folder / "link to folder").symlink_to(tmp_path)
    (folder / "anna" / "inner.ipynb").symlink_to(secret)
    (folder / "anna" / "folder").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.ipynb")
    with open(folder / "giant.ipynb", "wb") as file:
        file.truncate(1 << 40)
    (folder / "many").mkdir()
    for n in range(25):
        (folder / "many" / f"{n}.ipynb").write_bytes(notebook(DOUBLE))
    found, _ = submissions.find(folder)
    for student in found:
        student.read()
    faults = {s.student: s.faults for s in found}
    assert faults["link"] == ["link.ipynb was not read: it is a symbolic link"]
    assert faults["link to folder"] == ["link to folder was not read: it is a symbolic link"]
    assert faults["anna"] == ["anna/inner.ipynb was not read: it is a symbolic link"]
    assert faults["pipe"] == ["pipe.ipynb was not read: it is no file"]
    assert "larger than 50 MB" in faults["giant"][0]
    assert faults["many"] == ["only the first 20 notebooks were read"]
    assert sum(len(s.notebooks) for s in found) == 20


def test_a_folder_may_be_deeper_than_python_recurses_or_closed(tmp_path):
    deep = tmp_path / "in" / "deep"
    deep.mkdir(parents=True)
    for _ in range(1500):
        deep /= "a"
        deep.mkdir()
    (deep / "a.ipynb").write_bytes(notebook(DOUBLE))
    (tmp_path / "in" / "anna").mkdir()
    (student, other), _ = submissions.find(tmp_path / "in")
    assert other.key == "deep" and [path.name for path in other.paths] == ["a.ipynb"]
    subprocess.run(["rm", "-r", tmp_path / "in" / "deep"], check=True)
    (tmp_path / "in" / "anna").rmdir()  # as if it could not be read: root reads all
    assert submissions._notebooks(tmp_path / "in" / "anna") == [tmp_path / "in" / "anna"]
    student.paths = [tmp_path / "in"]
    student.read()
    assert student.faults == [". was not read: Is a directory"]


def test_each_student_has_files_of_its_own_whatever_the_name(tmp_path):
    names = [
        "=1+1",
        "-rf",
        "a\x1b[31mb",
        "a b",
        "a\nb",
        "a..",
        "con",
        "Aux.x",
        "x" * 240,
        "x" * 240 + "y",
    ]
    names += ["Anna", "anna", "ä", os.fsdecode(b"\xff"), "<b>", "`|`"]
    for name in names:
        (tmp_path / f"{name}.ipynb").write_bytes(notebook(DOUBLE))
    found, _ = submissions.find(tmp_path)
    assert len(found) == len(names)
    assert len({s.student for s in found}) == len(names)
    keys = [s.key for s in found]
    assert len({key.casefold() for key in keys}) == len(names)
    assert not {"con", "aux.x"} & {key.casefold() for key in keys}
    for key in keys:
        assert re.fullmatch(r"[\w(@][\w .@+()-]{0,120}", key) and not key.endswith("."), key


def test_a_change_changes_the_digest(tmp_path):
    def digest():
        (student,), _ = submissions.find(tmp_path)
        student.read()
        return student.digest()

    folder = tmp_path / "anna"
    folder.mkdir()
    (folder / "a.ipynb").write_bytes(b"1")
    found = [digest(), digest()]
    (folder / "a.ipynb").write_bytes(b"2")
    found.append(digest())
    (folder / "a.ipynb").rename(folder / "b.ipynb")
    found.append(digest())
    (folder / "c.ipynb").symlink_to(folder / "b.ipynb")
    found.append(digest())
    assert found[0] == found[1] and len(set(found)) == 4


def test_parts_of_a_digest_do_not_run_together():
    assert submissions.digest("ab", "c") != submissions.digest("a", "bc")
    assert submissions.digest(b"a") == submissions.digest("a")


def test_the_function_gets_torch_as_it_is(tmp_path):
    found = loaded("import torch", f"{MARKER}\ndef double(x):\n    return torch.add(x, x)")
    assert torch.equal(found.function(torch.ones(2)), torch.full((2,), 2.0))
