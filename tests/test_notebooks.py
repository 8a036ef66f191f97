"""Every notebook keeps the chapter's template, and its executed copy shows no fault.

A lint takes a notebook and its name and returns the faults it finds. Each is tried on a notebook
that has exactly that fault.
"""

import re
from collections import Counter
from contextlib import redirect_stdout
from html import unescape
from io import StringIO

import nbformat
import pytest
from address import address
from conftest import NOTEBOOKS, ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from segcourse import results

# The one place where the set-up cell stands; {url} is the course's address.
SETUP = """\
import importlib.util
if importlib.util.find_spec("segcourse") is None:
    %pip install -q --no-deps "git+{url}.git\""""

SECTIONS = [
    "See the problem",
    "The idea",
    "Build it",
    "Train",
    "Measure",
    "Break it",
    "Find the bug",
    "Try it",
    "Recap",
    "Quiz",
    "References",
]
EXERCISE_SECTIONS = [
    "See the problem",
    "The idea",
    "Warm up",
    "Your turn",
    "See it work",
    "Going further",
    "Recap",
    "Quiz",
    "References",
]
CONCEPT = {"00_pixels_and_metrics"}  # chapters without a model of their own
EXERCISES = {"07_boundary_loss", "08_multi_scale_tta", "09_crf"}
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def markdown(nb):
    return [cell.source for cell in nb.cells if cell.cell_type == "markdown"]


