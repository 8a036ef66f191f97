"""The command line, run as an instructor and a student run it."""

import csv
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, committed
from hidden.cheats import CELLS, RIGHT, WRONG, cell, notebook

from segcourse.grading import command, sandbox

HIDDEN = ROOT / "tests" / "hidden"
MARKER = "# exercise: boundary_loss\n"
pytestmark = pytest.mark.usefixtures("bubblewrap")

STUB = "def boundary_loss(*args, **options):\n    raise NotImplementedError"
LEARN_OF_ORPHANS = 36  # prctl: processes whose parent has ended become ours


def run(*arguments, **options):
    """The command's status, output and errors; no process of it may be left."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    assert wait_for_orphans() == []
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def start(*arguments, **environment):
    ctypes.CDLL(None).prctl(LEARN_OF_ORPHANS, 1, 0, 0, 0)
    return subprocess.Popen(
        [sys.executable, "-m", "segcourse", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


def wait_for_orphans(seconds=10):
    """Processes that are still there after some seconds."""
    deadline = time.monotonic() + seconds
    while True:
        left = []
        for path in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
            for number in path.read_text().split():
                try:
                    os.waitpid(int(number), os.WNOHANG)
                    left.append(Path(f"/proc/{number}/cmdline").read_bytes()[:200])
                except (ChildProcessError, FileNotFoundError):
                    pass
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def below(process):
    """The numbers of all processes that a process has started, and they in turn."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [n for child in children for n in (int(child), *below(child))]


def wait_for_a_student(grader):
    """The number of the judge in whose sandbox a student's code has begun to run."""
    deadline = time.monotonic() + 60
    seen = set()
    while time.monotonic() < deadline:
        for judge in below(grader):
            # The two of bubblewrap, the supervisor, and the student's, which stays.
            if len(found := below(judge)) == 4 and seen & {found[-1]}:
                return judge
            seen |= set(found[3:])
        time.sleep(0.3)
    raise AssertionError("no student's code has begun to run")


def grade(folder, out, *more, jobs=1, **environment):
    options = ("--hidden", HIDDEN, "--out", out, "--jobs", jobs)
    return run("grade", folder, *options, *more, **environment)


def scores(out):
    with open(out / "scores.csv", newline="") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


def hand_in(folder, **cells):
    folder.mkdir(parents=True, exist_ok=True)
    for student, text in cells.items():
        (folder / f"{student}.ipynb").write_bytes(notebook(MARKER + text))
    return folder


def done(out):
    """When each result was written."""
    return {path.stem: path.stat().st_mtime_ns for path in (out / "results").glob("*.json")}


# verify


def test_a_student_sees_the_public_checks(tmp_path):
    book = committed("07_boundary_loss")
    (stub,) = [c for c in book.cells if c.source.startswith(MARKER)]
    stub.source = MARKER + RIGHT
    file = tmp_path / "mine.ipynb"
    file.write_text(json.dumps(book))
    found = run("verify", file)
    assert found.returncode == 0 and found.stderr == ""
    assert "[x] any mask: passed" in found.stdout
    assert "boundary_loss: public checks passed" in found.stdout
    assert "tests passed" not in found.stdout
    assert found.stdout.endswith("The grader tests the same properties on other inputs.\n")


def test_a_student_sees_what_is_wrong_with_each_exercise_of_a_notebook(tmp_path):
    file = tmp_path / "mine.ipynb"
    file.write_bytes(
        notebook(
            "import nowhere",
            MARKER + "def boundary_loss(pred, target, **options):\n    return nowhere.loss(pred)",
            "# exercise: tta_predict\ndef tta_predict(*args):\n    raise NotImplementedError",
            "# exercise: dense_crf\ndef dense_crf(image:",
        )
    )
    found = run("verify", file)
    assert found.returncode == 1
    for words in (
        "while loading, mine.ipynb, cell 1, line 1: ModuleNotFoundError: No module named",
        "NameError: name 'nowhere' is not defined",
        "line 3 of boundary_loss: return nowhere.loss(pred)",
        "boundary_loss: 0 of 23 passed",
        "tta_predict: not attempted yet",
        "dense_crf: the grader cannot load it",
        "mine.ipynb, cell 4, line 2: SyntaxError",
    ):
        assert words in found.stdout, found.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"{", "no whole notebook"),
        (notebook("x = 1"), "no cell with one of"),
    ],
)
def test_verify_says_why_it_cannot(tmp_path, capsys, content, words):
    file = tmp_path / "mine.ipynb"
    if content is not None:
        file.write_bytes(content)
    assert command.main(["verify", str(file)]) == 2
    assert words in capsys.readouterr().err


