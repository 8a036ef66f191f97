"""Figures hold what they promise, colours can be told apart, tables are sound HTML."""

import html.parser
import math
from itertools import pairwise

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from colorspacious import cspace_convert
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle
from nbclient import NotebookClient
from skimage.color import deltaE_ciede2000, rgb2lab

from segcourse import plots
from segcourse.calibration import Calibration
from segcourse.metrics import ConfusionMatrix, SegmentationMetrics
from segcourse.toyscape import CLASSES, VOID

matplotlib.use("agg")
DEFICIENCIES = (None, "protanomaly", "deuteranomaly", "tritanomaly")
NAN = float("nan")
DASH = "\u2013"


@pytest.fixture(autouse=True)
def no_trace_in_pyplot():
    """No test may leave a figure open or another style behind."""
    before = dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


# Colours


def smallest_distance(colours, deficiency=None):
    """Least CIEDE2000 between two colours, as seen with a full colour vision deficiency."""
    seen = np.array([to_rgb(colour) for colour in colours])
    if deficiency:
        space = {"name": "sRGB1+CVD", "cvd_type": deficiency, "severity": 100}
        seen = cspace_convert(seen, space, "sRGB1").clip(0, 1)
    lab = rgb2lab(seen[None])[0]
    a, b = np.triu_indices(len(lab), k=1)
    return deltaE_ciede2000(lab[a], lab[b]).min()


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_class_colours_can_be_told_apart(deficiency):
    assert len(plots.PALETTE) == len(CLASSES)
    assert smallest_distance([*plots.PALETTE, plots.VOID_COLOUR], deficiency) >= 11


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_line_colours_can_be_told_apart(deficiency):
    assert smallest_distance(plots.LINE_COLOURS, deficiency) >= 8


def test_natural_colours_chosen_by_eye_would_fail():
    by_eye = "#8cc4f0 #7db84f #8a8a94 #1f4fa8 #0e5a2b #d62728 #f59a1c #8e44ad #1e1414 #ffe24a"
    assert smallest_distance(by_eye.split()) >= 8
    assert smallest_distance(by_eye.split(), "protanomaly") < 8


def test_a_mask_is_painted_with_the_palette_and_void_is_white():
    mask = torch.tensor([[list(range(10)), [VOID] * 10]])
    picture = plots.colour_mask(mask)
    assert picture.shape == (1, 2, 10, 3) and picture.dtype == np.uint8
    assert tuple(to_hex(colour / 255) for colour in picture[0, 0]) == plots.PALETTE
    assert (picture[0, 1] == 255).all()


def test_a_mask_with_other_labels_is_refused():
    with pytest.raises(ValueError, match=r"^mask: .* 0\.\.9 or be 255 \(void\); found 12$"):
        plots.colour_mask(torch.tensor([[0, 12]]))
    with pytest.raises(ValueError, match="found -1$"):
        plots.colour_mask(torch.tensor([[-1, 300]]))
    with pytest.raises(TypeError, match="^mask: expected int64 labels, got float32$"):
        plots.colour_mask(torch.zeros(2, 2))


def test_instances_differ_and_keep_their_colour():
    few, many = torch.tensor([[0, 3]]), torch.arange(13)[None]
    picture = plots.colour_instances(many)
    assert (plots.colour_instances(few)[0] == picture[0, [0, 3]]).all()
    assert picture[0, 0].max() < 60
    assert smallest_distance([to_hex(colour / 255) for colour in picture[0]]) >= 14


def test_an_overlay_mixes_picture_and_palette_and_leaves_void_alone():
    image, mask = torch.full((3, 1, 2), 0.5), torch.tensor([[5, VOID]])
    half = plots.overlay(image, mask, alpha=0.5)
    expected = (np.array(to_rgb(plots.PALETTE[5])) + 0.5) / 2
    np.testing.assert_allclose(half[0, 0] / 255, expected, atol=1 / 255)
    assert (half[0, 1] == 128).all()
    assert (plots.overlay(image, mask, alpha=1)[0, 0] == plots.colour_mask(mask)[0, 0]).all()


