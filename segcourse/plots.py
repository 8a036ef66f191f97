"""Every figure and table of the course, in one style and with one palette.

A function that draws returns a matplotlib `Figure` and has already taken it out of pyplot's list
of open figures. So a notebook shows the figure once, where the call is the last expression of a
cell; `display(figure)` shows it anywhere else, and `figure.savefig(...)` works as always. No
function needs a display, and none changes the matplotlib settings of the caller.
"""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from segcourse.calibration import Calibration
from segcourse.metrics import ConfusionMatrix, Scores
from segcourse.toyscape import CLASSES, VOID

# One colour a class, in the order of CLASSES. Every two are at least CIEDE2000 11 apart, also as
# seen with full protanopia, deuteranopia or tritanopia (simulation of Machado et al., 2009).
PALETTE = (
    "#8fcbf5",  # sky
    "#93c673",  # grass
    "#8b8790",  # road
    "#10479f",  # water
    "#13694d",  # tree
    "#db231d",  # car
    "#f0950f",  # ball
    "#a853c2",  # ring
    "#2a1a16",  # pole
    "#ffe14a",  # star
)
VOID_COLOUR = "#ffffff"
ERROR_COLOUR = "#c4006a"

# For models and runs, which have no class colour: Okabe and Ito's set without its yellow.
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")

_INK, _FRAME, _GRID = "#262626", "#c8c8c8", "#e6e6e6"
_ON_A_LINE = {
    "ha": "center",
    "va": "center",
    "fontsize": 9,
    "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5},
}
_GAP = 0.05  # inches between two pictures
_WIDTH = 4 * 1.6 + 3 * _GAP  # inches: four pictures, each pixel of 64 on 3 of the screen

_STYLE = {
    "figure.dpi": 120,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.titlesize": 11,
    "axes.titlepad": 7,
    "axes.labelsize": 10.5,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FRAME,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _FRAME,
    "ytick.color": _FRAME,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 10,
}


@contextmanager
def use_style() -> Iterator[None]:
    """The course's style, for a figure of your own: `with use_style(): ...`.

    It also works as a decorator. The caller's settings come back at the end.
    """
    # Not rc_context, which restores every setting: a notebook's backend is loaded with the first
    # figure and switches `interactive` on, and must find it on afterwards.
    before = {name: rcParams[name] for name in _STYLE}
    rcParams.update(_STYLE)
    try:
        yield
    finally:
        rcParams.update(before)


# Pictures of labels


def colour_mask(mask: Tensor) -> np.ndarray:
    """Paint labels with the palette: int64 [..., H, W] to uint8 [..., H, W, 3]. Void is white.

    Raises TypeError for labels that are not int64, ValueError for labels that are not classes.
    """
    labels = _labels("mask", mask)
    wrong = labels[((labels < 0) | (labels >= len(PALETTE))) & (labels != VOID)]
    if wrong.size:
        raise ValueError(
            f"mask: labels must lie in 0..{len(PALETTE) - 1} or be {VOID} (void); found {wrong[0]}"
        )
    colours = np.full((VOID + 1, 3), _rgb(VOID_COLOUR))
    colours[: len(PALETTE)] = [_rgb(colour) for colour in PALETTE]
    return colours[labels]


def colour_instances(instances: Tensor) -> np.ndarray:
    """Paint instance numbers: int64 [..., H, W] to uint8 [..., H, W, 3]. 0, no instance, is dark.

    A number has the same colour in every picture.
    """
    numbers = _labels("instances", instances)
    # Steps of the golden ratio never come back near a hue that was just used.
    hue = numbers * 0.618034 % 1
    saturation = np.array([0.54, 0.71, 0.79])[numbers % 3]
    value = np.array([0.96, 0.57, 0.78])[numbers % 3]
    colours = _bytes(hsv_to_rgb(np.stack([hue, saturation, value], axis=-1)))
    colours[numbers == 0] = 30
    return colours


def overlay(image: Tensor, mask: Tensor, alpha: float = 0.55) -> np.ndarray:
    """Lay the class colours over a picture; `alpha` is the share of the class colour.

    `image` is float [3, H, W] in 0..1, `mask` int64 [H, W]; returns uint8 [H, W, 3]. Where the
    mask is void the picture stays as it is.
    """
    picture = _picture("image", image)
    share = np.where(_labels("mask", mask, picture) == VOID, 0.0, alpha)[..., None]
    return _bytes(((1 - share) * picture + share * colour_mask(mask)) / 255)


