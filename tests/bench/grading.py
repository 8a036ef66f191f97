"""The grader's time for a submission, and 300 submissions with a kill in the middle.

What is graded is exercise 1, with all its hidden tests. Where `nbgrader` is in PATH, it grades the
same, with the tests in the notebook. It may have an environment of its own: the notebooks run with
this Python.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.timing import record
from hidden.cheats import RIGHT, WRONG, notebook

from segcourse import experiments, plots, results
from segcourse.exercises.boundary_loss import CONTRACT

HIDDEN = Path(__file__).resolve().parents[1] / "hidden"
SECRET = "0" * 32
STUB = "def boundary_loss(*args, **options):\n    raise NotImplementedError"
MANY = 300


def hand_in(folder: Path, count: int, answers: list[str]) -> Path:
    """A folder of notebooks with these answers in turn."""
    folder.mkdir(parents=True)
    for n in range(count):
        text = f"# exercise: boundary_loss\n{answers[n % len(answers)]}"
        (folder / f"student-{n:03}.ipynb").write_bytes(notebook(text))
    return folder


def command(folder: Path, out: Path) -> list[str]:
    secret = folder.parent / "secret"
    secret.write_text(SECRET)
    options = {"hidden": HIDDEN, "out": out, "secret-file": secret, "jobs": 1}
    more = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "segcourse", "grade", str(folder), *more]


def seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def quietly(*arguments: str, **options: object) -> None:
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, **options)


def own(out: Path) -> float:
    """Seconds that the students' functions took, in the mean."""
    found = [json.loads(path.read_text()) for path in (out / "results").glob("*.json")]
    return sum(e["seconds"] for r in found for e in r["exercises"].values()) / len(found)


def kill_and_resume(folder: Path, out: Path) -> int:
    """Kill the grader when it has half of the results, run it again; how many it had."""
    process = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL)
    while len(list((out / "results").glob("*.json"))) < MANY // 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    had = len(list((out / "results").glob("*.json")))
    quietly(*command(folder, out))
    return had


def nbgrader(place: Path, count: int) -> float:
    """Seconds in which nbgrader grades this many right answers and writes the feedback."""
    kernel = place / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))
    course = place / "course"
    (course / "source" / "ps1").mkdir(parents=True)
    (course / "nbgrader_config.py").write_text("get_config().CourseDirectory.course_id = 'x'\n")
    (course / "source" / "ps1" / "p1.ipynb").write_text(json.dumps(assignment()))
    environment = os.environ | {"JUPYTER_PATH": str(place / "jupyter")}

    def run(step: str) -> None:
        quietly("nbgrader", step, "ps1", cwd=course, env=environment, stderr=subprocess.DEVNULL)

    run("generate_assignment")
    released = json.loads((course / "release" / "ps1" / "p1.ipynb").read_text())
    (answer,) = [c for c in released["cells"] if c["metadata"]["nbgrader"]["solution"]]
    answer["source"] = RIGHT
    for n in range(count):
        folder = course / "submitted" / f"student-{n:03}" / "ps1"
        folder.mkdir(parents=True)
        (folder / "p1.ipynb").write_text(json.dumps(released))
    taken = seconds(lambda: [run("autograde"), run("generate_feedback")])
    pages = list((course / "feedback").glob("*/ps1/p1.html"))
    if len(pages) != count:
        raise RuntimeError(f"nbgrader graded {len(pages)} of {count}")
    return taken


def assignment() -> dict:
    """Exercise 1 as a notebook of nbgrader: a cell for each property, with its hidden tests."""
    setup = f"import sys\nsys.path[:0] = {[str(HIDDEN.parent), str(HIDDEN.parents[1])]!r}"
    tests = (
        "from hidden import draw\nfrom segcourse.exercises.contract import LocalCall\n"
        f"for test in draw.tests('boundary_loss', {SECRET.encode()!r})[{{!r}}]:\n"
        "    test(LocalCall(boundary_loss))"
    )
    answer = f"### BEGIN SOLUTION\n{STUB}\n### END SOLUTION"
    cells = [cell("setup", setup, locked=True), cell("answer", answer, solution=True)]
    for n, item in enumerate(CONTRACT.properties):
        facts = {"grade": True, "points": item.points or 0, "locked": True}
        cells.append(cell(f"test-{n}", tests.format(item.name), **facts))
    metadata = {"kernelspec": {"name": "python3", "display_name": "x", "language": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def cell(name: str, source: str, **facts: object) -> dict:
    """A code cell of an nbgrader assignment."""
    usual = {"grade": False, "solution": False, "locked": False, "task": False}
    metadata = {"nbgrader": usual | facts | {"grade_id": name, "schema_version": 3}}
    code = {"cell_type": "code", "id": name, "execution_count": None, "outputs": []}
    return code | {"source": source, "metadata": metadata}


def timed(place: Path, count: int, answers: list[str]) -> tuple[Path, Path, list[float]]:
    """Folders with submissions and with what came out, and a row of the table."""
    folder, out = hand_in(place / str(count) / "in", count, answers), place / str(count) / "out"
    taken = seconds(lambda: quietly(*command(folder, out), stderr=subprocess.DEVNULL))
    return folder, out, [count, taken, taken / count, own(out)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        one, fifty = (timed(place, count, [RIGHT])[2] for count in (1, 50))
        if shutil.which("nbgrader"):
            theirs = nbgrader(place / "nbgrader", 5) / 5
            print(f"nbgrader: {theirs:.1f} s each, ours over theirs {fifty[2] / theirs:.3f}\n")
            record("grading", fifty[2] / theirs, [fifty[2]])
        else:
            print("nbgrader is not installed: nothing to compare with\n")

        inbox, whole, many = timed(place, MANY, [RIGHT, WRONG, RIGHT, STUB])
        columns = ["submissions", "seconds", "seconds each", "of which the student's"]
        print(plots.table([one, fifty, many], columns, digits=2, caption="Exercise 1, one job"))
        name, taken = f"bench grading {MANY} submissions", many[1]
        results.write([experiments.make_record(name, "seconds", [taken], 0, [taken])])

        resumed = place / "resumed"
        had = kill_and_resume(inbox, resumed)
        if (whole / "scores.csv").read_text() != (resumed / "scores.csv").read_text():
            raise SystemExit("the scores of a resumed run differ")
        print(f"\nKilled after {had} of {MANY}, then run again: the same scores")


if __name__ == "__main__":
    main()
