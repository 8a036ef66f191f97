"""Exercise 1: cross entropy that weighs the pixels at the edges of the truth more.

You write

    boundary_loss(pred, target, *, boundary_weight=5.0, width=1,
                  ignore_index=255, class_weight=None) -> Tensor

`pred` holds finite logits, floating point [B, C, H, W]; `target` holds labels, int64 [B, H, W],
each 0..C-1 or `ignore_index`, which marks void and may be any whole number, one of 0..C-1 as
well. `class_weight` [C] is a factor for each class; None is 1 for all. The result is a 0-d
tensor, float32 or wider: float16 logits are computed in float32.

1. A pixel is *valid* if it is not void. An *edge pixel* is a valid pixel that has a valid pixel of
   another class among its 8 neighbours. Both sides of an edge consist of edge pixels. Neither
   void nor the end of the image is another class.
2. The *band* is all valid pixels at a distance of at most `width - 1` from an edge pixel of the
   same image. The distance is the larger one of rows and columns apart, whatever lies between.
3. Pixel i weighs `w_i = (1 + boundary_weight * band_i) * class_weight[target_i]`, where band_i is
   1 in the band and 0 elsewhere; void weighs 0.
4. With CE_i the cross entropy of pixel i, the loss is sum(w_i * CE_i) / sum(w_i), both sums over
   all pixels of the batch.

If no pixel of the batch is valid, the loss is 0 and its gradient is 0: `backward` must work. If
the sizes of `pred` and `target` do not fit together, raise ValueError.

**Two other losses are called boundary loss.** Kervadec et al. (2019) take the mean of probability
times signed distance to the true contour; Bokhovkin and Burnaev (2019) take 1 - F1 of boundaries
that are found by max pooling of the probabilities. This one is neither: it is a weighted cross
entropy.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segcourse.exercises.contract import (
    Call,
    Contract,
    Property,
    Test,
    expect_close,
    expect_error,
    expect_tensor,
)

CONTRACT = Contract(
    "boundary_loss",
    (
        Property(
            "a finite number",
            None,
            "return one 0-d tensor, float32 or float64, that has a gradient in every logit",
        ),
        Property(
            "weight 0 is cross entropy",
            None,
            "with boundary_weight=0 each valid pixel weighs 1, wherever it lies",
        ),
        Property(
            "edges weigh more",
            None,
            "a mistake at an edge of the target must cost more than one far from it",
        ),
        Property(
            "any mask",
            1,
            "work a small mask out by hand: edge pixels, band, weights, then the two sums",
        ),
        Property(
            "constant target is cross entropy",
            1,
            "one class has no edge: every pixel weighs the same, and not 0",
        ),
        Property(
            "uniform prediction gives log C",
            1,
            "equal cross entropies have that value as their weighted mean: what do you divide by?",
        ),
        Property(
            "renaming the classes changes nothing",
            1,
            "labels are names: do you add, subtract or average them?",
        ),
        Property(
            "staircase",
            1,
            "a class between two others has edges too, however thin it is",
        ),
        Property(
            "one-pixel line",
            1,
            "a line one pixel wide, or a single pixel, is an edge as much as its neighbours are",
        ),
        Property(
            "diagonal",
            1,
            "which of the neighbours that touch only at a corner do you look at?",
        ),
        Property(
            "border",
            1,
            "what does your code see beyond the end of the image? Padding can invent a class",
        ),
        Property(
            "flips and transpose",
            1,
            "an edge has two sides and any direction: do you treat all alike?",
        ),
        Property(
            "void",
            1,
            "void neither adds to a sum, nor has a gradient, nor makes its neighbours edge pixels",
        ),
        Property(
            "void strip",
            1,
            "classes that only void keeps apart do not meet; a band may reach across void",
        ),
        Property(
            "other ignore_index",
            1,
            "void is whatever ignore_index says, and 255 is only its default",
        ),
        Property(
            "all void",
            1,
            "what is 0 / 0? The answer must be 0 and still depend on pred",
        ),
        Property(
            "pooled over the batch",
            1,
            "one quotient of two sums over all images, no mean of means; images do not touch",
        ),
        Property(
            "gradient",
            1,
            "a pixel in the band pulls 1 + boundary_weight times as hard as one outside",
        ),
        Property(
            "large logits and float16",
            1,
            "where can exp, log or a sum leave the range of numbers? float16 ends at 65504",
        ),
        Property(
            "width",
            1,
            "count the columns of the band beside a straight edge for width 1, 2 and 3",
        ),
        Property(
            "thin images",
            1,
            "try an image of one row, of one column, of one pixel",
        ),
        Property(
            "class weights",
            1,
            "class_weight scales a pixel in both sums; it does not move an edge",
        ),
        Property(
            "sizes that do not fit",
            1,
            "compare the shapes before you compute, and raise ValueError: broadcasting is silent",
        ),
    ),
)


def number(call: Call, *args: Any, **kwargs: Any) -> Tensor:
    """What the function returns; AssertionError unless it is a 0-d tensor."""
    value = call(*args, **kwargs)
    if not isinstance(value, Tensor) or value.ndim != 0:
        raise AssertionError("a 0-d tensor is expected")
    return value


_VOID = 255


def _mask(*images: str) -> Tensor:
    """Labels [B, H, W] from images written as rows of digits, `.` for void: `"001/011/..1"`."""
    rows = [image.split("/") for image in images]
    return torch.tensor(
        [[[_VOID if c == "." else int(c) for c in row] for row in image] for image in rows]
    )


def _waves(target: Tensor, classes: int, size: float = 2.0) -> Tensor:
    """Logits between -size and size for a target, always the same."""
    steps = 1.7 * torch.arange(target.numel() * classes, dtype=torch.float64)
    return (size * (steps + 0.4).sin()).float().view(len(target), classes, *target.shape[1:])


def _flat(target: Tensor, classes: int) -> Tensor:
    """Logits that find all classes equally likely."""
    return torch.zeros(len(target), classes, *target.shape[1:])


def _pull(call: Call, target: Tensor, **options: Any) -> Tensor:
    """Each pixel's share of the gradient where all classes are equally likely, [B, H, W]."""
    _, gradient = call.gradient(_flat(target, 4), target, **options)
    pull = gradient.abs().sum(dim=1)
    return pull / pull.sum()