def colour_errors(image: Tensor, truth: Tensor, prediction: Tensor) -> np.ndarray:
    """Paint wrong pixels in one strong colour over a pale grey picture.

    `image` is float [3, H, W] in 0..1, `truth` and `prediction` int64 [H, W]; returns uint8
    [H, W, 3]. Void pixels of the truth are never wrong.
    """
    picture = _picture("image", image)
    truth = _labels("truth", truth, picture)
    prediction = _labels("prediction", prediction, picture)
    grey = picture.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    pale = _bytes(0.45 + 0.5 * grey / 255)
    pale[(truth != prediction) & (truth != VOID)] = _rgb(ERROR_COLOUR)
    return pale


@use_style()
def show_columns(
    columns: Mapping[str, Sequence[Tensor] | Tensor], *, classes: Sequence[int] | None = None
) -> Figure:
    """Pictures in a grid: one column for each name, one row for each scene.

    A column holds N images (float [3, H, W] in 0..1), N label maps (int64 [H, W], painted with
    the palette) or N finished pictures (uint8 [H, W, 3]). Under the grid `classes` are named;
    None means those that appear in the label maps.
    """
    items = [_array(item) for column in columns.values() for item in column]
    seen = [np.unique(item) for item in items if item.dtype == np.int64]
    seen = seen if classes is None else [np.array(classes)]
    pictures = {
        name: [_picture(name, item) for item in column] for name, column in columns.items()
    }
    return _close(_grid(pictures, seen))


def show_rows(
    images: Tensor,
    truth: Tensor,
    predictions: Tensor | Mapping[str, Tensor],
    *,
    errors: bool = True,
) -> Figure:
    """One row a scene: image, truth, prediction and errors, with the classes named below.

    Args:
        images: float [N, 3, H, W] in 0..1.
        truth: int64 [N, H, W].
        predictions: int64 [N, H, W], or one such tensor for each model's name.
        errors: show the wrong pixels beside each prediction.
    """
    one = not isinstance(predictions, Mapping)
    columns = {"image": images, "truth": truth}
    for name, prediction in ({"prediction": predictions} if one else predictions).items():
        if prediction.shape != truth.shape:
            raise ValueError(
                f"predictions: expected the shape of truth, {list(truth.shape)}, "
                f"got {list(prediction.shape)}"
            )
        columns[name] = prediction
        if errors:
            title = "errors" if one else f"{name}: errors"
            scenes = zip(images, truth, prediction, strict=False)
            columns[title] = [colour_errors(*scene) for scene in scenes]
    return show_columns(columns)


@use_style()
def show_scene(image: Tensor, mask: Tensor, instances: Tensor) -> Figure:
    """Four views of one scene: image, classes, instances, and both laid over the image.

    `image` is float [3, H, W] in 0..1; `mask` and `instances` are int64 [H, W].
    """
    views = {
        "image": [_picture("image", image)],
        "classes": [colour_mask(mask)],
        "instances": [colour_instances(instances)],
        "panoptic": [overlay(image, mask)],
    }
    _labels("instances", instances, views["image"][0])  # of the size of the image
    figure = _grid(views, [np.unique(_labels("mask", mask))])
    _outline(figure.axes[-1], _labels("mask", mask) + 256 * _labels("instances", instances))
    return _close(figure)


@use_style()
def show_segments(images: Tensor, segments: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """One row a scene: the image, then the classes laid over it with an outline of each segment.

    Args:
        images: float [N, 3, H, W] in 0..1.
        segments: for each title the classes and the ids of the segments, int64 [N, H, W] both.
            Where the class is void, the image stays as it is, and the legend leaves it out.
    """
    columns = {"image": [_picture("images", image) for image in images]}
    for title, (classes, _) in segments.items():
        columns[title] = [overlay(*pair) for pair in zip(images, classes, strict=True)]
    seen = [np.unique(_array(classes)) for classes, _ in segments.values()]
    figure = _grid(columns, [labels[labels != VOID] for labels in seen])
    outlined = np.array(figure.axes).reshape(len(images), -1)[:, 1:]
    for column, (_, ids) in zip(outlined.T, segments.values(), strict=True):
        for ax, segment in zip(column, ids, strict=True):
            _outline(ax, _labels("segments", segment, columns["image"][0]))
    return _close(figure)


@use_style()
def show_boxes(
    views: Mapping[str, tuple[Tensor, Tensor, Tensor | None]],
    *,
    classes: Sequence[int] | None = None,
) -> Figure:
    """Boxes drawn on images, one picture for each title, all of one size.

    Each view is an image float [3, H, W] in 0..1, boxes [N, 4] as x1, y1, x2, y2 in pixels, and
    their classes int64 [N] for the colours, or None for boxes of one colour. Under the pictures
    `classes` are named; None means those of the boxes.
    """
    pictures = {title: [_picture("views", image)] for title, (image, _, _) in views.items()}
    seen = [np.unique(_array(labels)) for _, _, labels in views.values() if labels is not None]
    figure = _grid(pictures, seen if classes is None else [np.array(classes)])
    for ax, (_, boxes, labels) in zip(figure.axes, views.values(), strict=True):
        colours = ["white"] * len(boxes) if labels is None else [PALETTE[i] for i in labels]
        for (x1, y1, x2, y2), colour in zip(_array(boxes) - 0.5, colours, strict=True):
            for line, width in (("black", 2.6), (colour, 1.3)):
                ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=line, lw=width))
    return _close(figure)


