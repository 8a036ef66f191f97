"""What instructors and students get: right numbers, plain words, and no text that does harm."""

import copy
import csv
import io
import re

import pytest
from bs4 import BeautifulSoup
from hidden.cheats import NAMES
from markdown_it import MarkdownIt

from segcourse.grading import report


def exercise(status="graded", points=3, held=(True, True, False), reason="", remarks=()):
    names = ("a gate", "first", "second")
    properties = [
        {
            "name": name,
            "points": None if name == "a gate" else 3,
            "held": good,
            "tests": 2,
            "passed": 2 if good else 1,
            "reason": "" if good else "your function raised KeyError (cell 3, line 4)",
            "hint": f"hint for {name}",
            "detail": "the numbers differ: DETAIL",
        }
        for name, good in zip(names, held, strict=True)
    ]
    return {
        "status": status,
        "reason": reason,
        "points": points,
        "of": 6,
        "notebook": "07.ipynb",
        "remarks": list(remarks),
        "seconds": 1.0,
        "properties": properties,
    }


def result(student="anna", faults=(), **exercises):
    return {
        "student": student,
        "isolation": "bubblewrap",
        "faults": list(faults),
        "exercises": exercises,
    }


ABSENT = exercise("absent", 0, reason="no cell with the line")
STUB = exercise("not attempted", 0, reason="it raises NotImplementedError")
FAULT = exercise("fault", 0, reason="07.ipynb, cell 3, line 2: SyntaxError: invalid syntax")


def rows(*results):
    return list(csv.reader(io.StringIO(report.scores(results))))


# Scores


def test_a_row_for_each_student_with_the_exercises_that_anyone_handed_in():
    table = rows(
        result("ben", one=STUB, two=ABSENT, three=ABSENT),
        result("Anna", one=exercise(), two=ABSENT, three=exercise(points=6)),
        result(
            "carl", ["x.ipynb was not read: it is no file"], one=FAULT, two=ABSENT, three=ABSENT
        ),
        result("dora", ["the grader itself failed"]),
    )
    assert table == [
        ["student", "one", "three", "total", "of", "isolation", "remarks"],
        ["Anna", "3", "6", "9", "12", "bubblewrap", ""],
        ["ben", "0", "0", "0", "12", "bubblewrap", "one: it raises NotImplementedError"],
        [
            "carl",
            "0",
            "0",
            "0",
            "12",
            "bubblewrap",
            f"x.ipynb was not read: it is no file; one: {FAULT['reason']}",
        ],
        ["dora", "0", "0", "0", "12", "bubblewrap", "the grader itself failed"],
    ]


def test_a_file_without_any_answer_has_all_students():
    assert rows() == [["student", "total", "of", "isolation", "remarks"]]
    assert rows(result(one=ABSENT))[1] == ["anna", "0", "0", "bubblewrap", ""]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(1)", " =1", "\t=1"])
def test_no_field_is_a_formula(name):
    _, row = rows(result(report.plain(name), [report.plain(name)], one=exercise()))
    assert not row[0].lstrip().startswith(tuple("=+-@"))
    assert not row[-1].lstrip().startswith(tuple("=+-@"))


# Feedback


def page(found):
    return BeautifulSoup(report.feedback(found)[1], "html.parser")


def test_feedback_has_points_properties_hints_and_reasons_in_both_forms():
    for text in (
        report.feedback(result(one=exercise(), two=STUB))[0],
        page(result(one=exercise(), two=STUB)).get_text(" "),
    ):
        for words in (
            "Feedback for anna",
            "3 of 12 points",
            "hint for second",
            "1 of 2",
            "your function raised KeyError (cell 3, line 4)",
            "Not attempted: the function still raises NotImplementedError.",
            "needed",
            "From 07.ipynb.",
        ):
            assert words in text.replace("\\", ""), words
        assert "hint for first" not in text
        assert "DETAIL" not in text and "all tests passed" not in text


def test_feedback_says_what_was_needed_what_failed_to_load_and_what_is_absent():
    found = result(
        faults=["b.ipynb was not read: it is a symbolic link"],
        one=exercise(points=0, held=(False, True, True), remarks=["07.ipynb, cell 2: KeyError"]),
        two=FAULT,
        three=ABSENT,
        four=exercise(points=6, held=(True, True, True)),
    )
    for text in (report.feedback(found)[0].replace("\\", ""), page(found).get_text(" ")):
        assert "No points, since these are needed for any: a gate." in text
        assert "While it was loaded: 07.ipynb, cell 2: KeyError" in text
        assert "07.ipynb, cell 3, line 2: SyntaxError: invalid syntax" in text
        assert "Not handed in: three." in text and "6 of 18 points" in text
        assert "b.ipynb was not read: it is a symbolic link." in text
        assert text.count("Every property held.") == 1


def test_the_page_stands_alone_and_can_be_read_aloud():
    soup = page(result(one=exercise(), two=FAULT))
    assert soup.html["lang"] == "en" and soup.title.text == "Feedback for anna"
    assert soup.select("link, script, img, iframe, object") == []
    policy = soup.select_one("meta[http-equiv=Content-Security-Policy]")["content"]
    assert policy.startswith("default-src 'none'")
    assert "url(" not in soup.style.text and "@import" not in soup.style.text
    assert "prefers-color-scheme: dark" in soup.style.text
    marks = soup.select("[role=img]")
    assert {mark["aria-label"] for mark in marks} == {"held", "did not hold"}


EVIL = [
    *filter(None, map(report.plain, NAMES)),
    "<script>alert(1)</script>",
    "![x](http://example.org/x.png)",
    "</pre><img src=x onerror=alert(1)>",
    "```\n# heading",
    "# heading",
    "- item",
    "1. item",
    "a | b",
    "**bold** _soft_ ~~gone~~ `code`",
    "[x]: http://example.org",
    "&lt;b&gt;",
]


@pytest.mark.parametrize("text", EVIL)
def test_text_of_a_student_stays_text(text):
    text = report.plain(text)
    graded = exercise(remarks=[text])
    graded["notebook"] = text
    fault = copy.deepcopy(FAULT) | {"reason": text}
    plain_page = page(result(one=exercise(remarks=["x"]), two=FAULT, faults=["x"]))
    found = result(text, [text], one=graded, two=fault)
    soup = page(found)
    names = [tag.name for tag in soup.find_all()]
    assert names == [tag.name for tag in plain_page.find_all()]
    assert text in soup.title.text and text in soup.pre.text

    def kinds(source):
        """What Markdown sees, apart from text."""
        tokens = MarkdownIt("commonmark").enable("table").parse(source)
        inner = [child.type for token in tokens for child in token.children or ()]
        return [token.type for token in tokens] + [kind for kind in inner if kind != "text"]

    harmless = result("x", ["x"], one=exercise(remarks=["x"]), two=copy.deepcopy(FAULT))
    assert kinds(report.feedback(found)[0]) == kinds(report.feedback(harmless)[0])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "[2J]0;owned"),
        ("two\nlines\tand\r\nmore", "two lines and  more"),
        ("a\u202egnp\u200b\ufeff", "agnp"),
        ("\udcff\x00", ""),
        ("ä中😀", "ä中😀"),
        (None, "None"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_plain_text_has_one_line_and_nothing_unseen(text, shown):
    assert report.plain(text) == shown
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", report.plain(text))