def _expect_number(value: Any, expected: float) -> None:
    expect_close(value, torch.tensor(expected, dtype=torch.float64))


def _expect_band(call: Call, image: str, band: str, **options: Any) -> None:
    """AssertionError unless pixels marked `#` pull 6 times as hard as others, and void does not.

    Whatever the loss is divided by drops out.
    """
    pull = _pull(call, _mask(image), **options)
    pairs = zip(image.replace("/", ""), band.replace("/", ""), strict=True)
    weights = torch.tensor([(label != ".") * (6.0 if b == "#" else 1.0) for label, b in pairs])
    expect_close(pull.flatten(), weights / weights.sum())


_SCENE = _mask(
    "0000000000/0000000000/0000011000/0000011000/..00000000/.000000022/0000000022/0000000022"
)


def _finite_number(call: Call) -> None:
    target = _mask("0000/0011/0211")
    value, gradient = call.gradient(_waves(target, 3), target)
    expect_tensor(value, torch.float32, torch.float64)
    expect_close(value, value)
    expect_close(gradient, gradient)


def _weight_zero(call: Call) -> None:
    target = _mask("0001/0011/2211")
    pred = _waves(target, 3)
    expect_close(call(pred, target, boundary_weight=0.0), F.cross_entropy(pred, target))


def _edges_weigh_more(call: Call) -> None:
    (pull,) = _pull(call, _mask("/".join(["0000011111"] * 5)))
    # The middle row, so that no end of the image plays a part.
    if not pull[2, 4:6].max() > 1.1 * pull[2, [2, 7]].max():
        raise AssertionError("a pixel at the edge weighs no more than one far from it")


def _any_mask(call: Call) -> None:
    pred = _waves(_SCENE, 3)
    _expect_number(call(pred, _SCENE), 1.67454)
    _expect_number(call(pred, _SCENE, boundary_weight=2.5, width=2), 1.8540145)
    target = _mask("00000/0.100/00001/11111", "....0/22222/22022/21222")
    class_weight = torch.tensor([2.0, 1.0, 0.25])
    _expect_number(call(_waves(target, 3), target, class_weight=class_weight), 1.7158687)


