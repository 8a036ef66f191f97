"""What comes out: a file of scores, and feedback for each student as Markdown and HTML.

Feedback names properties, and never an input or an answer of a hidden test. All text that comes
from a submission, its file names included, is made harmless for the place where it appears.
"""

import csv
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

HEAD = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1c2126; --soft: #59636e; --page: #fff; --line: #d9dee3;
  --good: #0a6b45; --bad: #a8321a; --card: #f5f7f9; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e4e8ec; --soft: #a3adb8; --page: #15181c;
  --line: #343b43; --good: #5fcf9f; --bad: #ff9d80; --card: #1e2328; }} }}
body {{ font: 1rem/1.55 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 46rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 2.5rem 0 .5rem; display: flex; justify-content: space-between;
  gap: 1rem; border-bottom: 2px solid var(--line); padding-bottom: .3rem; }}
.total {{ font-size: 1.2rem; margin: 0 0 1rem; }}
.soft {{ color: var(--soft); }}
pre {{ background: var(--card); padding: .8rem 1rem; border-radius: .4rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .9rem; }}
table {{ border-collapse: collapse; width: 100%; }}
td, th {{ text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0;
  border-bottom: 1px solid var(--line); }}
th {{ color: var(--soft); font-weight: 600; font-size: .9rem; }}
td.number, th.number {{ text-align: right; padding-left: .6rem; }}
td.number {{ white-space: nowrap; }}
td:last-child, th:last-child {{ padding-right: 0; }}
.good {{ color: var(--good); font-weight: 700; }} .bad {{ color: var(--bad); font-weight: 700; }}
.hint {{ display: block; color: var(--soft); font-size: .92rem; overflow-wrap: anywhere; }}
</style>
"""


def plain(text: object, most: int = 300) -> str:
    """Text on one line, without what a terminal obeys and without what no reader sees."""
    spaced = "".join(" " if c.isspace() else c for c in str(text))
    shown = "".join(c for c in spaced if not unicodedata.category(c).startswith("C"))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


# ---------------------------------------------------------------------------------------------
# All students
# ---------------------------------------------------------------------------------------------


def scores(results: Iterable[dict[str, Any]]) -> str:
    """A row for each student, as CSV: the points of each exercise that anyone handed in."""
    results = sorted(results, key=lambda result: result["student"].casefold())
    of = handed_in(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["student", *of, "total", "of", "isolation", "remarks"])
    for result in results:
        points = [result["exercises"].get(name, {"points": 0})["points"] for name in of]
        numbers = [*points, sum(points), sum(of.values())]
        said = _cell("; ".join(remarks(result)))
        writer.writerow([_cell(result["student"]), *numbers, result["isolation"], said])
    return text.getvalue()


def handed_in(results: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The exercises that anyone handed in, in their order, and what each is worth."""
    exercises = [item for result in results for item in result["exercises"].items()]
    tried = {name for name, exercise in exercises if exercise["status"] != "absent"}
    return {name: exercise["of"] for name, exercise in exercises if name in tried}


def remarks(result: dict[str, Any]) -> list[str]:
    """What an instructor may want to look at: why something was not graded."""
    exercises = result["exercises"].items()
    return result["faults"] + [
        f"{name}: {exercise['reason']}"
        for name, exercise in exercises
        if exercise["status"] in ("fault", "not attempted")
    ]