def test_only_wrong_pixels_outside_the_void_get_the_error_colour():
    truth = torch.tensor([[0, 1, VOID]])
    picture = plots.colour_errors(torch.rand(3, 1, 3), truth, torch.tensor([[0, 2, 2]]))
    wrong = (picture == np.rint(255 * np.array(to_rgb(plots.ERROR_COLOUR)))).all(axis=-1)
    assert wrong.tolist() == [[False, True, False]]


# Figures


def scenes(count=2):
    truth = torch.zeros(count, 32, 48, dtype=torch.int64)
    truth[:, 16:] = 1
    truth[:, 8:24, 8:24] = 5
    prediction = truth.roll(3, dims=2)
    prediction[:, :4, :4] = 9
    return torch.rand(count, 3, 32, 48), truth, prediction


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


def legend(figure):
    return {text.get_text() for text in figure.legends[0].get_texts()}


def drawn(ax):
    return np.asarray(ax.images[0].get_array())


def test_rows_show_image_truth_prediction_and_errors():
    image, truth, prediction = scenes()
    figure = plots.show_rows(image, truth, prediction)
    assert titles(figure) == ["image", "truth", "prediction", "errors"]
    assert len(figure.axes) == 8
    assert legend(figure) == {"sky", "grass", "car", "star"}
    second = figure.axes[4:]
    np.testing.assert_allclose(drawn(second[0]) / 255, image[1].permute(1, 2, 0), atol=1 / 255)
    assert (drawn(second[1]) == plots.colour_mask(truth[1])).all()
    assert (drawn(second[2]) == plots.colour_mask(prediction[1])).all()
    assert (drawn(second[3]) == plots.colour_errors(image[1], truth[1], prediction[1])).all()


def test_rows_compare_several_models():
    image, truth, prediction = scenes()
    models = {"FCN-32s": prediction, "FCN-8s": truth}
    figure = plots.show_rows(image, truth, models, errors=False)
    assert titles(figure) == ["image", "truth", "FCN-32s", "FCN-8s"]
    figure = plots.show_rows(image, truth, models)
    assert titles(figure)[2:4] == ["FCN-32s", "FCN-32s: errors"]


def test_the_legend_reads_by_rows_and_names_only_what_is_seen():
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 6, VOID])[None, None].expand(1, 8, 8)
    figure = plots.show_columns({"truth": labels})
    entries = figure.legends[0].get_texts()
    boxes = [text.get_window_extent() for text in entries]
    order = sorted(range(8), key=lambda i: (-round(boxes[i].y0), boxes[i].x0))
    assert [entries[i].get_text() for i in order] == [*CLASSES[:7], "void"]
    assert not plots.show_columns({"image": torch.rand(1, 3, 8, 8)}).legends


def test_a_legend_can_name_classes_that_do_not_appear():
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    assert legend(plots.show_columns({"truth": labels}, classes=[0, 4])) == {"sky", "tree"}


def test_a_picture_of_64_pixels_is_enlarged_by_a_whole_number():
    image, truth, prediction = (x[..., :32].repeat_interleave(2, -1) for x in scenes())
    image, truth, prediction = (x.repeat_interleave(2, -2) for x in (image, truth, prediction))
    ax = plots.show_rows(image, truth, prediction).axes[0]
    assert ax.get_window_extent().width == pytest.approx(192)
    assert ax.get_window_extent().height == pytest.approx(192)


def test_a_scene_shows_four_views_with_outlined_segments():
    image, truth, _ = scenes(1)
    instances = torch.zeros_like(truth)
    instances[:, 8:24, 8:16], instances[:, 8:24, 16:24] = 1, 2
    figure = plots.show_scene(image[0], truth[0], instances[0])
    assert titles(figure) == ["image", "classes", "instances", "panoptic"]
    assert legend(figure) == {"sky", "grass", "car"}
    edges = {tuple(map(tuple, edge)) for edge in figure.axes[3].collections[0].get_segments()}
    # Around the two cars, between them, and along the horizon on both sides of them.
    assert len(edges) == 4 * 16 + 16 + (48 - 16)
    assert ((15.5, 7.5), (15.5, 8.5)) in edges
    assert ((0.5, 15.5), (1.5, 15.5)) in edges


