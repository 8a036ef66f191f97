"""The command line: `segcourse verify`, `segcourse grade`, `segcourse selftest`."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

import segcourse
from segcourse.grading import notebook, pool, report, sandbox, submissions
from segcourse.grading.sandbox import Limits, SandboxError
from segcourse.grading.submissions import Submission, digest


class UsageError(Exception):
    """The command cannot do what it was told; the text says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except (UsageError, SandboxError) as error:
        print(f"segcourse: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="segcourse", description="Check and grade the exercises.")
    top.add_argument("--version", action="version", version=segcourse.__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("verify", help="run the public checks on a notebook")
    command.add_argument("notebook", type=Path, metavar="NOTEBOOK")
    command.set_defaults(run=verify)

    command = commands.add_parser("grade", help="grade a folder of submissions")
    command.add_argument("submissions", type=Path, metavar="SUBMISSIONS")
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where scores and feedback go"
    )
    command.add_argument(
        "--secret-file",
        type=Path,
        metavar="F",
        help="what hidden inputs are drawn from; without it DIR/secret, made at the first run",
    )
    command.add_argument(
        "--i-trust-every-submission",
        action="store_true",
        dest="trusting",
        help="no sandbox: submissions may read, change and send whatever you can",
    )
    command.set_defaults(run=grade)
    _common(command)

    command = commands.add_parser("selftest", help="prove the sandbox and the hidden tests here")
    command.set_defaults(run=selftest, trusting=False)
    _common(command)
    return top


def _common(command: argparse.ArgumentParser) -> None:
    """The options that all grading has."""
    command.add_argument(
        "--hidden", type=Path, required=True, metavar="DIR", help="the folder of hidden tests"
    )
    command.add_argument(
        "--jobs",
        type=_at_least(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="students at the same time (%(default)s)",
    )
    command.add_argument(
        "--timeout",
        type=_at_least(1),
        default=60,
        metavar="S",
        help="seconds for the tests of an exercise, a sixth of it for one call (%(default)s)",
    )
    command.add_argument(
        "--memory",
        type=_at_least(256),
        default=2048,
        metavar="MB",
        help="that a student's function may hold (%(default)s)",
    )


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}; got {value}")
        return value

    return number


# ---------------------------------------------------------------------------------------------
# verify
# ---------------------------------------------------------------------------------------------


def verify(options: argparse.Namespace) -> int:
    """Load each exercise as the grader would, and run its public checks."""
    from segcourse.exercises import EXERCISES, public_checks  # it takes a second: torch

    path = options.notebook
    try:
        data = path.read_bytes()
        cells = notebook.read(data)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except notebook.NotebookError as error:
        raise UsageError(f"{path}: {error}") from None
    names = [name for name in EXERCISES if notebook.marked(cells, name)]
    if not names:
        markers = ", ".join(f"`# exercise: {name}`" for name in EXERCISES)
        raise UsageError(f"{path}: no cell with one of the lines {markers}")
    passed = []
    for name in names:
        try:
            loaded = notebook.load({path.name: data}, name, {"__name__": "__main__"})
        except notebook.NotebookError as error:
            print(f"{name}: the grader cannot load it\n      {error}")
            passed.append(False)
            continue
        for remark in loaded.remarks:
            print(f"{name}: while loading, {remark}")
        passed.append(public_checks(name, loaded.function))
    print("\nThe grader tests the same properties on other inputs.")
    return 0 if all(passed) else 1


# ---------------------------------------------------------------------------------------------
# grade
# ---------------------------------------------------------------------------------------------


def grade(options: argparse.Namespace) -> int:
    """Grade what is new or changed, and write each result as soon as it is known."""
    folder, out = options.submissions.resolve(), options.out.resolve()
    if not folder.is_dir():
        raise UsageError(f"SUBMISSIONS: {options.submissions} is no folder")
    if out.is_relative_to(folder):
        raise UsageError("--out: the folder must lie outside SUBMISSIONS")
    found, others = submissions.find(folder)
    if not found:
        raise UsageError(f"SUBMISSIONS: {options.submissions} holds no notebook and no folder")
    for part in ("results", "feedback"):
        (out / part).mkdir(parents=True, exist_ok=True)
    secret = options.secret_file or out / "secret"
    settings = _settings(options, _secret(secret, make=options.secret_file is None))
    _guard(settings, folder, out, secret)
    course = _digest_of_course(settings)

    results: dict[str, dict] = {}
    for student in found:
        student.read()
        record = _read(out / "results" / f"{student.key}.json")
        if record.get("digest") == digest(course, student.digest()):
            results[student.key] = record
        student.notebooks.clear()
    todo = [student for student in found if student.key not in results]
    _announce(options, settings, len(found), len(todo), others)

    began = time.monotonic()
    for student, exercises in _graded(todo, len(results), settings, options.jobs):
        result = {
            "student": student.student,
            "digest": digest(course, student.digest()),
            "isolation": settings.isolation,
            "version": segcourse.__version__,
            "faults": student.faults,
            "exercises": exercises,
        }
        if isinstance(exercises, str):  # not a word about the student: the next run tries again
            result |= {"digest": "", "exercises": {}, "error": exercises}
            result["faults"] = [*student.faults, "the grader itself failed; your instructor knows"]
        student.notebooks.clear()
        results[student.key] = result
        text, page = report.feedback(result)
        _write(out / "feedback" / f"{student.key}.md", text)
        _write(out / "feedback" / f"{student.key}.html", page)
        _write(out / "scores.csv", report.scores(results.values()))
        _write(out / "results" / f"{student.key}.json", json.dumps(result, indent=1))  # the last
    _write(out / "scores.csv", report.scores(results.values()))
    _summary(list(results.values()), len(todo), time.monotonic() - began, options.out)
    return 0


def _graded(
    todo: list[Submission], before: int, settings: pool.Settings, jobs: int
) -> Iterator[tuple[Submission, dict[str, Any] | str]]:
    """Students and what `pool.grade` tells of them, under a progress bar."""
    students = {student.key: student for student in todo}

    def work() -> Iterator[tuple[str, dict[str, bytes]]]:
        for student in todo:
            student.read()
            yield student.key, student.notebooks

    bar = tqdm(total=before + len(todo), initial=before, unit="student", desc="Grading")
    with bar, contextlib.closing(pool.grade(work(), settings, min(jobs, len(todo)))) as done:
        for key, exercises in done:
            yield students[key], exercises
            bar.update()


def _announce(
    options: argparse.Namespace,
    settings: pool.Settings,
    found: int,
    todo: int,
    others: list[str],
) -> None:
    print(f"Students: {found}, {todo} to grade" + (", the others unchanged" * (todo < found)))
    if others:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        print(f"Passed over, no notebooks: {', '.join(others[:5])}{more}")
    print(f"Hidden tests: {options.hidden}")
    danger = ": students' code has all your rights, as you asked"
    print(f"Sandbox: {settings.isolation}{danger * (settings.isolation == 'none')}", flush=True)


def _summary(results: list[dict[str, Any]], graded: int, seconds: float, out: Path) -> None:
    print(f"\nGraded {graded} in {seconds:.0f} s.\n")
    names = report.handed_in(results)
    width = max(map(len, names), default=0)
    print(f"  {'':{width}}  mean of   full  none  not attempted")
    for name, of in names.items():
        exercises = [result["exercises"][name] for result in results if result["exercises"]]
        exercises = [exercise for exercise in exercises if exercise["status"] != "absent"]
        points = [exercise["points"] for exercise in exercises]
        stubs = sum(exercise["status"] == "not attempted" for exercise in exercises)
        mean = sum(points) / len(points)
        counts = f"{points.count(of):5} {points.count(0):5}  {stubs:13}"
        print(f"  {name:{width}}  {mean:4.1f} {of:2}  {counts}")
    looked = [result["student"] for result in results if report.remarks(result)]
    if looked:
        print(f"\n{len(looked)} with a remark, for example {looked[0]}: see the file of scores.")
    print(f"\n  {out / 'scores.csv'}     a row for each student")
    print(f"  {out / 'feedback'}{os.sep}      to hand back: NAME.md and NAME.html")
    print(f"  {out / 'results'}{os.sep}       for you: all that is known of each test")


# ---------------------------------------------------------------------------------------------
# What grading needs
# ---------------------------------------------------------------------------------------------


def _settings(options: argparse.Namespace, secret: bytes) -> pool.Settings:
    """How to grade; UsageError where there is no sandbox, unless that is wanted."""
    hidden = options.hidden.resolve()
    if not (hidden / "draw.py").is_file() or not any(hidden.glob("*/suite.py")):
        raise UsageError(f"--hidden: {options.hidden} has no draw.py, or no NAME/suite.py")
    for module in ("pytest", "torch"):
        if importlib.util.find_spec(module) is None:
            raise UsageError(f"{module} is not installed: pip install {module}")
    if options.trusting:
        isolation = "none"
    else:
        try:
            isolation = sandbox.find()
        except SandboxError as error:
            raise UsageError(
                f"no sandbox works here, so nothing was run.\n{error}\n"
                "Install bubblewrap (Linux), Docker or Podman; the page for instructors has the "
                "details.\nWith --i-trust-every-submission there is no sandbox, and nothing "
                "protects you."
            ) from None
    sandbox.prepare(isolation)
    private = (hidden / "draw.py", *sorted(hidden.glob("*/suite.py")))
    # A second more than the timeout, which should strike first: it knows what was asked.
    limits = Limits(memory=options.memory << 20, seconds=options.timeout + 1)
    return pool.Settings(hidden, secret, options.timeout, limits, isolation, private)


def _guard(settings: pool.Settings, *private: Path) -> None:
    """UsageError where the sandbox would show what is private."""
    for path in (settings.hidden, *private):
        if shown := sandbox.exposed(path, settings.isolation):
            raise UsageError(f"{path} lies in {shown}, which students' code may read: move it")


def _secret(file: Path, make: bool) -> bytes:
    """What hidden inputs are drawn from."""
    if make and not file.exists():
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(secrets.token_hex(32) + "\n")
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"--secret-file: {file}: {error.strerror}") from None
    if len(secret) < 16:
        raise UsageError(f"--secret-file: expected at least 16 bytes; {file} has {len(secret)}")
    return secret


