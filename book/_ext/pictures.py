"""The book's own pictures, all drawn from scenes and the palette; none is made by hand.

Cover, logo and icon are committed, since README and browser want files: `make pictures` draws
them anew, and a test holds the files to this code. Those of the landing page are drawn whenever
the book is built, by `look.py`.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from segcourse import metrics, plots
from segcourse.toyscape import CLASSES, Toyscape

STATIC = Path(__file__).parents[1] / "_static"
CARD = 640, 320  # pixels; shown at half the size
STEP = 384
INK, PAPER = (38, 38, 38), (255, 255, 255)
HIT, MISS, ALARM = (0, 158, 115), (0, 114, 178), (213, 94, 0)  # as chapter 00 paints them


def scene(index: int, size: int = 128) -> dict[str, torch.Tensor]:
    """A validation scene: its image [3, H, W], mask and instances [H, W]."""
    return Toyscape("val", size=size)[index]


def photo(image: torch.Tensor) -> Image.Image:
    """A picture of float [3, H, W] in 0..1."""
    return Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy())


def flat(mask: torch.Tensor) -> Image.Image:
    """A picture of labels int64 [H, W], in the palette."""
    return Image.fromarray(plots.colour_mask(mask))


def enlarge(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Pixels stay squares."""
    return picture.resize(size, Image.Resampling.NEAREST)


# Cover and logo: a scene dissolves into the tiles of its mask