def _grid(columns: Mapping[str, list[np.ndarray]], seen: list[np.ndarray]) -> Figure:
    """Draw pictures in rows and columns, and a legend of the classes in `seen` under them."""
    sizes = {name: len(column) for name, column in columns.items()}
    rows = max(sizes.values(), default=0)
    if rows == 0 or min(sizes.values()) != rows:
        raise ValueError(f"columns: expected the same number of scenes in each, got {sizes}")
    shapes = {picture.shape for pictures in columns.values() for picture in pictures}
    if len(shapes) > 1:
        raise ValueError(f"columns: expected pictures of one size, got {sorted(shapes)}")
    legend = _class_legend(seen)
    legend_rows = math.ceil(len(legend) / 6)
    legend_columns = math.ceil(len(legend) / max(1, legend_rows))

    height, width = next(iter(columns.values()))[0].shape[:2]
    cell = min(2.4, (_WIDTH - _GAP * (len(columns) - 1)) / len(columns))
    cell_height = cell * height / width
    total_width = cell * len(columns) + _GAP * (len(columns) - 1)
    title, foot = 0.3, 0.12 + 0.22 * legend_rows
    total_height = title + cell_height * rows + _GAP * (rows - 1) + foot

    figure = plt.figure(figsize=(total_width, total_height))
    axes = figure.subplots(
        rows,
        len(columns),
        squeeze=False,
        gridspec_kw={
            "left": 0,
            "right": 1,
            "top": 1 - title / total_height,
            "bottom": foot / total_height,
            "wspace": _GAP / cell,
            "hspace": _GAP / cell_height,
        },
    )
    for column, (name, pictures) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name)
        for ax, picture in zip(column, pictures, strict=True):
            ax.imshow(picture)
            _frame(ax)
    if legend:
        figure.legend(
            # matplotlib fills a legend column by column; people read it row by row.
            handles=[patch for i in range(legend_columns) for patch in legend[i::legend_columns]],
            loc="upper center",
            bbox_to_anchor=(0.5, (foot - 0.12) / total_height),
            ncols=legend_columns,
            borderaxespad=0,
            borderpad=0,
            handlelength=1,
            handleheight=1,
            handletextpad=0.5,
            columnspacing=1.4,
        )
    return figure


def _class_legend(seen: list[np.ndarray]) -> list[Patch]:
    present = sorted({int(label) for labels in seen for label in labels})
    names, colours = {VOID: "void"}, {VOID: VOID_COLOUR}
    names.update(enumerate(CLASSES))
    colours.update(enumerate(PALETTE))
    return [
        Patch(facecolor=colours[label], edgecolor=_FRAME, linewidth=0.6, label=names[label])
        for label in present
    ]


def _frame(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, linewidth=0.6)


def _outline(ax: Axes, segments: np.ndarray) -> None:
    """Draw a white line along the pixel edges between two different segments of [H, W]."""
    y, x = np.nonzero(segments[1:] != segments[:-1])
    level = np.stack([np.stack([x - 0.5, y + 0.5], 1), np.stack([x + 0.5, y + 0.5], 1)], 1)
    y, x = np.nonzero(segments[:, 1:] != segments[:, :-1])
    upright = np.stack([np.stack([x + 0.5, y - 0.5], 1), np.stack([x + 0.5, y + 0.5], 1)], 1)
    edges = np.concatenate([level, upright])
    ax.add_collection(LineCollection(edges, colors="white", linewidths=0.9, capstyle="round"))


# Charts