# grade


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A folder of submissions that was graded."""
    place = tmp_path_factory.mktemp("graded")
    folder = hand_in(place / "in", anna=RIGHT, ben=STUB, carl=cell(WRONG))
    (folder / "dora" / "ps1").mkdir(parents=True)
    for name in ("boundary_loss", "tta_predict", "dense_crf"):
        source = (HIDDEN / name / "reference.py").read_text()
        book = notebook("import math", f"# exercise: {name}\n{source}")
        (folder / "dora" / "ps1" / f"{name}.ipynb").write_bytes(book)
    (folder / "emil.ipynb").write_bytes(b'{"cells"')
    (folder / "essay.pdf").write_bytes(b"x")
    return folder, place / "out", grade(folder, place / "out")


def test_scores_feedback_and_results_are_written(graded):
    folder, out, found = graded
    assert found.returncode == 0, found.stderr
    rows = scores(out)
    assert [rows[name]["boundary_loss"] for name in sorted(rows)] == ["20", "0", "0", "20", "0"]
    assert rows["dora"]["total"] == "60" and rows["anna"]["total"] == "20"
    assert {row["isolation"] for row in rows.values()} == {"bubblewrap"}
    assert "NotImplementedError" in rows["ben"]["remarks"]
    assert "no whole notebook" in rows["emil"]["remarks"]
    names = {"anna", "ben", "carl", "dora", "emil"}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert files == {"scores.csv", "secret"} | {
        f"{part}/{name}.{end}"
        for name in names
        for part, end in (("feedback", "md"), ("feedback", "html"), ("results", "json"))
    }
    assert (out / "secret").stat().st_mode & 0o77 == 0


def test_the_instructor_reads_what_was_done(graded):
    _, out, found = graded
    for words in (
        "Students: 5, 5 to grade",
        "Passed over, no notebooks: essay.pdf",
        "Sandbox: bubblewrap",
        "Graded 5 in",
        str(out / "scores.csv"),
    ):
        assert words in found.stdout, found.stdout
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("  boundary_loss")]
    assert line.split() == ["boundary_loss", "8.0", "20", "2", "3", "1"]
    assert "Traceback" not in found.stderr


def test_a_student_reads_what_failed_and_nothing_hidden(graded):
    _, out, _ = graded
    text = (out / "feedback" / "carl.md").read_text()
    assert "No points, since these are needed for any" in text
    assert "any mask" in text and "tensor(" not in text and "the numbers differ" not in text
    assert "the numbers differ" in (out / "results" / "carl.json").read_text()


def test_a_second_run_grades_only_what_changed(graded, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(graded[0], folder)
    shutil.copytree(graded[1], out)
    before = done(out)
    found = grade(folder, out)
    assert "Students: 5, 0 to grade, the others unchanged" in found.stdout
    assert done(out) == before
    hand_in(folder, ben=RIGHT, fred=STUB)
    (folder / "carl.ipynb").unlink()
    (out / "results" / "dora.json").write_text('{"half')
    found = grade(folder, out)
    assert "Students: 5, 3 to grade, the others unchanged" in found.stdout
    after = done(out)
    assert {name for name in after if after[name] != before.get(name)} == {"ben", "dora", "fred"}
    rows = scores(out)
    assert set(rows) == {"anna", "ben", "dora", "emil", "fred"}
    assert rows["ben"]["total"] == "20" and rows["dora"]["total"] == "60"
    # Other hidden inputs are another grading.
    secret = tmp_path / "another"
    secret.write_text("s" * 20)
    for name in ("anna.ipynb", "ben.ipynb", "dora"):
        (folder / name).rename(tmp_path / name)
    found = grade(folder, out, "--secret-file", secret)
    assert "Students: 2, 2 to grade" in found.stdout


def test_after_a_kill_the_second_run_ends_as_if_nothing_had_happened(tmp_path):
    texts = (RIGHT, STUB, cell(WRONG), cell(CELLS["exits when called"]))
    cells = {f"s{n:02}": texts[n % 4] for n in range(12)}
    folder = hand_in(tmp_path / "in", **cells)
    secret = tmp_path / "secret"
    secret.write_text("k" * 32)
    more = ("--secret-file", secret)
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert grade(folder, whole, *more, jobs=2).returncode == 0

    process = start("grade", folder, "--hidden", HIDDEN, "--out", out, *more, "--jobs", 2)
    while len(done(out)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert wait_for_orphans() == []
    first = done(out)
    assert 3 <= len(first) < 12
    assert json.loads((out / "results" / f"{min(first)}.json").read_text())["student"] == min(
        first
    )

    found = grade(folder, out, *more)
    assert f"Students: 12, {12 - len(first)} to grade" in found.stdout
    assert {name: done(out)[name] for name in first} == first
    assert (out / "scores.csv").read_text() == (whole / "scores.csv").read_text()
    assert not list(out.rglob("*.part"))


def test_ctrl_c_ends_a_run_with_a_word(tmp_path):
    folder = hand_in(tmp_path / "in", a=cell(CELLS["sleeps"]), b=cell(CELLS["sleeps"]))
    process = start("grade", folder, "--hidden", HIDDEN, "--out", tmp_path / "out", "--jobs", 1)
    wait_for_a_student(process.pid)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "The same command goes on from here." in err
    assert "Traceback" not in err and wait_for_orphans() == []


def test_a_judge_that_is_killed_is_replaced(tmp_path):
    """The kernel may kill it where memory is short: its student is graded by another."""
    slow = RIGHT + "\nimport time\nwaited = time.sleep(2)"
    folder = hand_in(tmp_path / "in", a=slow)
    process = start("grade", folder, "--hidden", HIDDEN, "--out", tmp_path / "out", "--jobs", 1)
    os.kill(wait_for_a_student(process.pid), signal.SIGKILL)
    assert process.communicate(timeout=120) and process.returncode == 0
    assert scores(tmp_path / "out")["a"]["total"] == "20"
    assert wait_for_orphans() == []


# What it refuses


def refused(capsys, *arguments):
    assert command.main(["grade", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_grade_says_what_is_wrong_with_its_arguments(tmp_path, capsys):
    folder = hand_in(tmp_path / "in", anna=STUB)
    hidden = ("--hidden", HIDDEN)
    out = ("--out", tmp_path / "out")
    assert "is no folder" in refused(capsys, tmp_path / "nowhere", *hidden, *out)
    assert "outside SUBMISSIONS" in refused(capsys, folder, *hidden, "--out", folder / "out")
    (tmp_path / "empty").mkdir()
    assert "no notebook and no folder" in refused(capsys, tmp_path / "empty", *hidden, *out)
    assert "no draw.py" in refused(capsys, folder, "--hidden", tmp_path, *out)
    short = tmp_path / "short"
    short.write_text("abc")
    assert "at least 16 bytes" in refused(capsys, folder, *hidden, *out, "--secret-file", short)
    missing = ("--secret-file", tmp_path / "nowhere")
    assert "No such file" in refused(capsys, folder, *hidden, *out, *missing)
    with pytest.raises(SystemExit):
        command.main(["grade", str(folder), *map(str, hidden), *map(str, out), "--jobs", "0"])
    assert "expected at least 1; got 0" in capsys.readouterr().err


def test_private_folders_among_the_libraries_are_refused(tmp_path, capsys, monkeypatch):
    folder = hand_in(tmp_path / "in", anna=STUB)
    monkeypatch.setattr(sandbox, "_shown", lambda: [tmp_path])
    monkeypatch.setattr(sandbox, "find", lambda: "bubblewrap")
    error = refused(capsys, folder, "--hidden", HIDDEN, "--out", tmp_path / "out")
    assert f"{folder} lies in {tmp_path}, which students' code may read: move it" in error


@pytest.fixture
def no_sandbox(tmp_path):
    """An environment in which no sandbox works."""
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin")}


def test_without_a_sandbox_nothing_is_run(tmp_path, no_sandbox):
    folder = hand_in(tmp_path / "in", anna=f"ran = open({str(tmp_path / 'ran')!r}, 'w')\n{STUB}")
    found = grade(folder, tmp_path / "out", **no_sandbox)
    assert found.returncode == 2
    assert "bubblewrap: not installed" in found.stderr
    assert "docker: not installed" in found.stderr
    assert "--i-trust-every-submission" in found.stderr
    assert not (tmp_path / "ran").exists()


def test_told_so_in_words_it_runs_without_one_and_says_so(tmp_path, no_sandbox):
    folder = hand_in(tmp_path / "in", anna=RIGHT)
    found = grade(folder, tmp_path / "out", "--i-trust-every-submission", **no_sandbox)
    assert found.returncode == 0, found.stderr
    assert "Sandbox: none: students' code has all your rights, as you asked" in found.stdout
    row = scores(tmp_path / "out")["anna"]
    assert (row["total"], row["isolation"]) == ("20", "none")


def test_the_command_and_the_module_are_the_same():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'segcourse = "segcourse.grading.command:main"' in text
    found = run("--version")
    assert found.returncode == 0 and found.stdout.strip()
    found = run("--help")
    assert all(word in found.stdout for word in ("verify", "grade", "selftest"))
