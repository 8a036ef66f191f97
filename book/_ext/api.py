"""The API reference: `<!-- api: segcourse.losses -->` in a page becomes the module's docstrings.

The docstrings are Markdown. They are read from the source, so that nothing is imported.
"""

import ast
import re
import textwrap
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(find_spec("segcourse").origin).parents[1]
MARK = re.compile(r"^<!-- api: ([\w.]+) -->$", re.M)
SECTION = re.compile(r"^(Args|Returns|Raises):\n((?: +.*\n?|\n)+)", re.M)
PUBLIC = (ast.FunctionDef, ast.ClassDef)


def source_of(module: str) -> Path:
    """The file of a module; a package is its `__init__.py`."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def prose(node: ast.AST) -> str:
    """A docstring as Markdown: what it explains one by one, such as arguments, is a list."""

    def as_list(section: re.Match) -> str:
        items = textwrap.dedent(section[2]).rstrip()
        items = re.sub(r"^(\w+): ", r"`\1`: ", items, flags=re.M)
        items = re.sub(r"^(?=\S)", "- ", items, flags=re.M)
        return f"{section[1]}:\n\n{items}\n"

    return SECTION.sub(as_list, ast.get_docstring(node) or "")


def header(node: ast.AST, lines: list[str]) -> list[str]:
    """The lines of a `def` or `class` down to its body, as they stand in the source."""
    return lines[node.lineno - 1 : node.body[0].lineno - 1]


def signature(node: ast.AST, lines: list[str]) -> str:
    """What one needs to call it: of a class also its constructor, or its fields."""
    shown = header(node, lines)
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.AnnAssign):
                shown += lines[part.lineno - 1 : part.end_lineno]
            elif isinstance(part, ast.FunctionDef) and part.name == "__init__":
                shown += header(part, lines)
    return "```python\n" + textwrap.dedent("\n".join(shown)) + "\n```"


def public(node: ast.AST) -> list[ast.AST]:
    """Functions and classes of a module, or methods of a class, that have no underscore."""
    return [n for n in node.body if isinstance(n, PUBLIC) and not n.name.startswith("_")]


def reference(module: str, repository: str) -> str:
    """The reference of a module as Markdown, from a heading of the second level on."""
    path = source_of(module)
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    link = f"{repository}/blob/main/{path.relative_to(ROOT).as_posix()}"
    parts = [f"## {module}", prose(tree), f"[Source]({link})"]
    for node in public(tree):
        parts += [f"### {node.name}", signature(node, lines), prose(node)]
        if isinstance(node, ast.ClassDef):
            for method in public(node):
                parts += [f"#### {node.name}.{method.name}", signature(method, lines)]
                parts += [prose(method)]
    return "\n\n".join(parts)


def fill(app, docname, source):
    """Put the reference where a page asks for it."""
    repository = app.config.html_theme_options["repository_url"]
    source[0] = MARK.sub(lambda m: reference(m[1], repository), source[0])


def setup(app):
    app.connect("source-read", fill)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