@use_style()
def curves(
    series: Mapping[str, Sequence[float]],
    *,
    x: Sequence[float] | None = None,
    xlabel: str = "step",
    ylabel: str = "",
    title: str = "",
    smooth: int = 1,
    spread: Mapping[str, Sequence[float]] | None = None,
    log_x: bool = False,
) -> Figure:
    """Lines, each named at its right end.

    Args:
        series: one to seven curves; the key is the name.
        x: where the points lie, for all curves. None counts 1, 2, 3, ...
        smooth: show the running mean of so many points, over the points themselves in a faint
            line.
        spread: half the height of a band round each curve, for those named in it; not with
            `smooth`.
        log_x: a logarithmic axis, with a tick at each x.
    """
    spread = spread or {}
    if not 1 <= len(series) <= len(LINE_COLOURS):
        raise ValueError(f"series: expected 1 to {len(LINE_COLOURS)} curves, got {len(series)}")
    lines = {}
    for name, values in series.items():
        values = np.asarray(values, dtype=float)
        where = np.arange(1, len(values) + 1) if x is None else np.asarray(x, dtype=float)
        if values.ndim != 1 or len(values) < max(1, smooth) or len(where) != len(values):
            raise ValueError(
                f"series: expected at least {max(1, smooth)} values and one x for each, got "
                f"shape {list(values.shape)} and {len(where)} x for {name!r}"
            )
        lines[name] = where, values
    if log_x and min(where.min() for where, _ in lines.values()) <= 0:
        raise ValueError("x: expected numbers above 0 for a logarithmic axis")
    for name, half in spread.items():
        if smooth > 1 or name not in lines or len(half) != len(lines[name][1]):
            raise ValueError(
                "spread: expected a number for each value of a curve that is not smoothed, "
                f"got {len(half)} for {name!r}"
            )

    figure, ax = plt.subplots(figsize=(_WIDTH, 3.4), layout="constrained")
    ends = []
    for (name, (where, values)), colour in zip(lines.items(), LINE_COLOURS, strict=False):
        if smooth > 1:
            ax.plot(where, values, color=colour, alpha=0.22, linewidth=0.8)
            values = np.convolve(values, np.full(smooth, 1 / smooth), mode="valid")
            where = where[smooth - 1 :]
        ax.plot(where, values, color=colour, marker="o" if len(values) == 1 or log_x else None)
        if name in spread:
            half = np.asarray(spread[name], dtype=float)
            ax.fill_between(where, values - half, values + half, color=colour, alpha=0.18, lw=0)
        ends.append((name, colour, where[-1], values[-1]))
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    ax.grid(axis="y")
    ax.margins(x=0.01)
    if log_x:
        ax.set_xscale("log")
        ax.set_xticks(where, [f"{tick:g}" for tick in where])
        ax.minorticks_off()
    _name_ends(ax, ends)
    return _close(figure)


def _name_ends(ax: Axes, ends: list[tuple[str, str, float, float]]) -> None:
    """Write each name beside the end of its line, moved where two would overlap.

    No name lies below the axis, where the ticks are.
    """
    ax.figure.draw_without_rendering()  # The scale of the axes is final only after a layout.
    points = 72 / ax.figure.dpi
    at = [ax.transData.transform((x, y))[1] * points for _, _, x, y in ends]
    order = np.argsort(at)
    moved = np.array(at)[order]
    lowest = ax.bbox.y0 * points + 4
    for _ in range(100):
        moved[0] = max(moved[0], lowest)
        for i in range(1, len(moved)):
            overlap = max(0.0, 13 - (moved[i] - moved[i - 1]))
            moved[i - 1 : i + 1] += -overlap / 2, overlap / 2
    right = max(x for _, _, x, _ in ends)
    for i, height in zip(order, moved, strict=True):
        name, colour, _, y = ends[i]
        ax.annotate(
            name,
            xy=(right, y),
            xytext=(8, height - at[i]),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


@use_style()
def confusion_matrix(
    matrix: Tensor | ConfusionMatrix, class_names: Sequence[str] = CLASSES
) -> Figure:
    """For each true class (row), the percentage of its pixels that got each class (column).

    `matrix` holds counts [C, C]. A class that never occurs in the truth has a row of
    dashes.
    """
    counts = _array(matrix.matrix if isinstance(matrix, ConfusionMatrix) else matrix)
    counts = counts.astype(float)
    size = len(class_names)
    if counts.shape != (size, size):
        raise ValueError(
            f"matrix: expected [{size}, {size}] for {size} class names, got {list(counts.shape)}"
        )
    total = counts.sum(axis=1, keepdims=True)
    percent = np.divide(100 * counts, total, out=np.full_like(counts, np.nan), where=total > 0)

    side = min(_WIDTH, 1.6 + 0.5 * size)
    figure, ax = plt.subplots(figsize=(side, side), layout="constrained")
    ax.pcolormesh(percent, cmap="Blues", vmin=0, vmax=100, edgecolors="white", linewidth=1.5)
    for row, column in np.ndindex(size, size):
        value = percent[row, column]
        # Zeros stay empty, so that the mistakes stand out.
        if counts[row, column] or np.isnan(value):
            text = "<1" if value < 0.5 else _text(value, digits=0)
            ink = "white" if value > 68 else _INK
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink)
    middles = np.arange(size) + 0.5
    ax.set_xticks(middles, class_names, rotation=45, ha="left", rotation_mode="anchor")
    ax.set_yticks(middles, class_names)
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.set(ylabel="true class", xlabel="% of the true class predicted as", aspect="equal")
    ax.xaxis.set_label_position("top")
    ax.invert_yaxis()
    return _close(figure)


