"""What a student's notebooks hold of an exercise, as a function that can be called.

A notebook trains networks and draws figures; of all that a grader needs one function. It stands in
the cell with the line `# exercise: NAME`. Of the other cells only those statements are run that
this cell needs: imports, functions, classes and variables that it names, and what these name in
turn. A statement that only calls something, such as `check(...)` or `print(...)`, is never run.

Only the standard library is needed here, and a notebook may be anything: cells that are no Python
are passed over, magics are blanked, ids and metadata are not read.
"""

import __future__

import ast
import dis
import json
import linecache
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

MARKER = re.compile(r"^[ \t]*#+[ \t]*exercise:[ \t]*(\w+)[ \t]*$", re.MULTILINE)
# What IPython alone understands: magics, commands of the shell, help.
MAGIC = re.compile(
    r"^([ \t]*)(?:[%!?].*|[\w.]+[ \t]*=[ \t]*[%!].*|[\w.%]+\?{1,2}[ \t]*)$", re.MULTILINE
)
# What ast.parse raises for text that is no Python, or too much of it.
NO_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)


class NotebookError(Exception):
    """Why a function cannot be taken from a notebook, in words for the student.

    `tried` is false where the notebooks can be read, and none has a cell for the function.
    """

    def __init__(self, text: str, tried: bool = True) -> None:
        super().__init__(text)
        self.tried = tried


@dataclass(frozen=True)
class Cell:
    """A code cell: its place among all cells, from 1, and its source without magics."""

    number: int
    source: str

    def statements(self) -> list["Statement"]:
        """All but those that only call something; one of `NO_PYTHON` if it is none."""
        body = ast.parse(self.source).body
        return [Statement(self, node) for node in body if not isinstance(node, ast.Expr)]


@dataclass(frozen=True)
class Statement:
    """A statement at the top level of a cell."""

    cell: Cell
    node: ast.stmt

    def compiled(self) -> CodeType:
        # Annotations are not run, so that a type that was not imported is no fault.
        flags = __future__.annotations.compiler_flag
        tree = ast.Module([self.node], type_ignores=[])
        return compile(tree, f"<cell {self.cell.number}>", "exec", flags, dont_inherit=True)

    def names(self) -> tuple[set[str], set[str]]:
        """The global names that it defines or changes, and those that it uses."""
        outer = self.compiled()
        defines, uses, todo = set(), set(), [outer]
        while todo:
            code = todo.pop()
            todo += [const for const in code.co_consts if isinstance(const, CodeType)]
            for step in dis.get_instructions(code):
                if step.opname == "STORE_GLOBAL" or (
                    step.opname == "STORE_NAME" and code is outer
                ):
                    defines.add(step.argval)
                elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"):
                    uses.add(step.argval)
        for node in ast.walk(self.node):  # kernel[1, 1] = 0 changes kernel
            if isinstance(getattr(node, "ctx", None), ast.Store):
                while isinstance(node, ast.Subscript | ast.Attribute):
                    node = node.value
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                    defines.add(node.id)
        if isinstance(self.node, ast.ImportFrom) and self.node.names[0].name == "*":
            defines.add("*")
        return defines, uses


@dataclass(frozen=True)
class Loaded:
    """The function of an exercise, the notebook that it is from, and what failed on the way."""

    function: Callable
    notebook: str
    remarks: tuple[str, ...]


def load(notebooks: Mapping[str, bytes], exercise: str, namespace: dict[str, Any]) -> Loaded:
    """Run what the notebooks of a student hold of an exercise.

    Where several notebooks have its cell, the last one by name counts.

    Args:
        notebooks: their bytes, by file name.
        exercise: the name of the function.
        namespace: gets the global names of the student's code.

    Raises:
        NotebookError: no notebook has the function.
    """
    names = sorted(notebooks, key=lambda name: name.removesuffix(".ipynb"))  # a, then a-1
    faults = []
    for name in reversed(names):
        try:
            cells = read(notebooks[name])
        except NotebookError as error:
            faults.append(f"{name}: {error}")
            continue
        if own := marked(cells, exercise):
            return _run(
                name, own, [cell for cell in cells if cell not in own], exercise, namespace
            )
    missing = f"no cell with the line `# exercise: {exercise}`"
    raise NotebookError("; ".join([*faults, missing]), tried=bool(faults))


