"""Figures that answer: a slider over pictures which the run has made.

The output carries its pictures and a few lines of script with it. So it works in Jupyter, in Colab
and in the built book, from disk too, and asks nobody for anything. Where scripts are off one
picture and its name stay.
"""

import base64
import html
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

HIGHEST = 16383  # pixels, of a WebP

_STYLE = """\
.segcourse-slider > div { width: 100%; overflow: hidden; }
.segcourse-slider img { display: block; width: 100%; height: auto; max-width: none; margin: 0; }
.segcourse-slider > p {
  display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .75rem; margin: .5rem 0;
}
.segcourse-slider label { display: flex; flex: 1 1 16rem; align-items: center; gap: .75rem; }
.segcourse-slider input {
  flex: 1; min-width: 8rem; min-height: 1.5rem; margin: 0; accent-color: var(--accent, auto);
}
.segcourse-slider input[hidden] { display: none; }
.segcourse-slider output { font-variant-numeric: tabular-nums; font-weight: 600; }
@media print { .segcourse-slider input { display: none; } }"""

# Starts every slider that stands above it and does not move yet, so that no id is needed. The
# names are spoken as the value of the slider; a live region would say them twice.
_SCRIPT = """\
for (const box of document.querySelectorAll(".segcourse-slider:not([data-ready])")) {
  const input = box.querySelector("input"), names = JSON.parse(box.dataset.names);
  const show = () => {
    const name = names[input.value];
    box.querySelector("img").style.transform =
      `translateY(${-100 * input.value / names.length}%)`;
    box.querySelector("output").value = name;
    input.setAttribute("aria-valuetext", name);
  };
  input.addEventListener("input", show);
  input.hidden = false;
  box.dataset.ready = "";
  show();
}"""


@dataclass(frozen=True)
class Slider:
    """Pictures of one size, of which a notebook shows one at a time. Made by `slider`.

    Attributes:
        names: what each picture is called.
        pictures: uint8 [N, H, W, 3].
        label: the quantity that the slider moves.
        alt: what the pictures show, in words.
        start: the index of the picture that shows first, and alone where scripts are off.
    """

    names: list[str]
    pictures: np.ndarray
    label: str
    alt: str
    start: int

    def __repr__(self) -> str:
        return f"Slider over {self.label}: {', '.join(self.names)}"

    def sprite(self) -> bytes:
        """All pictures under each other, as one WebP of at most 256 colours.

        It stores what the pictures share only once; with all colours it would be several times
        as large.
        """
        file = io.BytesIO()
        width = self.pictures.shape[2]
        pictures = Image.fromarray(self.pictures.reshape(-1, width, 3))
        few_colours = pictures.quantize(256, dither=Image.Dither.NONE).convert("RGB")
        few_colours.save(file, "WEBP", lossless=True, quality=100)
        return file.getvalue()

    def _repr_html_(self) -> str:
        count, height, width = self.pictures.shape[:3]
        name, room = html.escape(self.names[self.start]), max(map(len, self.names))
        source = base64.b64encode(self.sprite()).decode("ascii")
        return f"""\
<div class="segcourse-slider" data-names="{html.escape(json.dumps(self.names))}"
 style="max-width: {width}px">
<style>
{_STYLE}
</style>
<div style="aspect-ratio: {width} / {height}">
<img alt="{html.escape(self.alt)}" width="{width}" height="{count * height}"
 style="transform: translateY({-100 * self.start / count:g}%)"
 src="data:image/webp;base64,{source}"></div>
<p><label>{html.escape(self.label)}
<input type="range" min="0" max="{count - 1}" value="{self.start}" aria-valuetext="{name}"
 autocomplete="off" hidden></label>
<output aria-live="off" style="min-width: min(100%, {room}ch)">{name}</output></p>
<script>
{_SCRIPT}
</script>
</div>"""


def slider(
    frames: Mapping[str, Figure], *, label: str, alt: str, start: str | None = None
) -> Slider:
    """A slider over figures, each called by its key, which is shown and spoken beside it.

    Args:
        frames: at least two figures. Smaller ones get a white border at the right and below.
        label: the quantity that the slider moves, for example "training step".
        alt: what the pictures show, in words, and how it changes; for those who do not see it.
        start: the key of the figure that shows first, and alone where scripts are off or on
            paper. None means the last one.

    Raises TypeError for frames that are not figures, ValueError for fewer than two frames, for
    more than one picture can hold, a label or alt text without words, or a `start` that is no key.
    """
    for name, figure in frames.items():
        if not isinstance(figure, Figure):
            raise TypeError(
                f"frames: expected matplotlib figures, got {type(figure).__name__} for {name!r}"
            )
    if len(frames) < 2:
        raise ValueError(f"frames: expected at least 2, got {len(frames)}")
    for argument, text in (("label", label), ("alt", alt)):
        if not text.strip():
            raise ValueError(f"{argument}: expected words, got {text!r}")
    names = list(frames)
    if start is not None and start not in frames:
        raise ValueError(f"start: expected one of {', '.join(names)}; got {start!r}")
    drawn = [_draw(figure) for figure in frames.values()]
    height, width = (max(picture.shape[axis] for picture in drawn) for axis in (0, 1))
    if len(drawn) * height > HIGHEST:
        raise ValueError(
            f"frames: expected at most {HIGHEST} pixels under each other, "
            f"got {len(drawn)} of {height}"
        )
    pictures = np.full((len(drawn), height, width, 3), 255, np.uint8)
    for picture, place in zip(drawn, pictures, strict=True):
        place[: picture.shape[0], : picture.shape[1]] = picture
    return Slider(names, pictures, label, alt, names.index(start) if start else len(names) - 1)


def _draw(figure: Figure) -> np.ndarray:
    """The figure as uint8 [H, W, 3], with a little room, or a frame at its edge would be cut."""
    file = io.BytesIO()
    room = figure.bbox_inches.padded(0.02)
    figure.savefig(file, format="png", facecolor="white", bbox_inches=room)
    return np.asarray(Image.open(file).convert("RGB"))
