"""Pictures are what the code draws, pages are light and stand still, colours can be read."""

import re
import sys

import numpy as np
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT
from PIL import Image

from segcourse import plots

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import pictures  # noqa: E402  lies beside the book's extensions

STATIC = ROOT / "book" / "_static"


def pixels(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def test_the_committed_cover_is_what_the_code_draws():
    drawn = pictures.cover()
    kept = Image.open(STATIC / "cover.webp")
    assert kept.size == drawn.size and (STATIC / "cover.webp").stat().st_size < 200_000
    assert np.abs(pixels(kept) - pixels(drawn)).mean() < 4  # what the compression changes
    other = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.abs(pixels(other) - pixels(drawn)).mean() > 40


@pytest.mark.parametrize(("name", "cells"), [("logo.svg", 32), ("favicon.svg", 16)])
def test_the_committed_logo_is_what_the_code_draws(name, cells):
    assert (STATIC / name).read_text(encoding="utf-8") == pictures.logo(cells)


def test_tiles_cover_a_mask_once_and_hold_one_class_each():
    mask = np.zeros((32, 64), np.int64)
    mask[5:, 20:] = 1
    mask[9, 50] = 2
    covered = np.zeros(mask.shape, int)
    for y, x, side in pictures.tiles(mask, 16, 2):
        part = mask[y : y + side, x : x + side]
        covered[y : y + side, x : x + side] += 1
        assert side == 2 or len(np.unique(part)) == 1
    assert (covered == 1).all()


def test_the_mask_shows_on_the_right_only():
    mask = np.random.default_rng(1).integers(0, 4, (32, 64))
    shown = np.zeros(mask.shape, bool)
    for y, x, side, colour in pictures.dissolved(mask, 16, 1, 0.25, 0.75):
        assert colour == plots.PALETTE[mask[y, x]]
        shown[y : y + side, x : x + side] = True
    assert not shown[:, :16].any() and shown[:, 48:].all()
    assert 0.3 < shown[:, 16:48].mean() < 0.7


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pictures.draw(folder)
    return {path.stem: path for path in folder.iterdir()}


def test_the_pictures_of_the_landing_page_are_light_and_differ(drawn):
    assert sorted(drawn) == sorted(function.__name__ for function in pictures.DRAWN)
    assert sum(path.stat().st_size for path in drawn.values()) < 400_000
    for name, path in drawn.items():
        picture = pixels(Image.open(path))
        assert picture.shape in [(320, 640, 3), (384, 384, 3)] and picture.std() > 10, name
    assert len({path.read_bytes() for path in drawn.values()}) == len(drawn)


def test_drawing_twice_gives_the_same_bytes(drawn, tmp_path):
    pictures.draw(tmp_path)
    assert {p.stem: p.read_bytes() for p in tmp_path.iterdir()} == {
        name: path.read_bytes() for name, path in drawn.items()
    }


# The landing page as it is built


@pytest.fixture(scope="module")
def landing(html):
    return BeautifulSoup((html / "book" / "intro.html").read_text("utf-8"), "html.parser")


def test_the_landing_page_shows_every_picture_that_is_drawn(landing):
    shown = {img["src"].rsplit("/", 1)[-1] for img in landing.select("article img")}
    assert {f"{function.__name__}.webp" for function in pictures.DRAWN} <= shown
    assert "cover.webp" in shown


def test_a_gallery_shows_the_very_figures_it_links_to(html, landing):
    links = landing.select(".gallery a")
    assert len(links) >= 6
    for link in links:
        path, name = link["href"].split("#")
        page = BeautifulSoup((html / "book" / path).read_text("utf-8"), "html.parser")
        figure = page.find(id=name).find("img")
        assert link.find("img")["src"] == figure["src"]
        assert link.find("img")["alt"] == figure["alt"]


def test_no_picture_of_a_page_moves_the_text_when_it_comes(html):
    for path in html.rglob("*.html"):
        page = BeautifulSoup(path.read_text("utf-8"), "html.parser")
        images = [i for i in page.select("article img") if not i["src"].startswith("data:")]
        for place, img in enumerate(images):
            size = Image.open(path.parent / img["src"]).size
            assert (int(img["width"]), int(img["height"])) == size, (path.name, img["src"])
            assert (img.get("loading") == "lazy") == (place > 0), (path.name, img["src"])


# Colours


def luminance(colour):
    """Relative luminance as WCAG 2 defines it."""
    linear = [
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
        for v in (byte / 255 for byte in bytes.fromhex(colour.lstrip("#")))
    ]
    return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_wcag_does():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_of_text_can_be_read(mode):
    css = (STATIC / "custom.css").read_text(encoding="utf-8")
    block = re.search(rf'^html\[data-theme="{mode}"\] {{(.*?)^}}', css, re.S | re.M)[1]
    colours = {"pst-color-background": "#ffffff"}  # the theme's own, in light
    colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    for text, ground in [
        ("accent", "pst-color-background"),
        ("accent", "accent-soft"),
        ("accent-text", "accent"),
        ("pst-color-heading", "pst-color-background"),
        ("pst-color-text-base", "pst-color-background"),
        ("pst-color-text-base", "accent-soft"),
        ("pst-color-text-base", "output"),
        ("pst-color-link-hover", "pst-color-background"),
        ("pst-color-inline-code", "pst-color-surface"),
    ]:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
