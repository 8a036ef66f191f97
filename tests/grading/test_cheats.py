"""Cheating submissions earn nothing, stop nothing and leave nothing; elsewhere some would."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from hidden import cheats
from hidden.cheats import CELLS, CONTENTS, NAMES, RIGHT, cell, notebook
from test_command import HIDDEN, MARKER, grade, hand_in, run, scores

from segcourse.grading.judge import Judge
from segcourse.grading.sandbox import Bubblewrap, Limits, Piped

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
    limits = ("--timeout", 6, "--memory", 1024)
    found = run("selftest", "--hidden", HIDDEN, *limits, TMPDIR=str(temporary))
    assert found.returncode == 0, found.stdout
    assert "[FAIL]" not in found.stdout
    assert "cheating submissions earned nothing" in found.stdout.splitlines()[-1]
    for name in ("boundary_loss", "tta_predict", "dense_crf"):
        assert f"[OK] {name}: the reference has 20 of 20 points" in found.stdout
    assert list(temporary.iterdir()) == []
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
    found = run("selftest", "--hidden", hidden)
    assert found.returncode == 1
    assert "[FAIL] the submission 'thief' earned 20 points by cheating" in found.stdout


def test_cheats_do_not_change_what_others_get(tmp_path):
    """A right answer before, between and after those that attack the grader."""
    names = ("kills its parents", "leaves a mark", "leaves processes", "fork bomb")
    texts = {f"{n} {name}": cell(CELLS[name]) for n, name in enumerate(names)}
    texts |= {f"{n} right": RIGHT for n in range(4)} | {"x mark": CELLS["looks for a mark"]}
    folder, out = hand_in(tmp_path / "in", **texts), tmp_path / "out"
    found = grade(folder, out, "--jobs", 1, "--timeout", 30)
    assert found.returncode == 0, found.stderr
    points = {name: int(row["total"]) for name, row in scores(out).items()}
    assert points == {name: 20 if "right" in name else 0 for name in texts}


def test_no_words_of_a_submission_reach_the_terminal_as_commands(tmp_path):
    texts = {f"{name[:99]}": cell(CELLS["writes to the terminal"]) for name in NAMES}
    texts["says"] = cell(CELLS["writes to the terminal"])
    folder, out = hand_in(tmp_path / "in", **texts), tmp_path / "out"
    found = grade(folder, out)
    assert found.returncode == 0 and len(scores(out)) == len(texts)
    for text in (found.stdout, (out / "scores.csv").read_text()):
        assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    for page in (out / "feedback").iterdir():
        text = page.read_text()
        assert "\x1b" not in text and "<script" not in text and "<img" not in text
        assert "owned" in text


def test_what_a_function_says_of_hidden_inputs_is_not_handed_back(tmp_path):
    names = ("tells the inputs in an exception", "tells the inputs by the name of an exception")
    folder = hand_in(tmp_path / "in", a=cell(CELLS[names[0]]), b=cell(CELLS[names[1]]))
    assert grade(folder, tmp_path / "out").returncode == 0
    for page in (tmp_path / "out" / "feedback").iterdir():
        assert "SECRET" not in page.read_text()
    assert "SECRET" in (tmp_path / "out" / "results" / "a.json").read_text()  # the instructor may


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


def test_json_of_a_result_is_what_the_grader_found_and_not_what_a_student_said(tmp_path):
    folder = hand_in(tmp_path / "in", a=cell(CELLS["forges answers ahead"]))
    assert grade(folder, tmp_path / "out").returncode == 0
    found = json.loads((tmp_path / "out" / "results" / "a.json").read_text())
    assert found["exercises"]["boundary_loss"]["points"] == 0