def _constant(call: Call) -> None:
    target = _mask("0000/0000/0000", "2222/2222/2222")
    pred = _waves(target, 3)
    expect_close(call(pred, target), F.cross_entropy(pred, target))


def _uniform(call: Call) -> None:
    target = _mask("000000/001100/221000")
    _expect_number(call(_flat(target, 3), target), math.log(3))
    _expect_number(call(_flat(target, 5), target, boundary_weight=2.0, width=2), math.log(5))


def _renaming(call: Call) -> None:
    target = _mask("0000/0002/0100/0010", "0011/0012/3322/3330")
    pred = _waves(target, 4)
    value, gradient = call.gradient(pred, target)
    for old in ([3, 2, 1, 0], [1, 3, 0, 2]):  # the old name of each class
        new = torch.tensor(old).argsort()
        renamed = call.gradient(pred[:, old], new[target])
        expect_close(renamed[0], value)
        expect_close(renamed[1], gradient[:, old])


def _staircase(call: Call) -> None:
    for image, band in (
        ("000011112222", "   ##  ##   "),
        ("00001112222", "   ## ##   "),
        ("000012222", "   ###   "),
        ("222210000", "   ###   "),
    ):
        _expect_band(call, "/".join([image] * 3), "/".join([band] * 3))


def _line(call: Call) -> None:
    _expect_band(call, "/".join(["0000100000"] * 3), "/".join(["   ###    "] * 3))
    _expect_band(call, "00000/00000/00000/11111/00000", "     /     /#####/#####/#####")
    _expect_band(call, "000000/000000/003000/000000", "      / ###  / ###  / ###  ")


def _diagonal(call: Call) -> None:
    _expect_band(
        call,
        "100000/110000/111000/111100/111110/111111",
        "###   /####  / #### /  ####/   ###/    ##",
    )
    _expect_band(call, "00000/00000/00111/00111/00111", "     / ####/ ####/ ##  / ##  ")


def _border(call: Call) -> None:
    _expect_band(call, "000000/000000/000000/000022", "      /      /   ###/   ###")
    _expect_band(
        call,
        "111111/111111/111222/111222/111222",
        "      /  ####/  ####/  ##  /  ##  ",
    )


def _flips(call: Call) -> None:
    target = _mask("00000000/00001100/00001000/22000000/22200000")
    pred = _waves(target, 3)
    value = number(call, pred, target)
    for turn in (lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)):
        expect_close(call(turn(pred).contiguous(), turn(target).contiguous()), value)
        pull = turn(_pull(call, target))
        expect_close(_pull(call, turn(target).contiguous()), pull)


def _void(call: Call) -> None:
    target = _mask("000.../000..1/0000.1/000000/220000")
    pred = _waves(target, 3)
    value, gradient = call.gradient(pred, target)
    void = (target == _VOID).unsqueeze(1).expand_as(pred)
    if gradient[void].any():
        raise AssertionError("a void pixel has a gradient")
    expect_close(call(pred.masked_fill(void, 50.0), target), value)
    _expect_band(call, "11111/1..11/1..11/11111/11111", "     /     /     /     /     ")
    framed = F.pad(target, (1, 0, 2, 1), value=_VOID)
    expect_close(call(F.pad(pred, (1, 0, 2, 1)), framed), value)


def _void_strip(call: Call) -> None:
    _expect_band(call, "/".join(["000.111"] * 3), "/".join(["       "] * 3))
    _expect_band(call, "/".join(["000.0111"] * 3), "/".join(["  # ####"] * 3), width=3)
    image = "000.1111/000.1111/000.1111/00001111"
    _expect_band(call, image, "        /        /    #   /   ##   ")
    _expect_band(call, image, "        /    ##  /  # ##  /  ####  ", width=2)


def _other_ignore_index(call: Call) -> None:
    target = _mask("00.00/00.02/.0022/00222")
    pred = _waves(target, 3)
    value, gradient = call.gradient(pred, target)
    for label in (-1, 100, 1):
        other = target.masked_fill(target == _VOID, label)
        found = call.gradient(pred, other, ignore_index=label)
        expect_close(found[0], value)
        expect_close(found[1], gradient)


def _all_void(call: Call) -> None:
    target = _mask(".../...")
    value, gradient = call.gradient(_waves(target, 3), target)
    _expect_number(value, 0.0)
    expect_close(gradient, torch.zeros_like(gradient))