@use_style()
def class_bars(
    values: Mapping[str, Sequence[float]],
    class_names: Sequence[str] = CLASSES,
    *,
    xlabel: str = "IoU",
) -> Figure:
    """Bars per class, one for each name in `values`, for example `{"FCN-8s": scores.iou}`.

    Values are fractions and are drawn in points (times 100). NaN, an absent class, is a dash.
    """
    if not 1 <= len(values) <= len(LINE_COLOURS):
        raise ValueError(f"values: expected 1 to {len(LINE_COLOURS)} names, got {len(values)}")
    for name, scores in values.items():
        if len(scores) != len(class_names):
            raise ValueError(
                f"values: expected {len(class_names)} for {name!r}, one a class, got {len(scores)}"
            )
    thick = 0.8 / len(values)
    height = 0.9 + len(class_names) * (0.16 + 0.19 * len(values))
    figure, ax = plt.subplots(figsize=(_WIDTH, height), layout="constrained")
    rows = np.arange(len(class_names))
    for i, (name, scores) in enumerate(values.items()):
        points = 100 * np.asarray(scores, dtype=float)
        y = rows + (i - (len(values) - 1) / 2) * thick
        ax.barh(y, np.nan_to_num(points), 0.86 * thick, color=LINE_COLOURS[i], label=name)
        for point, where in zip(points, y, strict=True):
            ax.annotate(
                _text(point, digits=1),
                (np.nan_to_num(point), where),
                xytext=(4, -0.5),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    ax.set_yticks(rows, class_names)
    ax.invert_yaxis()
    ax.set(xlim=(0, 108), xticks=range(0, 101, 20), xlabel=f"{xlabel} (points)")
    ax.set_ylim(len(class_names) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_color(_INK)
    ax.grid(axis="x")
    if len(values) > 1:
        figure.legend(loc="outside upper center", ncols=4, handlelength=1, handleheight=1)
    else:
        ax.set_title(next(iter(values)))
    return _close(figure)


@use_style()
def reliability(calibrations: Mapping[str, Calibration]) -> Figure:
    """Accuracy over confidence, one line for each name; the dashed diagonal is perfect.

    Below the diagonal a network is surer than it is right. A bin's marker grows with its pixels.
    """
    if not 1 <= len(calibrations) <= len(LINE_COLOURS):
        raise ValueError(
            f"calibrations: expected 1 to {len(LINE_COLOURS)}, got {len(calibrations)}"
        )
    height = 0.62 * _WIDTH + 0.2 * len(calibrations)  # a line of the legend for each
    figure, ax = plt.subplots(figsize=(0.62 * _WIDTH, height), layout="constrained")
    ax.plot([0, 1], [0, 1], color=_INK, linestyle="--", linewidth=1)
    for (name, counted), colour in zip(calibrations.items(), LINE_COLOURS, strict=False):
        seen = counted.pixels > 0
        x, y = _array(counted.confidence[seen]), _array(counted.accuracy[seen])
        size = 8 + 150 * _array(counted.pixels[seen] / counted.pixels.sum())
        ax.plot(x, y, color=colour, label=f"{name}: error {100 * counted.error():.1f}")
        ax.scatter(x, y, s=size, color=colour)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), aspect="equal")
    ax.grid()
    figure.legend(loc="outside lower center")
    return _close(figure)


