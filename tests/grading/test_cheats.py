"""Cheating submissions earn nothing, stop nothing and leave nothing; elsewhere some would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hidden import cheats
from hidden.cheats import CELLS, CONTENTS, NAMES, RIGHT, cell, notebook
from test_command import HIDDEN, MARKER, grade, hand_in, run, scores

from segcourse.grading.judge import Judge
from segcourse.grading.sandbox import Bubblewrap, Limits, Piped

pytestmark = pytest.mark.usefixtures("bubblewrap")

LIMITS = Limits(memory=1 << 30, seconds=10)


def tree(folder):
    """All that a folder holds, with sizes and times."""
    return {
        os.path.join(above, name): os.lstat(os.path.join(above, name))[6:9:2]
        for above, folders, files in os.walk(folder)
        for name in folders + files
    }


def test_the_corpus_is_as_large_as_it_should_be(tmp_path):
    cheats.write(tmp_path)
    assert len(CELLS) + len(NAMES) + len(CONTENTS) > 70
    found = {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.ipynb" for name in CELLS} < found


def test_the_selftest_grades_the_corpus_and_nothing_is_left(tmp_path):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    places = [ROOT / "segcourse", ROOT / "tests", "/dev/shm"]
    before = [tree(place) for place in places]
    # More at a time than processors, since many of them hang.
    limits = ("--timeout", 40, "--memory", 1024, "--jobs", 3)
    found = run("selftest", "--hidden", HIDDEN, *limits, TMPDIR=str(temporary))
    assert found.returncode == 0, found.stdout
    assert "[FAIL]" not in found.stdout
    assert "cheating submissions earned nothing" in found.stdout.splitlines()[-1]
    for name in ("boundary_loss", "tta_predict", "dense_crf"):
        assert f"[OK] {name}: the reference has 20 of 20 points" in found.stdout
    assert list(temporary.iterdir()) == []
    for folder in ("/tmp", "/var/tmp", "/", "/usr/lib", "/scratch", "/course"):
        for name in ("surprise", "left-behind", "mark", "filled-0"):
            assert not Path(folder, name).exists()
    assert [tree(place) for place in places] == before


def test_the_selftest_fails_where_a_cheat_is_paid(tmp_path):
    hidden = tmp_path / "hidden"
    (hidden / "boundary_loss").mkdir(parents=True)
    for name in ("draw.py", "boundary_loss/suite.py", "boundary_loss/reference.py"):
        (hidden / name).write_text((HIDDEN / name).read_text())
    book = notebook(f"{MARKER}{RIGHT}")
    (hidden / "cheats.py").write_text(
        f"def write(folder):\n    (folder / 'thief.ipynb').write_bytes({book!r})\n"
    )
    found = run("selftest", "--hidden", hidden, "--jobs", 1)
    assert found.returncode == 1
    assert "[FAIL] the submission 'thief' earned 20 points by cheating" in found.stdout


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """Right answers among cheats, one after the other, and names and words that do harm."""
    texts = {name[:99]: cell(CELLS["writes to the terminal"]) for name in NAMES}
    cheats = ("kills its parents", "leaves a mark", "leaves processes", "fork bomb")
    texts |= {f"{n} {name}": cell(CELLS[name]) for n, name in enumerate(cheats)}
    texts |= {f"{n} right": RIGHT for n in range(4)} | {"x": CELLS["looks for a mark"]}
    texts |= {name: cell(CELLS[name]) for name in CELLS if name.startswith(("tells ", "forges "))}
    place = tmp_path_factory.mktemp("cheats")
    folder, out = hand_in(place / "in", **texts), place / "out"
    return texts, out, grade(folder, out, "--timeout", 4)


def test_cheats_do_not_change_what_others_get(graded):
    texts, out, found = graded
    assert found.returncode == 0, found.stderr
    points = {name: int(row["total"]) for name, row in scores(out).items()}
    assert len(points) == len(texts) and sorted(points.values())[-5:] == [0, 20, 20, 20, 20]
    assert all(points[f"{n} right"] == 20 for n in range(4))


def test_no_words_of_a_submission_reach_a_reader_as_commands(graded):
    _, out, found = graded
    for text in (found.stdout, (out / "scores.csv").read_text()):
        assert not set("\x1b\x07\u202e") & set(text)
    pages = [path for path in (out / "feedback").iterdir() if "owned" in path.read_text()]
    assert len(pages) == 2 * len(NAMES)
    for path in pages:
        text = path.read_text()
        assert "\x1b" not in text
        assert not re.search(r"(?<!\\)<(script|img)", text)  # escaped in Markdown, absent in HTML


def test_what_a_function_says_of_hidden_inputs_is_not_handed_back(graded):
    _, out, _ = graded
    for path in (out / "feedback").iterdir():
        text = path.read_text()
        assert "SECRET" not in text and "54321" not in text
        assert text.count("full marks") <= 5 * 20
    result = out / "results" / "tells the inputs in an exception.json"
    assert "SECRET" in result.read_text()  # the instructor may know


# Without the walls

IN_ONE_PROCESS = """
import sys
from hidden import draw
from segcourse.exercises.boundary_loss import CONTRACT
from segcourse.exercises.contract import LocalCall
space = {}
exec(sys.argv[1], space)
passed = {}
for item, tests in draw.tests("boundary_loss", b"0" * 16).items():
    try:
        for test in tests:
            test(LocalCall(space["boundary_loss"]))
        passed[item] = True
    except BaseException:
        pass
    if CONTRACT.score(passed):
        break
print(CONTRACT.score(passed))
"""


@pytest.mark.parametrize(
    "name",
    ["patches torch.allclose", "walks the stack", "walks the garbage", "imports the hidden tests"],
)
def test_the_attack_works_where_tests_and_answer_share_a_process(name):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    found = subprocess.run(
        [sys.executable, "-c", IN_ONE_PROCESS, cell(CELLS[name])],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert int(found.stdout) > 0, found.stderr


def points(box, text):
    try:
        found = Judge(HIDDEN, b"0" * 16, 60, box).grade({"a.ipynb": notebook(MARKER + text)})
    finally:
        box.close()
    return found["boundary_loss"]["points"]


def test_a_thief_of_files_needs_no_more_than_the_sandbox_to_be_missing():
    text = f"import sys\nmore = sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    text += CELLS["imports the hidden tests"]
    assert points(Piped("none", LIMITS), text) == 20
    assert points(Bubblewrap(LIMITS), text) == 0


def test_a_mark_would_be_found_where_it_is_left(tmp_path):
    """The looking cheat sees what the leaving one leaves, if they share a process's place."""
    both = CELLS["leaves a mark"] + CELLS["looks for a mark"]
    assert points(Bubblewrap(LIMITS), both) == 20
