"""The glossary, and the API reference that is made of docstrings."""

import ast
import re

import pytest
from bs4 import BeautifulSoup
from conftest import ROOT, committed

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "segcourse").rglob("*.py")
)
LINK = re.compile(r"\[([^\]]+)\]\(\.\./book/glossary\.md#([\w-]+)\)")
PLAIN = re.compile(r"^#.*$|`[^`]*`|\[[^\]]*\]\([^)]*\)", re.M)  # what is no plain word


def documented():
    """Each module that a page of the reference asks for."""
    pages = (ROOT / "book" / "api").glob("*.md")
    return [
        m for page in pages for m in re.findall(r"^<!-- api: (\S+) -->$", page.read_text(), re.M)
    ]


def public_names(module):
    """Functions and classes of a module, and methods as CLASS.METHOD."""
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            names.append(node.name)
            if isinstance(node, ast.ClassDef):
                inside = [n.name for n in node.body if isinstance(n, kinds)]
                names += [f"{node.name}.{name}" for name in inside if not name.startswith("_")]
    return names


@pytest.fixture(scope="module")
def reference(html):
    """The sections of the reference by module, as the book shows them."""
    found = {}
    for page in (html / "book" / "api").glob("*.html"):
        article = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        for section in article.select("article section section"):
            title = section.find(["h2", "h3", "h4"]).get_text().rstrip("#")
            if title.startswith("segcourse"):
                found[title] = section
    return found


def test_every_module_is_in_the_reference_once():
    # A docstring and no more, or the start of the command line.
    empty = {"segcourse", "segcourse.models", "segcourse.__main__"}
    assert sorted(documented()) == sorted(set(MODULES) - empty)


@pytest.mark.parametrize("module", sorted(set(documented())))
def test_every_public_name_is_in_the_reference_with_its_signature(reference, module):
    section = reference[module]
    titles = [h.get_text().rstrip("#") for h in section.find_all(["h3", "h4"])]
    assert titles == public_names(module)
    for heading in section.find_all(["h3", "h4"]):
        code = heading.find_next("pre").get_text()
        name = heading.get_text().rstrip("#").rpartition(".")[2]
        assert re.search(rf"^(class|def) {name}\b", code, re.M), name


def test_arguments_become_a_list_and_tables_tables(reference):
    losses = reference["segcourse.losses"]
    assert losses.find("table") is not None
    try_it = reference["segcourse.exercises"].find(id="try-it")
    assert [item.find("code").get_text() for item in try_it.find_all("li")] == [
        "function",
        "cases",
    ]
    assert "Args" in try_it.get_text() and "Args:\n  " not in try_it.get_text()


def test_a_chapter_links_words_to_the_glossary_each_once(name):
    text = "\n\n".join(c.source for c in committed(name).cells if c.cell_type == "markdown")
    entries = [entry for _, entry in LINK.findall(text)]
    assert len(entries) >= 8
    assert sorted(entries) == sorted(set(entries))


def test_a_word_is_linked_where_the_text_first_has_it(name):
    """The linked words do not stand in an earlier cell of prose, titles aside."""
    cells = [c.source for c in committed(name).cells if c.cell_type == "markdown"]
    late = []
    for place, source in enumerate(cells):
        for words, _ in LINK.findall(source):
            word = re.escape(words.strip("*"))
            before = "\n".join(PLAIN.sub("", cell) for cell in cells[2:place])
            if re.search(rf"(?<![\w-]){word}(?![\w-])", before):
                late.append(words)
    assert late == []


def test_the_glossary_is_in_order_and_every_entry_says_something():
    text = (ROOT / "book" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^### ([^\n]+)\n\n(.+?)(?=\n\n#|\Z)", text, re.M | re.S)
    assert len(entries) >= 50
    assert [title for title, body in entries if len(body) < 60] == []
    assert [title for title, body in entries if "](../notebooks/" not in body] == []