@use_style()
def heatmap(
    maps: Tensor | Mapping[str, Tensor],
    *,
    label: str = "",
    images: Tensor | None = None,
    largest: float | None = None,
) -> Figure:
    """Maps of one quantity [H, W], on one scale from 0.

    Args:
        maps: one map, or one for each title.
        label: the quantity and its unit, beside the colour bar.
        images: float [N, 3, H, W] in 0..1, one for each map, which is laid over its grey version
            and may be coarser.
        largest: the end of the scale, so that two figures can be compared. None means the
            largest value.
    """
    maps = maps if isinstance(maps, Mapping) else {"": maps}
    if not maps:
        raise ValueError("maps: expected at least one")
    arrays = {title: _array(values).astype(float) for title, values in maps.items()}
    for title, values in arrays.items():
        if values.ndim != 2 or values.size == 0:
            raise ValueError(f"maps: expected [H, W], got {list(values.shape)} for {title!r}")
    under = [None] * len(arrays) if images is None else images
    if len(under) != len(arrays):
        raise ValueError(f"images: expected {len(arrays)}, one for each map; got {len(under)}")
    if largest is None:
        largest = max(values.max() for values in arrays.values())
    cell = min(3.4, (_WIDTH - 1) / len(arrays))
    figure, axes = plt.subplots(
        1,
        len(arrays),
        squeeze=False,
        figsize=(cell * len(arrays) + 1, cell + 0.4),
        layout="constrained",
    )
    for ax, (title, values), image in zip(axes[0], arrays.items(), under, strict=True):
        if image is not None:
            height, width = values.shape
            grey = _picture("images", image).mean(axis=2)
            ax.imshow(grey, cmap="gray", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        alpha = None if image is None else 0.6
        picture = ax.imshow(values, cmap="magma", vmin=0, vmax=largest, alpha=alpha)
        ax.set_title(title)
        _frame(ax)
    whole = all((values == values.round()).all() for values in arrays.values())
    ticks = MaxNLocator(nbins=6, integer=whole)
    bar = figure.colorbar(picture, ax=axes, label=label, shrink=0.85, aspect=24, ticks=ticks)
    bar.outline.set_visible(False)
    return _close(figure)


# Diagrams


@use_style()
def u_shape(features: Sequence[int], side: int) -> Figure:
    """The feature maps of a U-Net: encoder on the left, decoder on the right, skips between.

    A block is as high as its map has pixels a side, and as wide as the root of its channels. The
    map of a level is called x on the way down and y on the way up.

    Args:
        features: channels of each level, the finest first; at least two.
        side: pixels a side of the image.
    """
    if len(features) < 2 or side >> (len(features) - 1) < 1:
        raise ValueError(
            f"features: expected 2 levels or more, each with a pixel; got {list(features)} "
            f"for a side of {side}"
        )
    last = len(features) - 1
    heights = [max(0.12, 1.5 * (side >> level) / side) for level in range(last + 1)]
    tops = np.cumsum([0, *(-height - 0.75 for height in heights[:-1])])
    figure, ax = plt.subplots(figsize=(_WIDTH, 0.55 * -(tops[-1] - heights[-1]) + 1.1))
    centres = {}
    for place in range(2 * last + 1):
        level = min(place, 2 * last - place)
        width = 1.1 * math.sqrt(features[level] / max(features))
        x, y = 2.2 * place, tops[level]
        colour = LINE_COLOURS[0 if place < last else 1 if place > last else 2]
        ax.add_patch(
            Rectangle((x - width / 2, y - heights[level]), width, heights[level], fc=colour)
        )
        label = f"{features[level]} × {side >> level}²"
        ax.text(x, y - heights[level] - 0.1, label, ha="center", va="top")
        name = f"$x_{level}$" if place < last else f"$y_{level}$"
        name = f"$x_{last} = y_{last}$" if place == last else name
        ax.text(x, y + 0.08, name, ha="center", va="bottom")
        centres[place] = x, y - heights[level] / 2, width / 2
    arrow = {"arrowstyle": "-|>", "color": _INK, "shrinkA": 0, "shrinkB": 0, "lw": 1.1}
    for place in range(2 * last):
        (x, y, half), (x2, y2, half2) = centres[place], centres[place + 1]
        ax.annotate("", (x2 - half2 - 0.08, y2), (x + half + 0.08, y), arrowprops=arrow)
        if place in (0, 2 * last - 1):
            name, way = ("up", 0.35) if place else ("pool", 0.65)  # clear of the sizes
            ax.text(x + way * (x2 - x), y + way * (y2 - y), name, **_ON_A_LINE)
    for level in range(last):
        (x, y, half), (x2, _, half2) = centres[level], centres[2 * last - level]
        dashed = arrow | {"linestyle": "--"}
        ax.annotate("", (x2 - half2 - 0.08, y), (x + half + 0.08, y), arrowprops=dashed)
        ax.text((x + x2) / 2, y, "skip", **_ON_A_LINE)
    middle, half, right, unit = -heights[0] / 2, centres[0][2] + 0.08, 4.4 * last, last / 2
    ax.text(-1.9 * unit, middle, "image", ha="center", va="center")
    ax.annotate("", (-half, middle), (-1.3 * unit, middle), arrowprops=arrow)
    ax.text(right + 2.6 * unit, middle, "class\nscores", ha="center", va="center")
    ax.annotate("", (right + 2 * unit, middle), (right + half, middle), arrowprops=arrow)
    ax.text(right + half + 0.75 * unit, middle, "1×1", **_ON_A_LINE)
    ax.set(xlim=(-2.5 * unit, right + 3.3 * unit), ylim=(tops[-1] - heights[-1] - 0.6, 0.6))
    ax.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1)
    return _close(figure)