def test_segments_are_laid_over_the_image_and_outlined():
    image, truth = torch.rand(2, 3, 32, 48), torch.zeros(2, 32, 48, dtype=torch.int64)
    truth[:, 16:] = 1
    ids = truth + 1
    void = truth.clone()
    void[1] = 255
    figure = plots.show_segments(image, {"truth": (truth, ids), "found": (void, 0 * ids)})
    assert titles(figure)[:3] == ["image", "truth", "found"]
    assert legend(figure) == {"sky", "grass"}
    outlined = [ax.collections for ax in figure.axes]
    assert [len(c) for c in outlined] == [0, 1, 1, 0, 1, 1]
    assert len(outlined[1][0].get_segments()) == 48 and not outlined[2][0].get_segments()
    seen = figure.axes[5].images[0].get_array()
    assert torch.equal(torch.tensor(seen), torch.tensor(figure.axes[3].images[0].get_array()))


def test_boxes_are_drawn_on_the_edges_of_pixels_in_the_colour_of_their_class():
    image, box = torch.rand(3, 32, 48), torch.tensor([[2.0, 3, 10, 7], [0, 0, 48, 32]])
    figure = plots.show_boxes({
        "anchors": (image, box, None),
        "found": (image, box[:1], torch.tensor([5])),
    })  # fmt: skip
    assert titles(figure) == ["anchors", "found"]
    assert legend(figure) == {"car"}
    assert legend(plots.show_boxes({"": (image, box, None)}, classes=[4, 5])) == {"tree", "car"}
    first, second = ([p for p in ax.patches if p.get_linewidth() < 2] for ax in figure.axes)
    assert [p.get_bbox().extents.tolist() for p in first] == [
        [1.5, 2.5, 9.5, 6.5],
        [-0.5, -0.5, 47.5, 31.5],
    ]
    assert to_hex(second[0].get_edgecolor()) == plots.PALETTE[5]
    assert to_hex(first[0].get_edgecolor()) == "#ffffff"


def test_curves_are_named_at_their_ends_without_overlap():
    series = {"a": [3, 2, 1.0], "b": [4, 2, 1.01], "c": [5, 5, 5]}
    figure = plots.curves(series, ylabel="loss")
    ax = figure.axes[0]
    assert ax.get_legend() is None and not figure.legends
    assert [text.get_text() for text in ax.texts] and len(ax.lines) == 3
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    assert boxes["a"].y1 <= boxes["b"].y0 <= boxes["c"].y0
    width = figure.bbox.width
    assert all(ax.bbox.x1 <= box.x0 + 8 and box.x1 <= width + 1 for box in boxes.values())
    colours = {text.get_text(): text.get_color() for text in ax.texts}
    assert list(colours.values()) == [line.get_color() for line in ax.lines]


def test_names_of_curves_that_end_low_stay_above_the_ticks():
    ax = plots.curves({name: [1, 0] for name in "abcdef"}).axes[0]
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    assert ax.xaxis.get_ticklabels()[-1].get_window_extent().y1 <= boxes[0].y0


def test_a_smoothed_curve_is_the_running_mean_over_the_points():
    raw, smooth = plots.curves({"a": [1, 2, 6, 4]}, x=[10, 20, 30, 40], smooth=2).axes[0].lines
    assert raw.get_ydata().tolist() == [1, 2, 6, 4]
    assert smooth.get_ydata().tolist() == [1.5, 4, 5]
    assert smooth.get_xdata().tolist() == [20, 30, 40]


def test_a_logarithmic_axis_has_a_tick_at_each_point_and_a_band_where_asked():
    series, x = {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]}, [10, 30, 300]
    ax = plots.curves(series, x=x, log_x=True, spread={"a": [0.5, 0.5, 1.0]}).axes[0]
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "30", "300"]
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices
    assert {(10, 0.5), (10, 1.5), (300, 3.0), (300, 5.0)} <= {tuple(c) for c in corners}