def _cell(text: str) -> str:
    """A field that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


# ---------------------------------------------------------------------------------------------
# One student
# ---------------------------------------------------------------------------------------------

ABOUT = (
    "Each property was tested on other inputs than those of the public checks. Which ones, this "
    "page does not tell."
)


def feedback(result: dict[str, Any]) -> tuple[str, str]:
    """What a student gets back, as Markdown and as an HTML page."""
    exercises = {n: e for n, e in result["exercises"].items() if e["status"] != "absent"}
    points, of = (sum(e[key] for e in exercises.values()) for key in ("points", "of"))
    title, total = f"Feedback for {result['student']}", f"{points} of {of} points"
    notes = [f"{fault}." for fault in result["faults"]]
    if absent := [name for name in result["exercises"] if name not in exercises]:
        notes.append(f"Not handed in: {', '.join(absent)}.")
    parts = [_exercise(name, exercise) for name, exercise in exercises.items()]

    text = [f"# {_md(title)}", f"**{total}**", *map(_md, notes), ABOUT]
    text += [part for part, _ in parts]
    page = [
        HEAD.format(title=html.escape(title)) + "<main>",
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="total">{total}</p>',
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        f'<p class="soft">{ABOUT}</p>',
        *(part for _, part in parts),
    ]
    return "\n\n".join(text) + "\n", "\n".join(page) + "\n</main>\n</html>\n"


def _exercise(name: str, exercise: dict[str, Any]) -> tuple[str, str]:
    """A section of the feedback, as Markdown and as HTML."""
    score, reason = f"{exercise['points']} of {exercise['of']}", exercise["reason"]
    text = [f"## {name}: {score}"]
    page = [f"<h2><span>{name}</span> <span>{score}</span></h2>"]
    if exercise["status"] == "fault":
        text += ["It could not be graded:", f"    {reason}"]
        page += ["<p>It could not be graded:</p>", f"<pre>{html.escape(reason)}</pre>"]
        return "\n\n".join(text), "\n".join(page)
    for line in _said(exercise):
        text.append(_md(line))
        page.append(f"<p>{html.escape(line)}</p>")
    if exercise["status"] == "graded":
        failed = [item for item in exercise["properties"] if not item["held"]]
        text += [_table(exercise["properties"])]
        if failed:
            text += ["\n".join(f"- **{item['name']}**: {item['hint']}" for item in failed)]
        page += [_html_table(exercise["properties"])]
    return "\n\n".join(text), "\n".join(page)


def _said(exercise: dict[str, Any]) -> list[str]:
    """Sentences about an exercise that was loaded."""
    if exercise["status"] == "not attempted":
        return ["Not attempted: the function still raises NotImplementedError."]
    said = [f"From {exercise['notebook']}."]
    said += [f"While it was loaded: {remark}" for remark in exercise["remarks"]]
    needed = [p["name"] for p in exercise["properties"] if p["points"] is None and not p["held"]]
    if needed:
        said.append(f"No points, since these are needed for any: {'; '.join(needed)}.")
    elif all(item["held"] for item in exercise["properties"]):
        said.append("Every property held.")
    return said


def _columns(item: dict[str, Any]) -> tuple[str, str]:
    """How many tests of a property passed, and its points."""
    tests = f"{item['passed']} of {item['tests']}"
    points = f"{item['points'] if item['held'] else 0} of {item['points']}"
    return tests, "needed" if item["points"] is None else points


def _table(properties: list[dict[str, Any]]) -> str:
    rows = ["| | property | tests passed | points |", "| --- | --- | --- | ---: |"]
    for item in properties:
        tests, points = _columns(item)
        reason = f": {_md(item['reason'])}" if item["reason"] else ""
        mark = "✓" if item["held"] else "✗"
        rows.append(f"| {mark} | {item['name']} | {tests}{reason} | {points} |")
    return "\n".join(rows)


def _html_table(properties: list[dict[str, Any]]) -> str:
    rows = [
        '<table><thead><tr><td></td><th scope="col">property</th>'
        '<th scope="col" class="number">tests passed</th>'
        '<th scope="col" class="number">points</th></tr></thead><tbody>'
    ]
    for item in properties:
        tests, points = _columns(item)
        kind, mark, said = ("good", "✓", "held") if item["held"] else ("bad", "✗", "did not hold")
        notes = [] if item["held"] else [item["reason"], f"Hint: {item['hint']}"]
        below = "".join(f'<span class="hint">{html.escape(note)}</span>' for note in notes if note)
        rows.append(
            f'<tr><td class="{kind}"><span role="img" aria-label="{said}">{mark}</span></td>'
            f"<td>{html.escape(item['name'])}{below}</td>"
            f'<td class="number">{tests}</td><td class="number">{points}</td></tr>'
        )
    return "\n".join([*rows, "</tbody></table>"])


def _md(text: str) -> str:
    """Text in which no character means anything to Markdown."""
    text = re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", text)
    return re.sub(r"^([#+-]|\d+\.)", r"\\\1", text)
