"""Sliders in a real browser, on a page of their own and in the built book, opened from disk."""

import io

import numpy as np
import pytest
from conftest import NOTEBOOKS, in_the_book
from PIL import Image
from test_interactive import ALT, COLOURS, frames

from segcourse.interactive import slider

BOX = ".segcourse-slider"


@pytest.fixture
def open_page(browser):
    """Open a file in a fresh context; at the end nothing was asked for and no error logged."""
    contexts, asked, errors = [], [], []

    def opened(path, **settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert errors == []


@pytest.fixture
def two(tmp_path):
    """A page with two sliders: one starts at its end, one at its beginning."""
    first = slider(frames(), label="first", alt=ALT)
    second = slider(frames(), label="second", alt=ALT, start="at 0")
    path = tmp_path / "two.html"
    path.write_text(
        f"<!doctype html><title>Two</title>{first._repr_html_()}{second._repr_html_()}", "utf-8"
    )
    return path


def seen(page, index):
    """The colour in the middle of what a slider shows."""
    picture = page.locator(f"{BOX} > div").nth(index).screenshot()
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    return pixels[pixels.shape[0] // 2, pixels.shape[1] // 2]


def shows(page, index, name):
    """Does a slider show this picture, write its name and tell it to a screen reader?"""
    box = page.locator(BOX).nth(index)
    near = np.abs(seen(page, index).astype(int) - COLOURS[name]).max() <= 3
    spoken = box.locator("input").get_attribute("aria-valuetext")
    return bool(near) and box.locator("output").inner_text() == spoken == name


def test_keys_move_one_slider_and_leave_the_other_alone(two, open_page):
    page = open_page(two)
    assert shows(page, 0, "at 3") and shows(page, 1, "at 0")
    page.keyboard.press("Tab")
    for key, name in [
        ("ArrowLeft", "at 1 & 2"),
        ("Home", "at 0"),
        ("ArrowLeft", "at 0"),
        ("ArrowRight", "at 1 & 2"),
        ("End", "at 3"),
    ]:
        page.keyboard.press(key)
        assert shows(page, 0, name) and shows(page, 1, "at 0")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowUp")
    assert shows(page, 0, "at 3") and shows(page, 1, "at 1 & 2")


def test_a_screen_reader_finds_a_named_slider_and_a_described_picture(two, open_page):
    page = open_page(two)
    for name in ("first", "second"):
        assert page.get_by_role("slider", name=name).count() == 1
    assert page.get_by_role("img", name=ALT).count() == 2


def test_the_mouse_moves_it(two, open_page):
    page = open_page(two)
    knob = page.get_by_role("slider", name="first").bounding_box()
    page.mouse.click(knob["x"] + 2, knob["y"] + knob["height"] / 2)
    assert shows(page, 0, "at 0")


def test_without_scripts_a_picture_and_its_name_stay_and_no_dead_slider(two, open_page):
    page = open_page(two, java_script_enabled=False)
    assert np.abs(seen(page, 0).astype(int) - COLOURS["at 3"]).max() <= 3
    assert np.abs(seen(page, 1).astype(int) - COLOURS["at 0"]).max() <= 3
    assert page.locator(f"{BOX} output").all_inner_texts() == ["at 3", "at 0"]
    assert page.get_by_role("slider").count() == 0


def test_on_paper_the_chosen_picture_stays_and_the_slider_goes(two, open_page):
    page = open_page(two)
    page.get_by_role("slider", name="first").press("Home")
    page.emulate_media(media="print")
    assert np.abs(seen(page, 0).astype(int) - COLOURS["at 0"]).max() <= 3
    assert page.locator(f"{BOX} input").first.is_hidden()
    assert page.locator(f"{BOX} output").first.is_visible()


def test_a_page_that_puts_the_output_in_later_starts_it_as_well(two, open_page, tmp_path):
    """As notebooks do: the HTML arrives as text, and its scripts are run again."""
    html = slider(frames(), label="late", alt=ALT)._repr_html_()
    page = open_page(two)
    page.evaluate(
        """text => {
          const place = document.body.appendChild(document.createElement("div"));
          place.innerHTML = text;
          for (const old of place.querySelectorAll("script")) {
            const script = document.createElement("script");
            script.textContent = old.textContent;
            old.replaceWith(script);
          }
        }""",
        html,
    )
    page.get_by_role("slider", name="late").press("Home")
    assert shows(page, 2, "at 0") and shows(page, 0, "at 3")


def chapters_with_sliders():
    """How many sliders each executed notebook shows."""
    found = {}
    for name in NOTEBOOKS:
        outputs = [o for c in in_the_book(name).cells for o in c.get("outputs", [])]
        html = "".join(o.get("data", {}).get("text/html", "") for o in outputs)
        if count := html.count('<div class="segcourse-slider"'):
            found[name] = count
    return found


@pytest.mark.parametrize("width", [1280, 390])
def test_every_slider_of_the_book_moves_and_fits(html, open_page, width):
    found = chapters_with_sliders()
    assert sum(found.values()) >= 4
    for name, count in found.items():
        page = open_page(
            html / "notebooks" / f"{name}.html", viewport={"width": width, "height": 844}
        )
        assert page.locator(BOX).count() == count
        for box in page.locator(BOX).all():
            frame, knob = box.locator("> div"), box.locator("input")
            knob.press("Home")
            first, name_first = frame.screenshot(), box.locator("output").inner_text()
            knob.press("End")
            assert frame.screenshot() != first
            assert box.locator("output").inner_text() != name_first
            assert box.bounding_box()["width"] <= width
            assert knob.bounding_box()["height"] >= 24
        assert page.evaluate("document.documentElement.scrollWidth") <= width