def test_a_u_has_a_block_for_each_map_and_a_skip_for_each_level():
    ax = plots.u_shape((12, 24, 48), 64).axes[0]
    heights = [block.get_height() for block in ax.patches if isinstance(block, Rectangle)]
    assert len(heights) == 5
    assert heights[0] == heights[4] == pytest.approx(2 * heights[1])
    words = [text.get_text() for text in ax.texts]
    assert words.count("skip") == 2
    assert words.count("24 × 32²") == 2 and words.count("48 × 16²") == 1
    above = {text.get_text(): text.get_position() for text in ax.texts if "_" in text.get_text()}
    for name, block in zip(
        ("$x_0$", "$x_1$", "$x_2 = y_2$", "$y_1$", "$y_0$"), ax.patches, strict=True
    ):
        x, y = above.pop(name)
        assert x == pytest.approx(block.get_x() + block.get_width() / 2)
        assert 0 < y - block.get_y() - block.get_height() < 0.2
    assert above == {} and {"image", "1×1", "class\nscores"} <= set(words)


def test_a_flow_has_its_boxes_and_arrows_from_bottom_to_top():
    boxes = {"a": (0, 0), "b": (1, 1)}
    ax = plots.flow(boxes, [("a", "b")]).axes[0]
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["a", "b"]
    (arrow,) = (text for text in ax.texts if not text.get_text())
    (x, y), (x2, y2) = arrow.xyann, arrow.xy
    assert (x, x2) == (0, 1) and 0 < y < y2 < 1
    low, high = ax.get_ylim()
    assert low > high  # rows are counted from above
    first, second = ax.patches
    assert first.get_y() + first.get_height() <= y and y2 <= second.get_y()


def test_a_number_and_its_spread_stay_on_one_line():
    page = plots.table([["net", "55.4 ± 1.5"]], ["name", "mIoU"])._repr_html_()
    assert "55.4&nbsp;±&nbsp;1.5" in page


def test_reliability_draws_the_bins_that_hold_pixels_and_names_the_error():
    p = torch.tensor([0.6, 0.6, 0.9, 0.9])
    counted = Calibration(bins=10)
    counted.update(
        torch.stack([p.log(), (1 - p).log()])[None, :, None], torch.tensor([[[0, 1, 0, 0]]])
    )
    figure = plots.reliability({"net": counted})
    diagonal, line = figure.axes[0].lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert line.get_ydata().tolist() == [0.5, 1.0]
    assert legend(figure) == {"net: error 10.0"}


def test_a_confusion_matrix_shows_percentages_of_the_true_class():
    matrix = ConfusionMatrix(3)
    target = torch.tensor([[[0] * 8 + [1] * 300]])
    prediction = torch.tensor([[[0] * 6 + [2] * 2 + [1] * 299 + [0]]])
    matrix.update(prediction, target)
    for given in (matrix, matrix.matrix):
        ax = plots.confusion_matrix(given, ["cat", "dog", "cow"]).axes[0]
        cells = {tuple(int(v) for v in t.get_position()[::-1]): t.get_text() for t in ax.texts}
        rows = [[cells.get((i, j), "") for j in range(3)] for i in range(3)]
        assert rows == [["75", "", "25"], ["<1", "100", ""], [DASH] * 3]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["cat", "dog", "cow"]
        assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_numbers_in_a_confusion_matrix_can_be_read():
    matrix = torch.diag(torch.arange(0, 101)) + torch.diag(torch.arange(100, 0, -1), 1)
    ax = plots.confusion_matrix(matrix, [""] * 101).axes[0]
    colours = ax.collections[0].get_facecolors().reshape(101, 101, 4)

    def luminance(rgb):
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for text in ax.texts:
        if text.get_text() not in ("", DASH):
            column, row = (int(v) for v in text.get_position())
            pair = [
                luminance(colours[row, column, :3]),
                luminance(np.array(to_rgb(text.get_color()))),
            ]
            assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 3.5


def test_class_bars_are_points_with_a_dash_for_an_absent_class():
    figure = plots.class_bars({"a": [0.5, NAN], "b": [0.25, 1.0]}, ["cat", "dog"])
    ax = figure.axes[0]
    assert [bar.get_width() for bar in ax.patches] == [50, 0, 25, 100]
    assert [text.get_text() for text in ax.texts] == ["50.0", DASH, "25.0", "100.0"]
    assert legend(figure) == {"a", "b"}
    first, second = ax.patches[0], ax.patches[2]
    assert first.get_y() + first.get_height() <= second.get_y()