def _pooled(call: Call) -> None:
    target = _mask("000000111/000000111", "000000000/000000000", "222222222/222222222")
    pred = _waves(target, 3)
    value = number(call, pred, target)
    _expect_number(value, 1.4746892)
    expect_close(call(pred.flip(0), target.flip(0)), value)
    void = torch.full_like(target[:1], _VOID)
    expect_close(call(torch.cat([pred, pred[:1]]), torch.cat([target, void])), value)


def _gradient(call: Call) -> None:
    edge = _mask("/".join(["0000011111"] * 3))
    for boundary_weight in (0.5, 5.0, 9.0):
        (pull,) = _pull(call, edge, boundary_weight=boundary_weight)
        ratio = pull[:, 4:6] / pull[:, [1, 8]]
        expect_close(ratio, torch.full_like(ratio, 1 + boundary_weight))
    # The slope along a direction, beside the difference of the values at both sides.
    pred = _waves(_SCENE, 3).double()
    direction = _waves(_SCENE, 3, size=1.0).double().flip(-1)
    _, gradient = call.gradient(pred, _SCENE)
    ahead, behind = (number(call, pred + step * direction, _SCENE) for step in (0.05, -0.05))
    expect_close((gradient * direction).sum(), (ahead - behind) / 0.1, tolerance=1e-3)


def _range(call: Call) -> None:
    target = _mask("1111/1111")
    pred = _waves(target, 3, size=1e4)
    expect_close(call(pred, target), F.cross_entropy(pred, target))
    half = _waves(_SCENE, 3).half()
    value = number(call, half, _SCENE)
    expect_tensor(value, torch.float32, torch.float64)
    expect_close(value, number(call, half.float(), _SCENE))
    many = half.repeat(20, 1, 1, 1), _SCENE.repeat(20, 1, 1)
    expect_close(
        call(*many, boundary_weight=1000.0), number(call, half, _SCENE, boundary_weight=1000.0)
    )


def _width(call: Call) -> None:
    for width, band in (
        (1, "     ##     "),
        (2, "    ####    "),
        (3, "   ######   "),
    ):
        _expect_band(call, "/".join(["000000111111"] * 2), "/".join([band] * 2), width=width)
    lone = "000000/000000/000000/000000/000001"
    _expect_band(call, lone, "      /      /   ###/   ###/   ###", width=2)


def _thin(call: Call) -> None:
    _expect_band(call, "00001111", "   ##   ")
    _expect_band(call, "0/0/0/2/2/2", " / /#/#/ / ")
    _expect_band(call, "000222", " #### ", width=2)
    target = _mask("1")
    pred = _waves(target, 2)
    expect_close(call(pred, target), F.cross_entropy(pred, target))


def _class_weights(call: Call) -> None:
    target = _mask("0000111222/0000111222")
    pred = _waves(target, 3)
    class_weight = torch.tensor([0.5, 3.0, 1.0])
    value = number(call, pred, target, class_weight=class_weight)
    _expect_number(value, 1.9821712)
    expect_close(call(pred, target, class_weight=10 * class_weight), value)


def _sizes(call: Call) -> None:
    pred = torch.zeros(2, 3, 4, 4)
    for shape in ((2, 4, 5), (2, 3, 4), (1, 4, 4), (2, 1, 4, 4), (4, 4)):
        expect_error(ValueError, call, pred, torch.zeros(shape, dtype=torch.int64))


PUBLIC: dict[str, Test] = {
    "a finite number": _finite_number,
    "weight 0 is cross entropy": _weight_zero,
    "edges weigh more": _edges_weigh_more,
    "any mask": _any_mask,
    "constant target is cross entropy": _constant,
    "uniform prediction gives log C": _uniform,
    "renaming the classes changes nothing": _renaming,
    "staircase": _staircase,
    "one-pixel line": _line,
    "diagonal": _diagonal,
    "border": _border,
    "flips and transpose": _flips,
    "void": _void,
    "void strip": _void_strip,
    "other ignore_index": _other_ignore_index,
    "all void": _all_void,
    "pooled over the batch": _pooled,
    "gradient": _gradient,
    "large logits and float16": _range,
    "width": _width,
    "thin images": _thin,
    "class weights": _class_weights,
    "sizes that do not fit": _sizes,
}