def read(data: bytes) -> list[Cell]:
    """The code cells of a notebook; NotebookError if it is none."""
    try:
        notebook = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise NotebookError("no notebook: it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise NotebookError(f"no whole notebook: JSON ends in line {error.lineno}") from None
    except (RecursionError, ValueError):
        raise NotebookError("no notebook: its JSON is too deep or has too long numbers") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list):
        raise NotebookError("no notebook: it has no list of cells")
    return [
        Cell(number, _plain(_text(cell.get("source"))))
        for number, cell in enumerate(cells, start=1)
        if isinstance(cell, dict) and cell.get("cell_type") == "code"
    ]


def marked(cells: list[Cell], exercise: str) -> list[Cell]:
    """The cells with the marker of an exercise; where it was lost, those that define it."""
    own = [cell for cell in cells if exercise in MARKER.findall(cell.source)]
    definition = re.compile(rf"^def[ \t]+{re.escape(exercise)}\b", re.MULTILINE)
    return own or [cell for cell in cells if definition.search(cell.source)]


def _text(source: object) -> str:
    """A cell's source, which is stored as a string or as a list of lines."""
    lines = source if isinstance(source, list) else [source]
    return "".join(line for line in lines if isinstance(line, str))


def _plain(source: str) -> str:
    """The source without magics, each line in its place."""
    try:
        ast.parse(source)
    except NO_PYTHON:
        return MAGIC.sub(r"\1pass", source)
    return source


def _run(
    name: str, own: list[Cell], others: list[Cell], exercise: str, namespace: dict[str, Any]
) -> Loaded:
    statements = []
    for cell in own:
        try:
            statements += cell.statements()
        except NO_PYTHON as error:
            raise NotebookError(f"{name}, {_fault(cell, error)}") from None
    remarks = []
    for statement in [*_needed(statements, others), *statements]:
        cell = statement.cell
        file, lines = f"<cell {cell.number}>", cell.source.splitlines(keepends=True)
        linecache.cache[file] = (len(cell.source), None, lines, file)  # for tracebacks
        try:
            exec(statement.compiled(), namespace)
        except BaseException as error:  # SystemExit, too
            remarks.append(f"{name}, {_fault(cell, error)}")
    function = namespace.get(exercise)
    if not callable(function):
        raise NotebookError(
            "; ".join(remarks) or f"{name}: the cell with the marker defines no {exercise}"
        )
    return Loaded(function, name, tuple(remarks))


def _needed(own: list[Statement], others: list[Cell]) -> list[Statement]:
    """The statements of other cells that define what `own` names, and what those name in turn."""
    pool = []
    for cell in others:
        try:
            pool += [(statement, *statement.names()) for statement in cell.statements()]
        except NO_PYTHON:
            continue  # another language, or unfinished work
    wanted, chosen = {"*"}.union(*(statement.names()[1] for statement in own)), set()
    while more := {
        i for i, (_, defines, _) in enumerate(pool) if i not in chosen and defines & wanted
    }:
        chosen |= more
        wanted = wanted.union(*(pool[i][2] for i in more))
    return [pool[i][0] for i in sorted(chosen)]


def _fault(cell: Cell, error: BaseException) -> str:
    """Where and why a cell failed. Nothing hidden is known yet, so that all may be said."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == f"<cell {cell.number}>":
            line = trace.tb_lineno
        trace = trace.tb_next
    place = f"cell {cell.number}" + (f", line {line}" if line else "")
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{place}: {type(error).__name__}: {text}"