def code(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def prose(nb):
    """The notebook's text without inline code; a MyST role is no code."""
    return re.sub(r"(?<!\})`[^`\n]+`", "", "\n\n".join(markdown(nb)))


def section(nb, title):
    """The text under a second-level heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", "\n\n".join(markdown(nb)), re.M | re.S)
    return found[1] if found else ""


# Lints of a notebook as it is committed


def outputs(nb, name):
    return [f"cell {c.id} has outputs" for c in code(nb) if c.outputs or c.execution_count]


def metadata(nb, name):
    faults = [] if dict(nb.metadata) == {"kernelspec": KERNEL} else ["notebook metadata"]
    extra = {key for cell in nb.cells for key in cell.metadata} - {"mystnb", "tags"}
    return faults + sorted(f"cell metadata {key}" for key in extra)


def cell_ids(nb, name):
    if (nb.nbformat, nb.nbformat_minor) < (4, 5):
        return ["the format has no cell ids: save it as nbformat 4.5"]
    return [f"id {id} stands twice" for id, n in Counter(c.id for c in nb.cells).items() if n > 1]


def cell_size(nb, name):
    faults = []
    for cell in code(nb):
        lines = cell.source.splitlines()
        if not lines:
            faults.append(f"cell {cell.id} is empty")
        if len(lines) > 15:
            faults.append(f"cell {cell.id} has {len(lines)} lines, at most 15 are allowed")
        if cell is not code(nb)[0]:  # the address in the set-up cell may be long
            faults += [f"cell {cell.id}: over 79 columns: {x}" for x in lines if len(x) > 79]
    return faults


def badge(nb, name):
    link = f"https://colab.research.google.com/github/{address()}/blob/main/notebooks/{name}.ipynb"
    first = nb.cells[0]
    if first.cell_type == "markdown" and first.source.startswith(f"[Open in Colab]({link})"):
        return []
    return [f"the first line must be [Open in Colab]({link})"]


def setup_cell(nb, name):
    wanted = SETUP.format(url=f"https://github.com/{address()}")
    return [] if code(nb)[0].source == wanted else ["the first code cell is not the set-up cell"]


def opening(nb, name):
    text = "\n\n".join(markdown(nb)[:2])
    faults = [] if re.search(r"\bquestion\b", text, re.I) else ["no question in the opening"]
    outcomes = len(re.findall(r"^[-*] ", text, re.M))
    return faults + ([] if 3 <= outcomes <= 5 else [f"{outcomes} outcomes, not three to five"])


def sections(nb, name):
    text = "\n\n".join(markdown(nb))
    faults = [] if len(re.findall(r"^# ", text, re.M)) == 1 else ["not exactly one title"]
    wanted = [s for s in SECTIONS if name not in CONCEPT or s not in ("Build it", "Train")]
    wanted = EXERCISE_SECTIONS if name in EXERCISES else wanted
    known = {*SECTIONS, *EXERCISE_SECTIONS}
    found = [h for h in re.findall(r"^## (.*)$", text, re.M) if h in known]
    return faults + ([] if found == wanted else [f"sections {found}, not {wanted}"])


def quiz(nb, name):
    text = section(nb, "Quiz")
    answers = re.findall(r"<details>\s*<summary>.+?</summary>.+?</details>", text, re.S)
    return [] if len(answers) == 3 else [f"{len(answers)} hidden answers in the quiz, not three"]


def plain_markdown(nb, name):
    """Colab shows MyST directives and roles raw."""
    found = re.findall(r"^\s*(?:```|:::)\s*\{[\w-]+\}|\{[\w:-]+\}`", prose(nb), re.M)
    return [f"MyST in markdown: {x.strip()}" for x in found]


def references(nb, name):
    faults = []
    for item in re.findall(r"^[-*] .*(?:\n(?![-*] |\n).*)*", section(nb, "References"), re.M):
        if "](" in item or "https://" not in item:
            faults.append(f"not a plain URL: {item}")
    return faults


def images(nb, name):
    """A relative image breaks in Colab; figures are drawn by code."""
    found = re.findall(r"!\[[^\]]*\]\([^)]*\)|<img\b[^>]*>", prose(nb))
    faults = [f"image in markdown: {x}" for x in found]
    return faults + [f"attachment in cell {c.id}" for c in nb.cells if c.get("attachments")]


SOURCE_LINTS = [
    outputs,
    metadata,
    cell_ids,
    cell_size,
    badge,
    setup_cell,
    opening,
    sections,
    quiz,
    plain_markdown,
    references,
    images,
]


# Lints of an executed copy


def executed_whole(nb, name):
    counts = [cell.execution_count for cell in code(nb)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"cells ran as {counts}"]


def clean_outputs(nb, name):
    faults = []
    for cell in code(nb):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                faults.append(f"cell {cell.id}: {output.get('ename', 'stderr')}")
    return faults


def figures(nb, name):
    """Every image says in words what it shows, and has a caption."""
    faults = []
    for cell in code(nb):
        mystnb, alts = cell.metadata.get("mystnb", {}), []
        for output in cell.outputs:
            data = output.get("data", {})
            if any(key.startswith("image/") for key in data):
                alts.append(mystnb.get("image", {}).get("alt", ""))
            alts += [
                unescape((re.search(r'alt="([^"]*)"', img) or ["", ""])[1])
                for img in re.findall(r"<img\b[^>]*>", data.get("text/html", ""))
            ]
        if any(len(alt) < 40 for alt in alts):
            faults.append(f"cell {cell.id}: no alt text of at least 40 characters")
        if alts and not mystnb.get("figure", {}).get("caption"):
            faults.append(f"cell {cell.id}: no caption")
    return faults


def printed(nb):
    """All lines of text that the cells print or show."""
    text = ""
    for cell in code(nb):
        for output in cell.outputs:
            data = output.get("data", {})
            text += output.get("text", "") + data.get("text/plain", "") + data.get("text/html", "")
            text += "\n"
    return text.splitlines()


def budget(nb, name):
    """The book shows the cpu preset, and says so; other budgets have other numbers."""
    said = {m for line in printed(nb) for m in re.findall(r"with the (\w+) preset", line)}
    return [] if said == {"cpu"} else [f"ran with the presets {sorted(said)}, not only with cpu"]


def recorded(nb, name):
    """A cell compares the live run with the recorded spread, and says OUTSIDE where it misses."""
    return [f"not as recorded: {line}" for line in printed(nb) if "OUTSIDE" in line]


EXECUTED_LINTS = [executed_whole, clean_outputs, figures, budget, recorded]


@pytest.mark.parametrize("lint", SOURCE_LINTS, ids=lambda lint: lint.__name__)
def test_committed_notebook_keeps_the_template(notebook, name, lint):
    assert lint(notebook, name) == []


@pytest.mark.parametrize("lint", EXECUTED_LINTS, ids=lambda lint: lint.__name__)
def test_executed_notebook_has_no_fault(executed, name, lint):
    assert lint(executed, name) == []


def test_the_executed_copy_is_of_this_notebook(notebook, executed):
    assert [c.source for c in executed.cells] == [c.source for c in notebook.cells]


def test_cell_ids_are_unique_across_the_book():
    ids = Counter()
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        ids.update(cell.id for cell in notebook.cells)
    assert [id for id, n in ids.items() if n > 1] == []


# The lints themselves


def good():
    """The shortest notebook without a fault."""
    colab = f"https://colab.research.google.com/github/{address()}/blob/main/notebooks/good.ipynb"
    bodies = dict.fromkeys(SECTIONS, "Text with `{role}` quoted as code.")
    bodies["Quiz"] = "<details><summary>Why?</summary>Because.</details>\n" * 3
    bodies["References"] = "- Long et al. (2015), https://arxiv.org/abs/1411.4038"
    figure = {"image": {"alt": "A" * 40}, "figure": {"caption": "A figure."}}
    texts = [
        f"[Open in Colab]({colab})",
        "# Title\n\n**Question.** Why?\n\n- one\n- two\n- three",
        *(f"## {title}\n\n{body}" for title, body in bodies.items()),
    ]
    cells = [new_markdown_cell(text, id=f"text-{i}") for i, text in enumerate(texts)]
    setup = SETUP.format(url=f"https://github.com/{address()}")
    cells.insert(2, new_code_cell(setup, id="setup"))
    cells.append(new_code_cell("plot()", id="figure", metadata={"mystnb": figure}))
    return new_notebook(cells=cells, metadata={"kernelspec": dict(KERNEL)})


def runtime_line():
    """What every chapter prints first, by the function that prints it."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.setenv("SEGCOURSE_PRESET", "cpu")
        results.runtime("any")
    return printed.getvalue()


def good_run():
    """The same, executed."""
    nb = good()
    for count, cell in enumerate(code(nb), 1):
        cell.execution_count = count
    nb.cells[-1].outputs = [
        new_output("display_data", data={"image/png": ""}),
        new_output("display_data", data={"text/html": f'<img src="a" alt="{"A" * 40}">'}),
        new_output("stream", name="stdout", text=runtime_line()),
    ]
    return nb


def replace(cell, old, new):
    """A change that swaps text in one cell; `cell` is an index or the start of a heading."""

    def change(nb):
        where = (
            nb.cells[cell]
            if isinstance(cell, int)
            else next(c for c in nb.cells if c.source.startswith(f"## {cell}"))
        )
        assert old in where.source
        where.source = where.source.replace(old, new)

    return change


def stream(text, name="stdout"):
    """A change that adds a line of output to the last cell."""
    return lambda nb: nb.cells[-1].outputs.append(new_output("stream", name=name, text=text))


def shown(html, **changes):
    """A change that shows HTML in the last cell, whose captions may change, too."""

    def change(nb):
        nb.cells[-1].outputs.append(new_output("display_data", data={"text/html": html}))
        nb.cells[-1].metadata.mystnb.update(changes)

    return change


BROKEN_SOURCES = [
    (outputs, lambda nb: nb.cells[-1].outputs.append(new_output("stream", text="hi"))),
    (outputs, lambda nb: nb.cells[-1].update(execution_count=3)),
    (metadata, lambda nb: nb.metadata.update(language_info={"name": "python"})),
    (metadata, lambda nb: nb.metadata.kernelspec.update(name="my-env")),
    (metadata, lambda nb: nb.cells[0].metadata.update(execution={})),
    (cell_ids, lambda nb: nb.cells[0].update(id="setup")),
    (cell_ids, lambda nb: nb.update(nbformat_minor=4)),
    (cell_size, lambda nb: nb.cells[-1].update(source="x = 1\n" * 16)),
    (cell_size, lambda nb: nb.cells[-1].update(source="x" * 80)),
    (cell_size, lambda nb: nb.cells[-1].update(source="")),
    (badge, replace(0, "good.ipynb", "other.ipynb")),
    (setup_cell, replace(2, "-q ", "")),
    (setup_cell, lambda nb: nb.cells.insert(1, new_code_cell("import torch"))),
    (opening, replace(1, "Question", "Title")),
    (opening, replace(1, "- three", "")),
    (sections, replace(1, "# Title", "Title")),
    (sections, replace("Break it", "Break it", "Break")),
    (sections, lambda nb: nb.cells.append(new_markdown_cell("## Train"))),
    (sections, lambda nb: nb.cells.append(new_markdown_cell("## Warm up"))),
    (
        quiz,
        replace(
            "Quiz",
            "</details>\n",
            "",
        ),
    ),
    (plain_markdown, replace("Recap", "Text", "{cite}`long2015fcn`")),
    (plain_markdown, replace("Recap", "Text", "```{note}\n```")),
    (plain_markdown, replace("Recap", "Text", ":::{tip}\n:::")),
    (references, replace("References", "https://", "")),
    (references, replace("References", "https://arxiv.org/abs/1411.4038", "[FCN](https://a.b)")),
    (images, replace("Recap", "Text", "![](figure.png)")),
    (images, replace("Recap", "Text", '<img src="figure.png">')),
    (images, lambda nb: nb.cells[0].update(attachments={"a.png": {}})),
]

BROKEN_RUNS = [
    (executed_whole, lambda nb: nb.cells[-1].update(execution_count=None)),
    (clean_outputs, stream("warning", "stderr")),
    (clean_outputs, lambda nb: nb.cells[-1].outputs.append(new_output("error", ename="Oops"))),
    (figures, lambda nb: nb.cells[-1].metadata.mystnb.image.update(alt="A figure.")),
    (figures, lambda nb: nb.cells[-1].metadata.mystnb.pop("figure")),
    (figures, shown('<img src="a">')),
    (figures, shown('<img src="a" alt="A slider.">')),
    (figures, shown(f'<img src="a" alt="{"A" * 40}">', figure={})),
    (budget, stream("You run it with the smoke preset.")),
    (budget, lambda nb: nb.cells[-1].outputs.pop()),
    (recorded, stream("mIoU 12.3 is OUTSIDE the recorded spread")),
]


@pytest.mark.parametrize("lint", SOURCE_LINTS, ids=lambda lint: lint.__name__)
def test_a_good_notebook_passes(lint):
    assert lint(good(), "good") == []


@pytest.mark.parametrize("lint", EXECUTED_LINTS, ids=lambda lint: lint.__name__)
def test_a_good_run_passes(lint):
    assert lint(good_run(), "good") == []


@pytest.mark.parametrize(("lint", "change"), BROKEN_SOURCES)
def test_a_broken_notebook_is_found(lint, change):
    nb = good()
    change(nb)
    assert lint(nb, "good") != []


@pytest.mark.parametrize(("lint", "change"), BROKEN_RUNS)
def test_a_broken_run_is_found(lint, change):
    nb = good_run()
    change(nb)
    assert lint(nb, "good") != []


def test_every_lint_has_a_broken_example():
    assert {lint for lint, _ in BROKEN_SOURCES + BROKEN_RUNS} == {*SOURCE_LINTS, *EXECUTED_LINTS}