def tiles(mask: np.ndarray, largest: int, least: int) -> Iterator[tuple[int, int, int]]:
    """Cut labels into squares (y, x, side) of one class each, or of the least side."""

    def cut(y: int, x: int, side: int) -> Iterator[tuple[int, int, int]]:
        part = mask[y : y + side, x : x + side]
        if side == least or (part == part[0, 0]).all():
            yield y, x, side
            return
        half = side // 2
        for dy, dx in ((0, 0), (0, half), (half, 0), (half, half)):
            yield from cut(y + dy, x + dx, half)

    height, width = mask.shape
    for y, x in np.ndindex(height // largest, width // largest):
        yield from cut(y * largest, x * largest, largest)


def dissolved(
    mask: np.ndarray, largest: int, least: int, begin: float, end: float
) -> Iterator[tuple[int, int, int, str]]:
    """The tiles (y, x, side, colour) that show the mask: none left of `begin`, all after `end`.

    `begin` and `end` are shares of the width; between them chance decides, always the same.
    """
    chance = np.random.default_rng(0)
    for y, x, side in tiles(mask, largest, least):
        share = ((x + side / 2) / mask.shape[1] - begin) / (end - begin)
        if chance.random() < share:
            part = mask[y : y + side, x : x + side]
            yield y, x, side, plots.PALETTE[np.bincount(part.ravel()).argmax()]


def cover() -> Image.Image:
    """The broad picture on top of the landing page."""
    zoom, top, height = 3, 146, 224
    whole = scene(66, size=512)
    rows = slice(top, top + height)
    picture = photo(whole["image"][:, rows])
    picture = picture.resize((512 * zoom, height * zoom), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    for y, x, side, colour in dissolved(whole["mask"][rows].numpy(), 32, 4, 0.32, 0.66):
        corner = x * zoom, y * zoom, (x + side) * zoom - 1, (y + side) * zoom - 1
        draw.rectangle(corner, fill=colour, outline=_towards_white(colour, 0.3))
    return picture


def logo(cells: int) -> str:
    """A ball that dissolves into its mask, as SVG of `cells` by `cells` squares."""
    whole = scene(66)
    image, mask = whole["image"][:, :64, 14:78], whole["mask"][:64, 14:78]
    colours = (F.avg_pool2d(image, 64 // cells) * 31).round().long() * 255 // 31
    shares = F.one_hot(mask).movedim(2, 0).float()
    labels = F.avg_pool2d(shares, 64 // cells).argmax(0).numpy()
    squares: dict[str, str] = {}
    for y, x in np.ndindex(cells, cells):
        colour = "#" + bytes(colours[:, y, x].tolist()).hex()
        # A little too large, so that no seam shows between two.
        squares[colour] = squares.get(colour, "") + f"M{x} {y}h1.1v1.1h-1.1z"
    lines = [f'<path fill="{colour}" d="{path}"/>' for colour, path in squares.items()]
    for y, x, side, colour in dissolved(labels, cells // 4, 1, 0.4, 0.65):
        lines.append(f'<path fill="#fff" d="M{x} {y}h{side}v{side}h-{side}z"/>')
        inner = f"{side - 0.16:g}"
        path = f"M{x + 0.08:g} {y + 0.08:g}h{inner}v{inner}h-{inner}z"
        lines.append(f'<path fill="{colour}" d="{path}"/>')
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {cells} {cells}" role="img">',
        "<title>A ball that dissolves into the tiles of its segmentation mask</title>",
        f'<clipPath id="c"><rect width="{cells}" height="{cells}" rx="{cells / 7:.1f}"/>'
        '</clipPath><g clip-path="url(#c)">',
        *lines,
        "</g></svg>\n",
    ])  # fmt: skip


def _towards_white(colour: str, share: float) -> tuple[int, ...]:
    return tuple(round(v + share * (255 - v)) for v in bytes.fromhex(colour[1:]))


# Cards: one picture for each chapter


def pixels_and_metrics() -> Image.Image:
    """Hits, misses and false alarms of a ring and its moved copy."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(128), indexing="ij")
    far = [((y - 31.5) ** 2 + (x - middle) ** 2).sqrt() for middle in (56, 72)]
    truth, found = ((r < 25) & (r > 11) for r in far)
    picture = np.full((64, 128, 3), 245, np.uint8)
    for part, colour in ((truth & found, HIT), (truth & ~found, MISS), (found & ~truth, ALARM)):
        picture[part.numpy()] = colour
    return enlarge(Image.fromarray(picture), CARD)


def fcn() -> Image.Image:
    """A mask through strides of 32, 16, 8 and 1, from left to right."""
    mask = scene(77)["mask"][46:110]
    shares = F.one_hot(mask, len(CLASSES)).movedim(2, 0).float()
    coarse = mask.clone()
    for part, stride in enumerate((32, 16, 8)):
        block = F.avg_pool2d(shares, stride).argmax(0)
        block = block.repeat_interleave(stride, 0).repeat_interleave(stride, 1)
        columns = slice(32 * part, 32 * (part + 1))
        coarse[:, columns] = block[:, columns]
    return enlarge(flat(coarse), CARD)


def unet() -> Image.Image:
    """Images get smaller on the way down, masks larger on the way up; lines join equals."""
    whole = scene(8)
    picture = Image.new("RGB", CARD, (245, 247, 247))
    draw = ImageDraw.Draw(picture)
    image, mask = photo(whole["image"]), flat(whole["mask"])
    for level, (side, x, y) in enumerate(((176, 24, 16), (100, 140, 132), (56, 224, 238))):
        right = CARD[0] - x - side
        draw.line((x + side, y + side / 2, right, y + side / 2), fill=(11, 110, 117), width=4)
        small = image.resize((side >> level, side >> level), Image.Resampling.BOX)
        picture.paste(enlarge(small, (side, side)), (x, y))
        small = mask.resize((side >> level, side >> level), Image.Resampling.NEAREST)
        picture.paste(enlarge(small, (side, side)), (right, y))
    return picture


def deeplab() -> Image.Image:
    """The taps of three 3x3 kernels with rates 1, 3 and 6 over a scene."""
    picture = photo(scene(8)["image"][:, 48:112]).convert("L").convert("RGB")
    picture = Image.blend(enlarge(picture, CARD), Image.new("RGB", CARD, PAPER), 0.45)
    draw = ImageDraw.Draw(picture)
    middle_x, middle_y, pixel = 320, 160, 20
    for rate, colour in ((6, ALARM), (3, HIT), (1, MISS)):
        for dy, dx in np.ndindex(3, 3):
            x = middle_x + (dx - 1) * rate * pixel
            y = middle_y + (dy - 1) * rate * pixel
            corner = x - 9, y - 9, x + 9, y + 9
            draw.rectangle(corner, fill=colour, outline=PAPER, width=2)
    return picture


def transformers() -> Image.Image:
    """An image cut into patches, and one patch that asks the others."""
    image = photo(scene(8)["image"][:, 40:104]).resize((512, 256), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", CARD, (245, 247, 247))
    draw = ImageDraw.Draw(picture)
    centre = {}
    for row, column in np.ndindex(4, 8):
        patch = image.crop((64 * column, 64 * row, 64 * column + 64, 64 * row + 64))
        x, y = 8 + 79 * column, 5 + 79 * row
        picture.paste(patch, (x, y))
        centre[row, column] = x + 32, y + 32
    asking = centre[2, 5]
    for other in ((0, 1), (0, 3), (1, 4), (3, 2), (3, 7), (1, 6)):
        draw.line((*asking, *centre[other]), fill=PAPER, width=5)
        draw.line((*asking, *centre[other]), fill=ALARM, width=3)
    x, y = asking
    draw.rectangle((x - 34, y - 34, x + 34, y + 34), outline=ALARM, width=5)
    return picture


def instances() -> Image.Image:
    """Objects, each in a colour of its own, with its box."""
    whole = scene(77)
    rows = slice(52, 116)
    picture = Image.fromarray(plots.colour_instances(whole["instances"][rows]))
    picture = enlarge(picture, CARD)
    draw = ImageDraw.Draw(picture)
    for x1, y1, x2, y2 in whole["boxes"].tolist():
        corner = 5 * x1, 5 * (y1 - 52), 5 * x2 - 1, 5 * (y2 - 52) - 1
        draw.rectangle(corner, outline=PAPER, width=2)
    return picture


def losses() -> Image.Image:
    """Cross entropy and focal losses over the probability of the true class."""
    picture = Image.new("RGB", (2 * CARD[0], 2 * CARD[1]), (245, 247, 247))
    draw = ImageDraw.Draw(picture)
    p = np.linspace(0.03, 1, 200)
    for gamma, colour in ((0, MISS), (1, HIT), (2, (230, 159, 0)), (5, ALARM)):
        loss = -((1 - p) ** gamma) * np.log(p)
        points = zip(80 + 1120 * p, 560 - 150 * loss, strict=True)
        draw.line([*points], fill=colour, width=10, joint="curve")
    draw.line((80, 20, 80, 563, 1220, 563), fill=INK, width=6)
    return picture.resize(CARD, Image.Resampling.LANCZOS)


def boundary_loss() -> Image.Image:
    """Rims of growing width inside and outside of an outline."""
    border = 16  # repeated pixels, since the border of an image counts as an outline
    water = (scene(66)["mask"][20:84] == CLASSES.index("water")).float()
    water = F.pad(water[None], 4 * [border], mode="replicate")[0] > 0
    picture = np.full((*water.shape, 3), 245, np.uint8)
    for width in range(12, 0, -2):
        rims = metrics.boundary_region(torch.stack([water, ~water]), width)
        for rim, colour in zip(rims, (MISS, ALARM), strict=True):
            picture[rim.numpy()] = [round(v + 0.08 * width * (245 - v)) for v in colour]
    return enlarge(Image.fromarray(picture[border:-border, border:-border]), CARD)


def multi_scale_tta() -> Image.Image:
    """One scene at three sizes, and mirrored."""
    picture = Image.new("RGB", CARD, (245, 247, 247))
    image = photo(scene(8)["image"])
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x = 24
    for view, side in ((image, 80), (image, 120), (image, 176), (mirrored, 176)):
        small = view.resize((side, side), Image.Resampling.LANCZOS)
        picture.paste(small, (x, 248 - side))
        x += side + 13
    return picture


def crf() -> Image.Image:
    """Labels with noise on the left, the image that could correct them on the right."""
    whole = scene(8)
    rows = slice(48, 112)
    mask = whole["mask"][rows]
    torch.manual_seed(0)
    noise = torch.rand(mask.shape) < 0.25
    noisy = torch.where(noise, torch.randint(len(CLASSES), mask.shape), mask)
    picture = enlarge(flat(noisy), CARD)
    image = photo(whole["image"][:, rows]).resize(CARD, Image.Resampling.LANCZOS)
    half = CARD[0] // 2
    picture.paste(image.crop((half, 0, *CARD)), (half, 0))
    ImageDraw.Draw(picture).line((half, 0, half, CARD[1]), fill=PAPER, width=4)
    return picture


# The ladder of tasks: four answers to one scene


def _ladder(answer: np.ndarray, segments: torch.Tensor | None = None) -> Image.Image:
    """An answer uint8 [H, W, 3] at the size of a step; a white line round each segment."""
    picture = enlarge(Image.fromarray(answer), (STEP, STEP))
    if segments is not None:
        large = np.asarray(enlarge(Image.fromarray(segments.byte().numpy()), (STEP, STEP)))
        edge = np.zeros(large.shape, bool)
        edge[1:] |= large[1:] != large[:-1]
        edge[:, 1:] |= large[:, 1:] != large[:, :-1]
        pixels = np.array(picture)
        pixels[edge] = PAPER
        picture = Image.fromarray(pixels)
    return picture


def classification() -> Image.Image:
    """The whole image, and one word for it."""
    image = photo(scene(77)["image"]).resize((STEP, STEP), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    font = ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight="bold")), 44)
    draw.rounded_rectangle((104, 24, 280, 96), 16, fill=PAPER)
    draw.text((192, 59), "car", fill=INK, font=font, anchor="mm")
    return image


def semantic() -> Image.Image:
    """A class for each pixel."""
    return _ladder(plots.colour_mask(scene(77)["mask"]))


def instance() -> Image.Image:
    """A mask for each object."""
    return _ladder(plots.colour_instances(scene(77)["instances"]))


def panoptic() -> Image.Image:
    """A class for each pixel and a line round each object."""
    whole = scene(77)
    answer = plots.overlay(whole["image"], whole["mask"], alpha=0.7)
    return _ladder(answer, whole["instances"] * 16 + whole["mask"])


DRAWN: tuple[Callable[[], Image.Image], ...] = (
    pixels_and_metrics,
    fcn,
    unet,
    deeplab,
    transformers,
    instances,
    losses,
    boundary_loss,
    multi_scale_tta,
    crf,
    classification,
    semantic,
    instance,
    panoptic,
)


def draw(folder: Path) -> None:
    """Draw the pictures of the landing page into a folder, each under its function's name."""
    folder.mkdir(parents=True, exist_ok=True)
    for function in DRAWN:
        function().save(folder / f"{function.__name__}.webp", quality=88, method=6)


def main() -> None:
    """Draw cover, logo and icon into `book/_static`."""
    cover().save(STATIC / "cover.webp", quality=82, method=6)
    (STATIC / "logo.svg").write_text(logo(32), encoding="utf-8")
    (STATIC / "favicon.svg").write_text(logo(16), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
