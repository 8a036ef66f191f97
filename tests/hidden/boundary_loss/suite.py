"""Hidden tests of exercise 1, `boundary_loss`.

The oracle is the contract by the letter: loops over pixels, neighbours and the band. The gates see
no void, so that an answer that cannot handle it still earns what the other properties are worth.
"""

# canary: 5a3c0e7e-hidden-segcourse

import math

import torch
import torch.nn.functional as F
from hidden.draw import real, whole
from torch import Generator, Tensor

from segcourse.exercises.boundary_loss import number
from segcourse.exercises.contract import Call, expect_close, expect_error, expect_tensor

VOID = 255


def window(image: list[list[int]], row: int, column: int, reach: int) -> list[tuple[int, int]]:
    """The places of an image at most `reach` rows and columns away."""
    rows = range(max(row - reach, 0), min(row + reach + 1, len(image)))
    columns = range(max(column - reach, 0), min(column + reach + 1, len(image[0])))
    return [(r, c) for r in rows for c in columns]


def weights(
    target: Tensor,
    *,
    boundary_weight: float = 5.0,
    width: int = 1,
    ignore_index: int = VOID,
    class_weight: Tensor | None = None,
) -> Tensor:
    """What each pixel weighs, float64 [B, H, W]."""
    result = torch.zeros(target.shape, dtype=torch.float64)
    for b, image in enumerate(target.tolist()):
        valid = [
            (r, c) for r, row in enumerate(image) for c, k in enumerate(row) if k != ignore_index
        ]
        edges = set()
        for r, c in valid:
            classes = {image[i][j] for i, j in window(image, r, c, 1)} - {ignore_index}
            if len(classes) > 1:
                edges.add((r, c))
        for r, c in valid:
            factor = 1.0 if class_weight is None else class_weight[image[r][c]].item()
            if any(place in edges for place in window(image, r, c, width - 1)):
                factor *= 1 + boundary_weight
            result[b, r, c] = factor
    return result