@use_style()
def flow(boxes: Mapping[str, tuple[float, float]], arrows: Sequence[tuple[str, str]]) -> Figure:
    """Boxes with text, and arrows from the bottom of one to the top of another.

    Args:
        boxes: the text of each box, and where its centre lies: column and row, counted from the
            upper left. A box is nearly a column wide, and text may have line breaks.
        arrows: pairs of texts, from and to. ValueError for a text that no box has.
    """
    if unknown := {text for pair in arrows for text in pair} - set(boxes):
        raise ValueError(f"arrows: expected texts of boxes; got {', '.join(sorted(unknown))}")
    columns, rows = zip(*boxes.values(), strict=True)
    width, height, gap = 0.92, 0.62, 0.05
    figure, ax = plt.subplots(figsize=(_WIDTH, 0.62 * (max(rows) - min(rows) + 1)))
    for text, (x, y) in boxes.items():
        ax.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                mutation_aspect=1.4,
                fc="#e8f1f8",
                ec=LINE_COLOURS[0],
            )
        )
        ax.text(x, y, text, ha="center", va="center", fontsize=9, linespacing=1.15)
    arrow = {"arrowstyle": "-|>", "color": _INK, "shrinkA": 0, "shrinkB": 0, "lw": 1.0}
    for start, end in arrows:
        (x, y), (x2, y2) = boxes[start], boxes[end]
        ax.annotate("", (x2, y2 - height / 2 - gap), (x, y + height / 2 + gap), arrowprops=arrow)
    ax.set(xlim=(min(columns) - 0.5, max(columns) + 0.5))
    ax.set(ylim=(max(rows) + 0.5, min(rows) - 0.5))
    ax.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1)
    return _close(figure)


def _close(figure: Figure) -> Figure:
    """Lay the figure out and take it out of pyplot's list; it still draws and saves.

    Ticks take their style from the settings at the time they are first laid out, so this must
    happen inside `use_style`.
    """
    figure.draw_without_rendering()
    plt.close(figure)
    return figure


# Tables

_DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Table:
    """A table that shows itself in a notebook and prints itself in a terminal.

    The first column names the rows. `best` holds the (row, column) of cells to stress.
    """

    rows: list[list]
    columns: list[str]
    caption: str = ""
    note: str = ""
    digits: int = 1
    best: frozenset[tuple[int, int]] = frozenset()

    def _numeric(self) -> list[bool]:
        """Which columns hold numbers and dashes only."""
        columns = [[row[i] for row in self.rows] for i in range(len(self.columns))]
        return [
            any(_is_number(cell) for cell in column)
            and all(_is_number(cell) or cell is None for cell in column)
            for column in columns
        ]

    def _repr_html_(self) -> str:
        side = [' style="text-align: right"' if n else "" for n in self._numeric()]
        side = [s or ' style="text-align: left"' for s in side]

        def cell(row: int, column: int) -> str:
            text = html.escape(_text(self.rows[row][column], self.digits))
            text = text.replace(" ± ", "&nbsp;±&nbsp;")  # never on two lines
            if (row, column) in self.best:
                text = f"<strong>{text}</strong>"
            if column == 0:
                return f'<th scope="row"{side[0]}>{text}</th>'
            return f"<td{side[column]}>{text}</td>"

        head = "".join(
            f'<th scope="col"{s}>{html.escape(name)}</th>'
            for s, name in zip(side, self.columns, strict=True)
        )
        body = "\n".join(
            "<tr>" + "".join(cell(i, j) for j in range(len(self.columns))) + "</tr>"
            for i in range(len(self.rows))
        )
        caption = f"<caption>{html.escape(self.caption)}</caption>\n" if self.caption else ""
        notes = ["Bold: best in its column."] if self.best else []
        notes += [html.escape(self.note)] if self.note else []
        note = "".join(f"\n<p>{line}</p>" for line in notes)
        # A table wider than a phone scrolls by itself; tabindex lets the keyboard scroll it too.
        label = html.escape(self.caption or "table")
        return (
            f'<div role="region" aria-label="{label}" tabindex="0" style="overflow-x: auto">\n'
            f"<table>\n{caption}<thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}\n</tbody>\n</table>{note}\n</div>"
        )

    def __str__(self) -> str:
        cells = [
            [
                _text(cell, self.digits) + ("*" if (i, j) in self.best else "")
                for j, cell in enumerate(row)
            ]
            for i, row in enumerate(self.rows)
        ]
        # Room for the star, so that the digits of a column stay under each other.
        starred = {j for _, j in self.best}
        for row in cells:
            for j in starred:
                row[j] += "" if row[j].endswith("*") else " "
        heads = [name + " " * (j in starred) for j, name in enumerate(self.columns)]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]

        def line(row: list[str]) -> str:
            aligned = zip(row, widths, self._numeric(), strict=True)
            return "  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in aligned).rstrip()

        lines = [self.caption] if self.caption else []
        lines += [line(heads), "  ".join("-" * width for width in widths), *map(line, cells)]
        lines += ["* best in its column"] if self.best else []
        lines += [self.note] if self.note else []
        return "\n".join(lines)

    __repr__ = __str__


