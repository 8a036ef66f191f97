"""Judges in processes of their own, and the work that is handed out to them."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from segcourse.grading import sandbox
from segcourse.grading.sandbox import Limits, SandboxError


@dataclass(frozen=True)
class Settings:
    """How to grade."""

    hidden: Path  # the folder of the hidden tests
    secret: bytes  # what their inputs are drawn from
    timeout: float  # seconds for an exercise
    limits: Limits
    isolation: str  # the name of a sandbox
    private: tuple[Path, ...]  # what the sandbox must not show


# A name, notebooks, and which try this is.
Task = tuple[str, Mapping[str, bytes], int]


def grade(
    work: Iterable[tuple[str, Mapping[str, bytes]]], settings: Settings, jobs: int
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Grade the notebooks of many students at once.

    Args:
        work: a name, by which the result is told, and the notebooks of a student; taken one by
            one, as judges become free.
        settings: how.
        jobs: how many judges, each with a sandbox.

    Yields:
        the name and the exercises, as `Judge.grade` gives them, in the order in which they are
        done. Where the judge failed, or ended on the way twice, a text that says so instead.

    Raises:
        SandboxError: no judge can work.
    """
    tasks = ((name, notebooks, 1) for name, notebooks in work)
    again: list[Task] = []  # whose judge ended on the way
    judges: dict[Connection, tuple[multiprocessing.Process, Task | None]] = {}
    context = multiprocessing.get_context("spawn")

    def hire() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_judge, args=(theirs, settings))
        process.start()
        theirs.close()
        judges[ours] = (process, None)

    try:
        for _ in range(jobs):
            hire()
        while judges:
            for connection in wait(list(judges)):
                process, task = judges[connection]
                try:
                    kind, answer = connection.recv()
                except (EOFError, OSError):
                    del judges[connection]
                    process.join()
                    if task is None:
                        raise SandboxError("a judge ended before it began") from None
                    name, notebooks, tries = task
                    if tries == 2:
                        yield name, f"its process ended twice (code {process.exitcode})"
                    else:
                        again.append((name, notebooks, 2))
                    hire()
                    continue
                if kind == "broken":
                    raise SandboxError(answer)
                if kind == "graded":
                    yield task[0], answer
                task = again.pop() if again else next(tasks, None)
                if task is None:
                    del judges[connection]
                    connection.close()
                    process.join()
                else:
                    judges[connection] = (process, task)
                    connection.send(task[1])
    finally:
        for process, _ in judges.values():
            process.terminate()
            process.join()


def _judge(connection: Connection, settings: Settings) -> None:
    """The life of one judge."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    os.environ.pop("PYTEST_ADDOPTS", None)
    box = sandbox.make(settings.isolation, settings.limits)
    try:
        # Here, not above: the sandbox loads torch while this process does, too.
        from segcourse.grading.judge import Judge

        judge = Judge(settings.hidden, settings.secret, settings.timeout, box)
        if settings.isolation != "none":
            judge.probe(settings.private)
    except Exception as error:
        connection.send(("broken", f"{type(error).__name__}: {error}"))
        box.close()
        return
    with contextlib.closing(judge), contextlib.suppress(EOFError, BrokenPipeError):
        connection.send(("ready", None))
        while True:  # until the parent closes its end
            notebooks = connection.recv()
            try:
                answer = "graded", judge.grade(notebooks)
            except SandboxError as error:
                answer = "broken", str(error)
            except Exception as error:  # one submission must not end the run
                answer = "graded", f"{type(error).__name__}: {error}"
            connection.send(answer)