def oracle(
    pred: Tensor, target: Tensor, *, ignore_index: int = VOID, **options: object
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient in `pred`, float64; some pixel must weigh more than 0."""
    share = weights(target, ignore_index=ignore_index, **options)
    share /= share.sum()
    labels = target.where(target != ignore_index, 0)
    logarithm = pred.double().log_softmax(dim=1)
    value = -(share * logarithm.gather(1, labels.unsqueeze(1))[:, 0]).sum()
    truth = F.one_hot(labels, pred.shape[1]).movedim(-1, 1)
    return value, share.unsqueeze(1) * (logarithm.exp() - truth)


def logits(g: Generator, target: Tensor, classes: int, size: float = 2.0) -> Tensor:
    return size * torch.randn(len(target), classes, *target.shape[1:], generator=g)


def noise(
    g: Generator, images: int, height: int, width: int, classes: int, void: float = 0.0
) -> Tensor:
    """Labels without any order, and this share of void."""
    target = torch.randint(classes, (images, height, width), generator=g)
    return target.masked_fill(torch.rand(target.shape, generator=g) < void, VOID)


def scenes(
    g: Generator, images: int, height: int, width: int, classes: int, void: float = 0.0
) -> Tensor:
    """Rectangles of one class each over class 0, which leave room far from any edge."""
    target = torch.zeros(images, height, width, dtype=torch.int64)
    for image in target:
        for label in range(1, classes):
            top, left = whole(g, 0, height - 2), whole(g, 0, width - 2)
            tall, wide = whole(g, 1, (height + 2) // 3), whole(g, 1, (width + 2) // 3)
            image[top : top + tall, left : left + wide] = label
    return target.masked_fill(torch.rand(target.shape, generator=g) < void, VOID)


def stripes(g: Generator, classes: int) -> Tensor:
    """Upright stripes [1, 5, 14] of two columns or more, one for each class, in some order."""
    extra = torch.randint(classes, (14 - 2 * classes,), generator=g)
    widths = 2 + extra.bincount(minlength=classes)
    row = torch.randperm(classes, generator=g).repeat_interleave(widths)
    return row.expand(1, 5, 14).contiguous()


def expect_right(call: Call, pred: Tensor, target: Tensor, **options: object) -> None:
    """The value and the gradient are those of the oracle."""
    expected, slope = oracle(pred, target, **options)
    value, gradient = call.gradient(pred, target, **options)
    expect_close(value, expected)
    # Times the number of pixels: an absolute tolerance would hide a small gradient.
    expect_close(gradient * target.numel(), slope * target.numel(), tolerance=3e-5)


def pull_of(call: Call, target: Tensor, classes: int, **options: object) -> Tensor:
    """How hard each pixel pulls where all classes are equally likely, at most 1."""
    pred = torch.zeros(len(target), classes, *target.shape[1:])
    _, gradient = call.gradient(pred, target, **options)
    pull = gradient.double().abs().sum(dim=1)
    return pull / pull.max()


def expect_weights(call: Call, target: Tensor, classes: int, **options: object) -> None:
    """The pixels weigh what they must, relative to each other, whatever the sum is divided by."""
    pull, expected = pull_of(call, target, classes, **options), weights(target, **options)
    expect_close(pull * expected.max(), expected)


def finite_number(call: Call, g: Generator) -> None:
    for images, height, width, classes in ((1, 5, 7, 2), (2, 8, 6, 3), (3, 12, 9, 6)):
        target = scenes(g, images, height, width, classes)
        pred = logits(g, target, classes)
        value, gradient = call.gradient(pred, target)
        expect_tensor(value, torch.float32, torch.float64)
        expect_close(value, value)
        if gradient.shape != pred.shape or not gradient.isfinite().all():
            raise AssertionError("a finite gradient in each logit is expected")


def weight_zero(call: Call, g: Generator) -> None:
    for classes in (2, 5):
        target = noise(g, 2, 7, 8, classes)
        pred = logits(g, target, classes)
        expect_close(call(pred, target, boundary_weight=0.0), F.cross_entropy(pred, target))


def weight_zero_for_any_width(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 9, 9, 3)
    pred = logits(g, target, 3)
    for width in (2, 4):
        found = call(pred, target, boundary_weight=0.0, width=width)
        expect_close(found, F.cross_entropy(pred, target))


def a_mistake_at_the_edge_costs_more(call: Call, g: Generator) -> None:
    side = whole(g, 10, 13)
    edge = whole(g, 4, side - 4)
    target = (torch.arange(side) >= edge).long().expand(1, 5, side).contiguous()
    pred = torch.zeros(1, 2, 5, side)
    _, gradient = call.gradient(pred, target)
    pull = gradient.abs().sum(dim=1)[0, 2]
    if not pull[edge - 1 : edge + 1].max() > 1.1 * pull[[edge - 3, edge + 2]].max():
        raise AssertionError("a pixel at the edge weighs no more than one far from it")


def noise_and_loop(call: Call, g: Generator) -> None:
    target = noise(g, 2, 7, 9, 3, void=0.4)
    expect_right(call, logits(g, target, 3), target)


def scenes_and_loop(call: Call, g: Generator) -> None:
    for classes in (2, 4):
        target = scenes(g, 2, 14, 11, classes, void=0.05)
        expect_right(call, logits(g, target, classes), target)


def every_option_and_loop(call: Call, g: Generator) -> None:
    for width in (1, 2, 3):
        target = scenes(g, 3, 12, 16, 5, void=0.08)
        pred = logits(g, target, 5)
        options = {"boundary_weight": real(g, 0.2, 9.0), "width": width}
        options["class_weight"] = 0.2 + torch.rand(5, generator=g)
        expect_right(call, pred, target, **options)


def a_large_scene_and_loop(call: Call, g: Generator) -> None:
    target = scenes(g, 1, 48, 40, 12, void=0.02)
    expect_right(call, logits(g, target, 12), target, width=2)


def constant(call: Call, g: Generator) -> None:
    for label in range(3):
        target = torch.full((2, whole(g, 3, 6), whole(g, 3, 6)), label)
        pred = logits(g, target, 3)
        for width in (1, 2):
            expect_close(call(pred, target, width=width), F.cross_entropy(pred, target))


def constant_in_each_image(call: Call, g: Generator) -> None:
    target = torch.arange(4).view(4, 1, 1).expand(4, 3, 5).contiguous()
    pred = logits(g, target, 4)
    expect_close(call(pred, target), F.cross_entropy(pred, target))


def uniform(call: Call, g: Generator) -> None:
    for classes in (2, 3, 9):
        target = scenes(g, 2, 9, 8, classes)
        pred = real(g, -3.0, 3.0) * torch.ones(2, classes, 9, 8)
        options = {"boundary_weight": real(g, 0.5, 8.0), "width": whole(g, 1, 3)}
        expect_close(call(pred, target, **options), torch.tensor(math.log(classes)))


def renaming(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 10, 12, 6)
    pred = logits(g, target, 6)
    class_weight = 0.2 + torch.rand(6, generator=g)
    value = number(call, pred, target, class_weight=class_weight)
    for _ in range(3):
        old = torch.randperm(6, generator=g)
        new = old.argsort()
        expect_close(call(pred[:, old], new[target], class_weight=class_weight[old]), value)


def renaming_moves_no_weight(call: Call, g: Generator) -> None:
    # Without order, and large: sums of labels must cancel somewhere by chance.
    target = noise(g, 1, 24, 24, 3)
    pull = pull_of(call, target, 7)
    for _ in range(5):
        new = torch.randperm(7, generator=g)[:3]
        expect_close(pull_of(call, new[target], 7), pull)


def staircase(call: Call, g: Generator) -> None:
    for middle in (1, 2, 3):
        steps = [0] * whole(g, 2, 4) + [1] * middle + [2] * whole(g, 2, 4)
        target = torch.tensor(steps).expand(1, whole(g, 2, 5), len(steps)).contiguous()
        for turned in (target, target.flip(-1).contiguous(), target.mT.contiguous()):
            expect_weights(call, turned, 3)


def long_staircase(call: Call, g: Generator) -> None:
    steps = torch.arange(10) // whole(g, 2, 3) + whole(g, 0, 2)
    expect_weights(call, steps.expand(1, 5, 10).contiguous(), 7)


def line(call: Call, g: Generator) -> None:
    target = torch.zeros(1, 9, 9, dtype=torch.int64)
    target[0, whole(g, 1, 7)] = whole(g, 1, 3)
    expect_weights(call, target, 4)
    expect_weights(call, target.mT.contiguous(), 4)


def lone_pixel(call: Call, g: Generator) -> None:
    for _ in range(3):
        target = torch.full((1, 7, 8), whole(g, 0, 3))
        row, column = whole(g, 0, 6), whole(g, 0, 7)
        target[0, row, column] = (target[0, row, column] + whole(g, 1, 3)) % 4
        expect_weights(call, target, 4)


def diagonal(call: Call, g: Generator) -> None:
    side = whole(g, 7, 10)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    shift = whole(g, -2, 2)
    for half in (columns - rows > shift, columns + rows > side + shift):
        expect_weights(call, half.long().unsqueeze(0), 2)


def corners(call: Call, g: Generator) -> None:
    target = torch.zeros(1, 10, 10, dtype=torch.int64)
    target[0, whole(g, 2, 4) : 7, whole(g, 2, 4) : 7] = 1
    expect_weights(call, target, 2)
    expect_weights(call, 1 - target, 2)


def border(call: Call, g: Generator) -> None:
    target = torch.full((1, 8, 9), whole(g, 0, 1))
    target[0, : whole(g, 1, 3), : whole(g, 1, 4)] = 2
    for turned in (target, target.flip(-1), target.flip(-2), target.flip(-1, -2)):
        expect_weights(call, turned.contiguous(), 3)


def a_frame_of_void_changes_nothing(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 8, 7, 4)
    pred = logits(g, target, 4)
    framed = F.pad(target, (1, 2, 3, 1), value=VOID)
    expect_close(call(F.pad(pred, (1, 2, 3, 1)), framed), number(call, pred, target))


def flips(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 9, 9, 4, void=0.05)
    pred = logits(g, target, 4)
    value = number(call, pred, target)
    for axes in ((-1,), (-2,), (-1, -2)):
        expect_close(call(pred.flip(axes), target.flip(axes)), value)


def transpose(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 6, 11, 3)
    pred = logits(g, target, 3)
    expect_close(call(pred.mT.contiguous(), target.mT.contiguous()), number(call, pred, target))


def pull_turns_with_the_image(call: Call, g: Generator) -> None:
    target = (torch.arange(8) >= whole(g, 3, 5)).long().expand(1, 8, 8).contiguous()
    pull = pull_of(call, target, 2)
    for turns in (1, 2, 3):
        turned = pull_of(call, target.rot90(turns, (1, 2)).contiguous(), 2)
        expect_close(turned, pull.rot90(turns, (1, 2)))


def logits_at_void(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 9, 10, 4, void=0.2)
    target[:, 0, 0] = VOID
    pred = logits(g, target, 4)
    valid = (target != VOID).unsqueeze(1)
    other = pred.where(valid, logits(g, target, 4, size=20.0))
    expect_close(call(other, target), number(call, pred, target))


def void_has_no_gradient(call: Call, g: Generator) -> None:
    target = noise(g, 2, 6, 7, 3, void=0.5)
    pred = logits(g, target, 3)
    _, gradient = call.gradient(pred, target, width=2)
    if gradient[(target == VOID).unsqueeze(1).expand_as(pred)].any():
        raise AssertionError("a void pixel has a gradient")


def void_makes_no_edge(call: Call, g: Generator) -> None:
    target = torch.full((1, 8, 8), whole(g, 0, 2))
    target[0, whole(g, 1, 3) : 5, whole(g, 1, 3) : 6] = VOID
    for width in (1, 2):
        expect_weights(call, target, 3, width=width)


def void_strip(call: Call, g: Generator) -> None:
    target = torch.zeros(1, 6, 9, dtype=torch.int64)
    place = whole(g, 3, 5)
    target[..., place:] = 1
    target[..., place] = VOID
    for width in (1, 2, 3):
        expect_weights(call, target, 2, width=width)
        expect_weights(call, target.mT.contiguous(), 2, width=width)


def a_band_reaches_across_void(call: Call, g: Generator) -> None:
    target = torch.zeros(1, 7, 12, dtype=torch.int64)
    place = whole(g, 4, 6)
    target[..., place:] = 1
    target[..., place - 2] = VOID  # beside the edge, one column away
    for width in (2, 3, 4):
        expect_weights(call, target, 2, width=width)


def a_strip_with_an_end(call: Call, g: Generator) -> None:
    target = torch.zeros(1, 9, 9, dtype=torch.int64)
    target[..., 4:] = 1
    target[:, : whole(g, 4, 6), 4] = VOID
    for width in (1, 2, 3):
        expect_weights(call, target, 2, width=width)


def other_ignore_index(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 8, 8, 3, void=0.15)
    target[:, 0, 0] = VOID
    pred = logits(g, target, 3)
    expected = call.gradient(pred, target)
    for label in (-1, -100, whole(g, 3, 99)):
        other = target.masked_fill(target == VOID, label)
        found = call.gradient(pred, other, ignore_index=label)
        for one, another in zip(found, expected, strict=True):
            expect_close(one, another)


def a_class_as_void(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 9, 9, 4)
    target[:, 0, 0], target[:, 0, 1] = 1, 2
    pred = logits(g, target, 4)
    for label in (0, whole(g, 1, 3)):
        value = number(call, pred, target.masked_fill(target == label, VOID))
        expect_close(call(pred, target, ignore_index=label), value)


def all_void(call: Call, g: Generator) -> None:
    for classes in (2, 4):
        target = torch.full((2, whole(g, 1, 5), whole(g, 1, 5)), VOID)
        pred = logits(g, target, classes)
        value, gradient = call.gradient(pred, target)
        expect_close(value, torch.tensor(0.0))
        expect_close(gradient, torch.zeros_like(pred))


def all_void_with_options(call: Call, g: Generator) -> None:
    target = torch.full((1, 4, 4), VOID)
    pred = logits(g, target, 3)
    options = {"width": 2, "class_weight": torch.rand(3, generator=g)}
    value, gradient = call.gradient(pred, target, **options)
    expect_close(value, torch.tensor(0.0))
    expect_close(gradient, torch.zeros_like(pred))


def pooled(call: Call, g: Generator) -> None:
    target = torch.cat([stripes(g, 3), *(torch.full((1, 5, 14), k) for k in range(3))])
    expect_right(call, logits(g, target, 3), target)


def an_image_of_void_adds_nothing(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 7, 8, 3)
    pred = logits(g, target, 3)
    value = number(call, pred, target)
    more = torch.cat([target, torch.full_like(target, VOID)])
    expect_close(call(torch.cat([pred, logits(g, target, 3)]), more), value)


def a_pixel_beside_a_full_image(call: Call, g: Generator) -> None:
    target = torch.zeros(2, 6, 6, dtype=torch.int64)
    target[1] = VOID
    target[1, whole(g, 0, 5), whole(g, 0, 5)] = 1
    expect_right(call, logits(g, target, 2), target)


def order_of_images(call: Call, g: Generator) -> None:
    target = scenes(g, 4, 7, 8, 3)
    pred = logits(g, target, 3)
    order = torch.randperm(4, generator=g)
    expect_close(call(pred[order], target[order]), number(call, pred, target))


def gradient_ratio(call: Call, g: Generator) -> None:
    edge = whole(g, 3, 6)
    target = (torch.arange(10) >= edge).long().expand(1, 4, 10).contiguous()
    for boundary_weight in (real(g, 0.1, 0.9), real(g, 2.0, 4.0), real(g, 6.0, 20.0)):
        expect_weights(call, target, 3, boundary_weight=boundary_weight)


def gradient_in_closed_form(call: Call, g: Generator) -> None:
    target = stripes(g, 3)
    expect_right(call, logits(g, target, 3, size=3.0), target, boundary_weight=real(g, 1.0, 9.0))


def gradient_and_differences(call: Call, g: Generator) -> None:
    target = scenes(g, 1, 6, 6, 3)
    pred = logits(g, target, 3).double()
    _, gradient = call.gradient(pred, target)
    # Wide steps: an answer may compute in float32.
    for _ in range(8):
        direction = torch.randn(pred.shape, generator=g, dtype=torch.float64)
        ahead, behind = (call(pred + step * direction, target) for step in (0.02, -0.02))
        slope = (ahead.double() - behind.double()) / 0.04
        expect_close((gradient * direction).sum(), slope, tolerance=2e-3)


def large_logits(call: Call, g: Generator) -> None:
    target = torch.full((2, 6, 7), whole(g, 0, 2))
    pred = logits(g, target, 3, size=1e4)
    value, gradient = call.gradient(pred, target)
    expected, slope = oracle(pred, target)
    expect_close(value, expected)
    # float32 knows a log-sum-exp of this size to 0.001: a near tie shows that in its gradient.
    expect_close(gradient * target.numel(), slope * target.numel(), tolerance=3e-3)


def a_shift_of_all_logits(call: Call, g: Generator) -> None:
    target = scenes(g, 1, 8, 8, 3)
    pred = logits(g, target, 3)
    for shift in (1e4, -1e4):
        # float32 knows numbers of this size to 0.001, and an answer may subtract them.
        expect_close(call(pred + shift, target), number(call, pred, target), tolerance=3e-3)


def float16(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 9, 8, 4)
    pred = logits(g, target, 4).half()
    value, gradient = call.gradient(pred, target)
    expect_tensor(value, torch.float32, torch.float64)
    expected, slope = call.gradient(pred.float(), target)
    expect_close(value, expected)
    expect_close(gradient.double() * target.numel(), slope * target.numel(), tolerance=5e-3)


def float16_with_large_sums(call: Call, g: Generator) -> None:
    target = scenes(g, 2, 32, 32, 6)
    pred = logits(g, target, 6).half()
    boundary_weight = real(g, 900.0, 1100.0)
    expected = number(call, pred.float(), target, boundary_weight=boundary_weight)
    expect_close(call(pred, target, boundary_weight=boundary_weight), expected)


def width_at_an_edge(call: Call, g: Generator) -> None:
    edge = whole(g, 6, 8)
    target = (torch.arange(14) >= edge).long().expand(1, 4, 14).contiguous()
    for width in (1, 2, 3, 4):
        expect_weights(call, target, 2, width=width)


def width_around_shapes(call: Call, g: Generator) -> None:
    for width in (2, 3, 5):
        expect_weights(call, scenes(g, 1, 17, 15, 3), 3, width=width)


def wider_is_monotone(call: Call, g: Generator) -> None:
    target = F.pad(scenes(g, 1, 10, 10, 3), (0, 6, 0, 0))
    target[0, 5, 5] = 1
    target[0, 5, 6] = 2
    last = None
    for width in (1, 2, 3, 4):
        pull = pull_of(call, target, 3, width=width)
        weight = pull / pull[0, 0, -1]  # which is far from all edges
        if last is not None and not (weight >= last - 1e-4).all():
            raise AssertionError("a pixel of the band is not in a wider band")
        last = weight


def a_band_over_everything(call: Call, g: Generator) -> None:
    target = noise(g, 1, 6, 9, 3)
    target[0, 0, :2] = torch.tensor([0, 1])
    expect_weights(call, target, 3, width=20)


def thin_images(call: Call, g: Generator) -> None:
    for height, width in ((1, 9), (9, 1), (1, 2), (2, 1), (2, 2)):
        target = noise(g, 1, height, width, 2).sort(dim=1).values.sort(dim=2).values
        for reach in (1, 3):
            expect_weights(call, target, 2, width=reach)


def one_pixel(call: Call, g: Generator) -> None:
    target = noise(g, 1, 1, 1, 4)
    pred = logits(g, target, 4)
    for width in (1, 2):
        expect_close(call(pred, target, width=width), F.cross_entropy(pred, target))


def class_weights(call: Call, g: Generator) -> None:
    target = stripes(g, 4)
    class_weight = 0.1 + 5 * torch.rand(4, generator=g)
    expect_right(call, logits(g, target, 4), target, class_weight=class_weight)


def the_scale_of_class_weights_is_irrelevant(call: Call, g: Generator) -> None:
    target = noise(g, 2, 7, 7, 3)
    pred = logits(g, target, 3)
    class_weight = 0.2 + torch.rand(3, generator=g)
    value = number(call, pred, target, class_weight=class_weight)
    for factor in (0.01, 100.0):
        expect_close(call(pred, target, class_weight=factor * class_weight), value)


def a_class_of_weight_0_still_has_edges(call: Call, g: Generator) -> None:
    target = stripes(g, 3)
    class_weight = torch.tensor([real(g, 0.5, 2.0), 0.0, real(g, 0.5, 2.0)])
    expect_right(call, logits(g, target, 3), target, class_weight=class_weight)


def sizes(call: Call, g: Generator) -> None:
    images, classes, height, width = 2, whole(g, 3, 5), whole(g, 6, 8), whole(g, 9, 11)
    pred = torch.randn(images, classes, height, width, generator=g)
    for shape in (
        (images, height, width + 1),
        (images, height - 1, width),
        (images, width, height),
        (images + 1, height, width),
    ):
        target = torch.randint(classes, shape, generator=g)
        expect_error(ValueError, call, pred, target)


def sizes_that_would_broadcast(call: Call, g: Generator) -> None:
    classes, side = whole(g, 2, 4), whole(g, 4, 6)
    pred = torch.randn(2, classes, side, side, generator=g)
    for shape in ((1, side, side), (2, 1, side), (2, side, 1), (side, side), (2, 1, side, side)):
        expect_error(ValueError, call, pred, torch.randint(classes, shape, generator=g))


TESTS = {
    "a finite number": [finite_number],
    "weight 0 is cross entropy": [weight_zero, weight_zero_for_any_width],
    "edges weigh more": [a_mistake_at_the_edge_costs_more],
    "any mask": [
        noise_and_loop,
        scenes_and_loop,
        every_option_and_loop,
        a_large_scene_and_loop,
    ],
    "constant target is cross entropy": [constant, constant_in_each_image],
    "uniform prediction gives log C": [uniform],
    "renaming the classes changes nothing": [renaming, renaming_moves_no_weight],
    "staircase": [staircase, long_staircase],
    "one-pixel line": [line, lone_pixel],
    "diagonal": [diagonal, corners],
    "border": [border],
    "flips and transpose": [flips, transpose, pull_turns_with_the_image],
    "void": [
        logits_at_void,
        void_has_no_gradient,
        void_makes_no_edge,
        a_frame_of_void_changes_nothing,
    ],
    "void strip": [void_strip, a_band_reaches_across_void, a_strip_with_an_end],
    "other ignore_index": [other_ignore_index, a_class_as_void],
    "all void": [all_void, all_void_with_options],
    "pooled over the batch": [
        pooled,
        order_of_images,
        an_image_of_void_adds_nothing,
        a_pixel_beside_a_full_image,
    ],
    "gradient": [gradient_ratio, gradient_in_closed_form, gradient_and_differences],
    "large logits and float16": [
        large_logits,
        a_shift_of_all_logits,
        float16,
        float16_with_large_sums,
    ],
    "width": [width_at_an_edge, width_around_shapes, wider_is_monotone, a_band_over_everything],
    "thin images": [thin_images, one_pixel],
    "class weights": [
        class_weights,
        the_scale_of_class_weights_is_irrelevant,
        a_class_of_weight_0_still_has_edges,
    ],
    "sizes that do not fit": [sizes, sizes_that_would_broadcast],
}