def table(
    rows: Sequence[Sequence],
    columns: Sequence[str],
    *,
    caption: str = "",
    note: str = "",
    digits: int = 1,
) -> Table:
    """A table of names, integers and floats. None and NaN are shown as a dash.

    Args:
        rows: one sequence a row, with one cell for each column; the first cell names the row.
        columns: the titles.
        caption: a line above the table.
        note: a line below the table.
        digits: of a float, after the point.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"rows: expected {len(columns)} cells in each, got {list(row)}")
    return Table([list(row) for row in rows], list(columns), caption, note, digits)


def score_table(
    scores: Mapping[str, Scores], class_names: Sequence[str] = CLASSES, *, caption: str = ""
) -> Table:
    """One row a model: mIoU, boundary IoU, pixel accuracy and the IoU of each class, in points.

    Points are fractions times 100. The best of each column is stressed.
    """
    for name, result in scores.items():
        if len(result.iou) != len(class_names):
            raise ValueError(
                f"scores: expected {len(class_names)} classes for {name!r}, got {len(result.iou)}"
            )
    points = {
        name: [
            100 * value
            for value in (result.miou, result.boundary_iou, result.pixel_accuracy, *result.iou)
        ]
        for name, result in scores.items()
    }
    best = set()
    if len(points) > 1:
        for j, column in enumerate(zip(*points.values(), strict=True), start=1):
            shown = [_text(value, digits=1) for value in column]
            known = [value for value in column if not math.isnan(value)]
            winner = _text(max(known), digits=1) if known else None
            best |= {(i, j) for i, text in enumerate(shown) if text == winner}
    absent = any(result.absent for result in scores.values())
    note = f"{_DASH} the class is in neither truth nor prediction; no mean counts it."
    return Table(
        rows=[[name, *values] for name, values in points.items()],
        columns=["model", "mIoU", "boundary IoU", "pixel accuracy", *class_names],
        caption=caption or "Scores in points",
        note=note if absent else "",
        best=frozenset(best),
    )


def _text(cell, digits: int) -> str:
    if cell is None or (_is_number(cell) and math.isnan(cell)):
        return _DASH
    if isinstance(cell, Integral):
        return f"{cell:,}"
    return f"{cell:,.{digits}f}" if _is_number(cell) else str(cell)


def _is_number(cell) -> bool:
    return isinstance(cell, Real)


# Tensors to arrays


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _labels(
    name: str, labels: Tensor | np.ndarray, picture: np.ndarray | None = None
) -> np.ndarray:
    """Labels as an array; of the size of `picture`, where one is given."""
    array = _array(labels)
    if array.dtype != np.int64:
        raise TypeError(f"{name}: expected int64 labels, got {array.dtype}")
    if picture is not None and array.shape != picture.shape[:2]:
        size = list(picture.shape[:2])
        raise ValueError(
            f"{name}: expected the size of the image, {size}, got {list(array.shape)}"
        )
    return array


def _picture(name: str, item: Tensor | np.ndarray) -> np.ndarray:
    """An image, a label map or a finished picture as uint8 [H, W, 3]."""
    array = _array(item)
    if array.dtype == np.int64 and array.ndim == 2:
        return colour_mask(item)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return array
    if np.issubdtype(array.dtype, np.floating) and array.ndim == 3 and array.shape[0] == 3:
        return _bytes(array.transpose(1, 2, 0))
    raise ValueError(
        f"{name}: expected an image float [3, H, W], labels int64 [H, W] or a picture uint8 "
        f"[H, W, 3], got {array.dtype} {list(array.shape)}"
    )


def _bytes(fractions: np.ndarray) -> np.ndarray:
    return np.rint(255 * fractions.clip(0, 1)).astype(np.uint8)


def _rgb(colour: str) -> np.ndarray:
    return _bytes(np.array(to_rgb(colour)))
