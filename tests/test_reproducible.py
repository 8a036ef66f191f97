"""Two runs of a chapter on one machine show the same numbers and the same figures."""

import re

import pytest
from conftest import committed, in_the_book

SECONDS = re.compile(r"\d+(\.\d+)? (s|ms)\b")  # only times may differ


def shown(notebook):
    """All that a notebook prints, tabulates and draws, without times."""
    found = []
    for cell in notebook.cells:
        # What one cell prints may come in one piece or in several.
        outputs = cell.get("outputs", [])
        text = "".join(
            o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs
        )
        images = [o.get("data", {}).get("image/png", "") for o in outputs]
        found.append((cell.id, SECONDS.sub("TIME", text), "".join(images)))
    return found


def test_only_times_are_masked():
    assert SECONDS.sub("TIME", "mIoU 57.1 after 12.3 s, 64 px") == "mIoU 57.1 after TIME, 64 px"


@pytest.mark.slow
def test_a_second_run_of_chapter_01_shows_the_same(execute):
    again = committed("01_fcn")
    execute(again)
    assert shown(again) == shown(in_the_book("01_fcn"))
