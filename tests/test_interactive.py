"""A slider holds the pictures it was given, in order, and is sound HTML without a script."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from segcourse import plots
from segcourse.interactive import slider
from segcourse.toyscape import Toyscape

ALT = "A square that turns from red to blue"
COLOURS = {"at 0": (255, 0, 0), "at 1 & 2": (0, 160, 0), "at 3": (0, 0, 255)}


def plain(colour, size=(2.0, 1.0)):
    """A figure of one colour, 100 pixels an inch."""
    figure = Figure(figsize=size, dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.imshow(np.full((1, 1, 3), colour, np.uint8), aspect="auto")
    return figure


def frames():
    return {name: plain(colour) for name, colour in COLOURS.items()}


def soup(shown):
    return BeautifulSoup(shown._repr_html_(), "html.parser")


def sprite(shown):
    kind, data = soup(shown).img["src"].split(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_the_sprite_has_every_picture_in_order():
    pixels = sprite(slider(frames(), label="time", alt=ALT))
    assert pixels.shape == (3 * 104, 204, 3)  # a border of two pixels on each side
    for place, colour in zip(pixels.reshape(3, 104, 204, 3), COLOURS.values(), strict=True):
        assert np.abs(place[2:-2, 2:-2].astype(int) - colour).max() <= 2


def test_names_label_and_alt_are_said():
    page = soup(slider(frames(), label="time <s>", alt=f'"{ALT}"'))
    assert json.loads(page.div["data-names"]) == list(COLOURS)
    assert page.label.get_text(strip=True) == "time <s>"
    assert page.label.input is not None and page.img["alt"] == f'"{ALT}"'


@pytest.mark.parametrize(("start", "place"), [(None, 2), ("at 0", 0), ("at 1 & 2", 1)])
def test_without_a_script_the_first_picture_stays_with_its_name_and_no_dead_slider(start, place):
    page = soup(slider(frames(), label="time", alt=ALT, start=start))
    page.script.extract()
    name = list(COLOURS)[place]
    assert page.output.text == page.input["aria-valuetext"] == name
    assert page.input["value"] == str(place) and page.input.has_attr("hidden")
    moved = float(page.img["style"].split("(")[1].split("%")[0])
    assert moved == pytest.approx(-100 * place / 3, abs=1e-3)


def test_the_place_of_the_picture_is_known_before_it_loads():
    page = soup(slider(frames(), label="time", alt=ALT))
    assert (page.img["width"], page.img["height"]) == ("204", "312")
    assert "aspect-ratio: 204 / 104" in page.img.parent["style"]


def test_two_sliders_share_no_id_and_no_name():
    both = BeautifulSoup(2 * slider(frames(), label="time", alt=ALT)._repr_html_(), "html.parser")
    assert both.select("[id], [name]") == []


def test_it_asks_nobody_for_anything():
    text = slider(frames(), label="time", alt=ALT)._repr_html_()
    assert "http" not in text and "//" not in text.replace(text.split("base64,")[1], "")


def test_smaller_figures_get_a_white_border():
    tall = {"a": plain((255, 0, 0)), "b": plain((0, 0, 255), (1.0, 2.0))}
    first, second = sprite(slider(tall, label="x", alt=ALT)).reshape(2, 204, 204, 3)
    assert (first[2:102, 2:202] == (255, 0, 0)).all() and (first[104:] == 255).all()
    assert (second[2:202, 2:102] == (0, 0, 255)).all() and (second[:, 104:] == 255).all()


def masks_beside(pictures):
    """A slider over eight masks of the course, each beside the same pictures."""
    masks = {str(i): Toyscape("val")[i]["mask"][None] for i in range(8)}
    figures = {i: plots.show_columns(pictures | {"mask": mask}) for i, mask in masks.items()}
    return slider(figures, label="i", alt=ALT), torch.cat([*masks.values()])


def test_masks_keep_the_palette():
    shown, masks = masks_beside({})
    colours = {tuple(colour) for colour in np.unique(sprite(shown).reshape(-1, 3), axis=0)}
    for c in masks.unique().tolist():
        wanted = np.array(tuple(bytes.fromhex(plots.PALETTE[c][1:])), dtype=int)
        assert min(np.abs(wanted - colour).max() for colour in colours) <= 3


def test_photographs_stay_small():
    """Eight frames with three of them weigh less than 80 kB, for a page holds many figures."""
    photographs = {f"image {i}": Toyscape("val")[i]["image"][None] for i in range(3)}
    assert len(masks_beside(photographs)[0].sprite()) < 80_000


def test_what_frames_share_is_stored_once():
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)

    def noisy(mark):
        figure = plain((0, 0, 0))
        figure.axes[0].imshow(noise, extent=(0, 200, 0, 100), interpolation="nearest")
        figure.axes[0].add_patch(Rectangle((mark, 0), 10, 10))
        return figure

    two, six = (
        len(slider({str(i): noisy(20 * i) for i in range(n)}, label="i", alt=ALT).sprite())
        for n in (2, 6)
    )
    assert two > noise.size / 4 and six < 1.5 * two


def test_in_a_terminal_it_says_what_it_holds():
    assert repr(slider(frames(), label="time", alt=ALT)) == "Slider over time: " + ", ".join(
        COLOURS
    )


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"frames": {"a": plain((0, 0, 0))}}, ValueError, "frames: expected at least 2, got 1"),
        ({"frames": {"a": np.zeros((2, 2, 3)), "b": None}}, TypeError, "got ndarray for 'a'"),
        (
            {"frames": {str(i): plain((0, 0, 0), (0.1, 41.0)) for i in range(4)}},
            ValueError,
            "frames: expected at most 16383 pixels under each other, got 4 of 4104",
        ),
        ({"label": " "}, ValueError, "label: expected words"),
        ({"alt": ""}, ValueError, "alt: expected words"),
        ({"start": "at 2"}, ValueError, "start: expected one of at 0, at 1 & 2, at 3; got 'at 2'"),
    ],
)
def test_wrong_input_is_named(change, error, words):
    settings = {"frames": frames(), "label": "time", "alt": ALT} | change
    with pytest.raises(error, match=words):
        slider(settings.pop("frames"), **settings)