def test_heat_maps_share_one_scale():
    figure = plots.heatmap({"near": torch.eye(4), "far": 3 * torch.eye(4)}, label="weight")
    assert titles(figure) == ["near", "far"]
    assert {ax.images[0].get_clim() for ax in figure.axes[:2]} == {(0, 3)}
    assert plots.heatmap(torch.eye(4), largest=2).axes[0].images[0].get_clim() == (0, 2)
    assert figure.axes[2].get_ylabel() == "weight"
    assert len(plots.heatmap(torch.eye(4)).axes) == 2
    grey, values = plots.heatmap(torch.eye(4), images=IMAGE[:1]).axes[0].images
    assert grey.get_extent() == values.get_extent()  # a map may be coarser than its image


def test_figures_keep_the_style_when_drawn_outside_of_it(tmp_path):
    figure = plots.curves({"a": [1, 2]})
    with matplotlib.rc_context({"xtick.labelsize": 30, "savefig.dpi": 100}):
        figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_xticklabels()[0].get_size() == 10
    assert to_hex(figure.get_facecolor(), keep_alpha=True) == "#ffffffff"


IMAGE, TRUTH, PREDICTION = scenes()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plots.show_rows(IMAGE[:1], TRUTH, PREDICTION), ValueError, "^columns: .* same"),
        (lambda: plots.show_rows(IMAGE, TRUTH, PREDICTION[:1]), ValueError, "^predictions: .*"),
        (lambda: plots.show_rows(IMAGE[:0], TRUTH[:0], TRUTH[:0]), ValueError, "^columns: "),
        (lambda: plots.show_columns({"x": [torch.rand(4, 4)]}), ValueError, r"^x: .* \[4, 4\]$"),
        (lambda: plots.overlay(IMAGE[0], TRUTH[0, :4]), ValueError, r"^mask: .* \[4, 48\]$"),
        (lambda: plots.curves({}), ValueError, "^series: expected 1 to 7 curves, got 0$"),
        (lambda: plots.curves({"a": []}), ValueError, "^series: .* for 'a'$"),
        (lambda: plots.curves({"a": [1, 2]}, x=[1]), ValueError, "^series: .* 1 x for 'a'$"),
        (lambda: plots.curves({"a": [1, 2]}, smooth=3), ValueError, "^series: .* at least 3"),
        (lambda: plots.confusion_matrix(torch.eye(3)), ValueError, r"^matrix: .* \[10, 10\]"),
        (lambda: plots.class_bars({"a": [0.5]}), ValueError, "^values: expected 10 for 'a'"),
        (lambda: plots.class_bars({}), ValueError, "^values: expected 1 to 7 names, got 0$"),
        (lambda: plots.heatmap(torch.rand(3)), ValueError, r"^maps: expected \[H, W\]"),
        (
            lambda: plots.heatmap(torch.eye(4), images=IMAGE),
            ValueError,
            "^images: expected 1, one for each map; got 2$",
        ),
        (lambda: plots.flow({"a": (0, 0)}, [("a", "z")]), ValueError, "^arrows: .* got z$"),
        (lambda: plots.u_shape((8,), 64), ValueError, r"^features: .* \[8\]"),
        (lambda: plots.curves({"a": [1]}, x=[0], log_x=True), ValueError, "^x: .* above 0"),
        (
            lambda: plots.curves({"a": [1, 2]}, spread={"a": [1]}),
            ValueError,
            "^spread: .* 1 for 'a'$",
        ),
        (lambda: plots.curves({"a": [1]}, spread={"b": [1]}), ValueError, "^spread: .* 'b'$"),
        (lambda: plots.reliability({}), ValueError, "^calibrations: expected 1 to 7, got 0$"),
        (lambda: plots.table([[1]], ["a", "b"]), ValueError, "^rows: expected 2 cells in each"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_figure_is_shown_once_and_later_ones_of_pyplot_still_are(monkeypatch):
    """In a real kernel, whose backend is only loaded by the first figure."""
    monkeypatch.delenv("MPLBACKEND", raising=False)
    cells = [
        "import torch, matplotlib.pyplot as plt\nfrom segcourse import plots",
        "plots.heatmap(torch.eye(4))",
        "figure = plots.heatmap(torch.eye(4))",
        "figure",
        "plots.table([['a', 1.0]], ['name', 'x'])",
        "plt.plot([1, 2]);",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(notebook, timeout=120).execute()
    kinds = [
        [kind for output in cell.outputs for kind in output["data"] if kind != "text/plain"]
        for cell in notebook.cells
    ]
    assert kinds == [[], ["image/png"], [], ["image/png"], ["text/html"], ["image/png"]]


# Tables


class Cells(html.parser.HTMLParser):
    """The text of each th and td, with their attributes; checks that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.tags = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.tags.append(tag)
        if tag in ("th", "td"):
            self.cells.append({"tag": tag, "text": "", "best": False, **dict(attributes)})

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and {"th", "td"} & set(self.open):
            self.cells[-1]["text"] += data
            self.cells[-1]["best"] |= "strong" in self.open


def test_a_table_is_semantic_html_and_escapes_what_it_shows():
    rows = [["<conv> & 1", 1728, 0.456], ["conv2", 1234567, None]]
    shown = plots.table(rows, ["layer", "parameters", "<share>"], caption='a "b"', digits=2)
    cells = Cells(shown._repr_html_())
    assert {"table", "caption", "thead", "tbody"} <= set(cells.tags)
    assert [c["text"] for c in cells.cells[:3]] == ["layer", "parameters", "<share>"]
    assert all(c["tag"] == "th" and c["scope"] == "col" for c in cells.cells[:3])
    assert [c["text"] for c in cells.cells[3:]] == [
        *("<conv> & 1", "1,728", "0.46"),
        *("conv2", "1,234,567", DASH),
    ]
    assert cells.cells[3]["scope"] == "row"
    assert ["right" in c["style"] for c in cells.cells[3:6]] == [False, True, True]
    assert "color" not in shown._repr_html_() and "background" not in shown._repr_html_()


def test_a_table_prints_in_aligned_columns():
    shown = plots.table([["a", 1.0, NAN], ["bcd", 22.25, 3]], ["name", "x", "y"], note="Note.")
    lines = str(shown).splitlines()
    assert lines == [
        "name     x  y",
        "----  ----  -",
        f"a      1.0  {DASH}",
        "bcd   22.2  3",
        "Note.",
    ]
    assert repr(shown) == str(shown)


@pytest.mark.parametrize("cell", [NAN, None, np.float32("nan"), np.float64("nan")])
def test_a_missing_number_is_a_dash(cell):
    assert DASH in str(plots.table([["a", cell]], ["name", "x"]))


def test_scores_are_in_points_with_the_best_of_each_column_stressed():
    def score(prediction):
        metrics = SegmentationMetrics(3, boundary_width=1)
        metrics.update(prediction, truth)
        return metrics.compute()

    truth = torch.tensor([[[0] * 4, [0] * 4, [1] * 4, [1] * 4]])
    wrong = truth.clone()
    wrong[0, 2, :2] = 0
    shown = plots.score_table({"good": score(truth), "bad": score(wrong)}, ["cat", "dog", "cow"])
    cells = Cells(shown._repr_html_()).cells
    assert [c["text"] for c in cells[:4]] == ["model", "mIoU", "boundary IoU", "pixel accuracy"]
    good, bad = cells[7:14], cells[14:21]
    assert [c["text"] for c in good] == ["good", *["100.0"] * 5, DASH]
    assert [c["best"] for c in good] == [False, *[True] * 5, False]
    assert bad[3]["text"] == "87.5" and bad[4]["text"] == "80.0" and bad[5]["text"] == "75.0"
    assert not any(c["best"] for c in bad)
    assert "neither truth nor prediction" in shown.note
    assert "100.0*" in str(shown) and "* best" in str(shown)
    assert "<p>Bold: best in its column.</p>" in shown._repr_html_()
    alone = plots.score_table({"bad": score(wrong)}, ["cat", "dog", "cow"])
    assert "<strong>" not in alone._repr_html_() and "Bold" not in alone._repr_html_()
    assert math.isnan(score(truth).iou[2])