def _digest_of_course(settings: pool.Settings) -> str:
    """Changes with all that a score depends on, besides the submission."""
    files = [*settings.hidden.rglob("*.py"), *sandbox.PACKAGE.rglob("*.py")]
    contents = [path.read_bytes() for path in sorted(files)]
    others = importlib.metadata.version("torch"), settings.limits, settings.isolation
    return digest(settings.secret, *contents, repr(others))


def _read(file: Path) -> dict[str, Any]:
    """A result of an earlier run, or nothing."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    return {}


def _write(file: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


# ---------------------------------------------------------------------------------------------
# selftest
# ---------------------------------------------------------------------------------------------


def selftest(options: argparse.Namespace) -> int:
    """Show that the sandbox holds, right answers earn all points, and stubs and cheats none."""
    settings = _settings(options, secrets.token_bytes(32))
    _guard(settings)
    failed = 0

    def tell(good: bool, text: str) -> None:
        nonlocal failed
        failed += not good
        print(f"[{'OK' if good else 'FAIL'}] {text}", flush=True)

    tell(True, f"{settings.isolation} runs on this machine")
    with tempfile.TemporaryDirectory() as place:
        honest, cheats = Path(place, "honest"), Path(place, "cheats")
        names = _write_honest(settings.hidden, honest)
        _write_cheats(settings.hidden, cheats)
        # Before its first submission, each judge tries what a sandbox must prevent.
        found = _all(honest, settings, options.jobs)
        # A tenth of the time: many of them hang.
        found |= _all(cheats, replace(settings, timeout=settings.timeout / 10), options.jobs)
    tell(True, "code in it sees no hidden file, reaches no network, cannot signal the grader")
    for name in names:
        right, stub = found.pop(f"right {name}")[name], found.pop(f"stub {name}")[name]
        score = f"{right['points']} of {right['of']}"
        tell(right["points"] == right["of"], f"{name}: the reference has {score} points")
        tell(stub["status"] == "not attempted", f"{name}: the stub counts as not attempted")
    for key, exercises in found.items():
        if isinstance(exercises, str):
            tell(False, f"the submission {key!r} broke its judge: {exercises}")
        elif points := sum(exercise["points"] for exercise in exercises.values()):
            tell(False, f"the submission {key!r} earned {points} points by cheating")
    if found and not failed:
        tell(True, f"{len(found)} cheating submissions earned nothing")
    return 1 if failed else 0


def _all(folder: Path, settings: pool.Settings, jobs: int) -> dict[str, dict[str, Any] | str]:
    """What `pool.grade` tells of all students of a folder."""
    students, _ = submissions.find(folder)
    return {student.key: told for student, told in _graded(students, 0, settings, jobs)}


def _write_honest(hidden: Path, folder: Path) -> list[str]:
    """A right answer and a stub for each exercise; the names of the exercises."""
    folder.mkdir()
    names = sorted(path.parent.name for path in hidden.glob("*/suite.py"))
    for name in names:
        right = (hidden / name / "reference.py").read_text(encoding="utf-8")
        stub = f"def {name}(*args, **options):\n    raise NotImplementedError\n"
        for student, source in (("right", right), ("stub", stub)):
            cell = {"cell_type": "code", "source": f"# exercise: {name}\n{source}"}
            file = folder / f"{student} {name}.ipynb"
            file.write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    return names


def _write_cheats(hidden: Path, folder: Path) -> None:
    """The cheating submissions that come with the hidden tests, if there are any."""
    folder.mkdir()
    if (hidden / "cheats.py").is_file():
        spec = importlib.util.spec_from_file_location("cheats", hidden / "cheats.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.write(folder)
