"""Hidden tests of exercise 2. Images, weights, sizes and scales follow from the secret."""

# canary: 5a3c0e7e-hidden-segcourse

import copy
import math
from collections import Counter
from collections.abc import Sequence

import torch
from hidden.draw import real, whole
from torch import Generator, Tensor, nn

from segcourse.exercises.contract import Call, expect_close, expect_error
from segcourse.exercises.tta_predict import (
    Fussy,
    Probe,
    Ramp,
    Typed,
    expect_inference,
    expect_probabilities,
    expect_same_buffers,
    expect_same_modes,
    expect_same_modes_after_error,
    expect_sizes,
    predicted,
)

DEFAULT = (0.75, 1.0, 1.25)


# The slow oracle: the definition once more, in float64 and without torch's interpolation.


def interpolation(source: int, target: int) -> Tensor:
    """Matrix [target, source] that resizes a row of pixels linearly, centres at i + 0.5."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        place = (i + 0.5) * source / target - 0.5
        place = min(max(place, 0.0), source - 1.0)
        left = min(int(place), max(source - 2, 0))
        matrix[i, left] += 1 - (place - left)
        if source > 1:
            matrix[i, left + 1] += place - left
    return matrix


def resized(maps: Tensor, height: int, width: int) -> Tensor:
    rows, columns = interpolation(maps.shape[2], height), interpolation(maps.shape[3], width)
    return rows @ maps.double() @ columns.T


def softmax(logits: Tensor) -> Tensor:
    powers = (logits.double() - logits.double().amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def view_size(sides: Sequence[int], scale: float) -> tuple[int, ...]:
    return tuple(max(1, math.floor(side * scale + 0.5)) for side in sides)


def oracle(
    network: nn.Module, images: Tensor, scales: Sequence[float] = DEFAULT, flip: bool = True
) -> Tensor:
    """What the function should return for a probe of this network, in float64."""
    network = copy.deepcopy(network).eval()
    sides = images.shape[2:]
    views = []
    for scale in scales:
        view = resized(images, *view_size(sides, scale)).float()
        with torch.no_grad():
            views.append(softmax(resized(network(view), *sides)))
            if flip:
                views.append(softmax(resized(network(view.flip(3)).flip(3), *sides)))
    return torch.stack(views).mean(0)


def expect_oracle(call: Call, network: nn.Module, images: Tensor, **options: object) -> None:
    expected = oracle(network, images, **options)
    expect_close(call(Probe(network), images, **options), expected)


# Drawing images, models and scales.


def shuffled(g: Generator, items: Sequence) -> list:
    return [items[i] for i in torch.randperm(len(items), generator=g)]


def draw_images(g: Generator, batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=g)


def some_images(g: Generator) -> Tensor:
    return draw_images(g, whole(g, 1, 3), whole(g, 6, 14), whole(g, 6, 14))


def draw_slopes(g: Generator, classes: int, size: float) -> Tensor:
    return size * torch.randn(classes, 2, generator=g)


def convolutions(g: Generator, *, stride: int = 2, dropout: float = 0.0) -> nn.Sequential:
    """A network in train mode with a logit every `stride` ** 2 pixels, for 2 to 5 classes."""
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=stride, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(6, whole(g, 2, 5), 3, stride=stride, padding=1),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.6 * torch.randn(parameter.shape, generator=g))
        network[1].running_mean.copy_(0.3 * torch.randn(6, generator=g))
        network[1].running_var.copy_(0.3 + torch.rand(6, generator=g))
    return network


def pointwise(g: Generator, classes: int) -> nn.Conv2d:
    """A network that looks at one pixel at a time."""
    network = nn.Conv2d(3, classes, 1)
    with torch.no_grad():
        network.weight.copy_(3 * torch.randn(classes, 3, 1, 1, generator=g))
        network.bias.copy_(torch.randn(classes, generator=g))
    return network


def draw_modes(g: Generator, model: nn.Module) -> None:
    """Put each module in train or eval mode, at least one in each."""
    modules = list(model.modules())
    modes = [True, False, *(bool(whole(g, 0, 1)) for _ in modules[2:])]
    for module, training in zip(modules, shuffled(g, modes), strict=True):
        module.training = training


class Tall(nn.Module):
    """Two classes; the logit of the second one grows with the height of the images."""

    def __init__(self, slope: float, height: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.height = height

    def forward(self, images: Tensor) -> Tensor:
        second = self.slope * (images.shape[2] / self.height - 1)
        logits = torch.stack([torch.zeros(()), second])
        return logits[None, :, None, None].expand(len(images), -1, *images.shape[2:])


# float32 [B,C,H,W]


def coarse_output(call: Call, g: Generator) -> None:
    images, network = some_images(g), convolutions(g)
    if predicted(call, Probe(network), images).shape[1] != network[-1].out_channels:
        raise AssertionError("another number of classes is expected")


def logits_of_another_type(call: Call, g: Generator) -> None:
    """One view alone: a gate must not fail for what another property is about."""
    for dtype in (torch.float16, torch.float64):
        images, one_view = some_images(g), {"scales": (1.0,), "flip": False}
        network = nn.Sequential(Ramp(draw_slopes(g, 3, 4.0)), Typed(dtype))
        expected = oracle(network, images, **one_view)
        expect_close(predicted(call, Probe(network), images, **one_view), expected)


# one scale without flip is plain prediction


def fine_output(call: Call, g: Generator) -> None:
    images, network = some_images(g), pointwise(g, 4)
    expected = softmax(network(images).detach())
    expect_close(call(Probe(network), images, scales=(1.0,), flip=False), expected)


def one_view_of_coarse_output(call: Call, g: Generator) -> None:
    expect_oracle(call, convolutions(g), some_images(g), scales=(1.0,), flip=False)


# classes sum to 1


def any_views(call: Call, g: Generator) -> None:
    scales = tuple(real(g, 0.3, 2.0) for _ in range(whole(g, 1, 7)))
    for flip in (True, False):
        model, images = Probe(convolutions(g)), some_images(g)
        expect_probabilities(call, model, images, scales=scales, flip=flip)


def large_logits(call: Call, g: Generator) -> None:
    network = convolutions(g)
    network[-1].weight.data *= 1e4
    expect_probabilities(call, Probe(network), some_images(g))


# number and sizes of the views


def counted(call: Call, g: Generator) -> None:
    for flip in (True, False):
        images = some_images(g)
        scales = shuffled(g, (0.5, 0.75, 1.0, 1.25, 1.5, real(g, 1.7, 2.3)))[: whole(g, 1, 5)]
        expected = Counter()
        for scale in scales:
            expected[view_size(images.shape[2:], scale)] += len(images) * (1 + flip)
        model = Probe(convolutions(g))
        call(model, images, scales=tuple(scales), flip=flip)
        expect_sizes(model, expected)


def tiny_images(call: Call, g: Generator) -> None:
    images = draw_images(g, 1, whole(g, 1, 3), whole(g, 1, 3))
    scales = (0.1, real(g, 0.02, 0.15), 1.0)
    model, expected = Probe(pointwise(g, 3)), Counter({(1, 1): 4})
    expected[tuple(images.shape[2:])] += 2
    call(model, images, scales=scales)
    expect_sizes(model, expected)


def what_the_views_show(call: Call, g: Generator) -> None:
    images = draw_images(g, 1, whole(g, 6, 12), whole(g, 6, 12))
    for scale in (real(g, 0.5, 0.9), 1.0, real(g, 1.2, 1.9)):
        model = Probe(pointwise(g, 3))
        call(model, images, scales=(scale,))
        shown = [image for view in model.views for image in view.images.split(1)]
        expected = resized(images, *view_size(images.shape[2:], scale))
        if len(shown) != 2 or any(view.shape != expected.shape for view in shown):
            raise AssertionError("the model was shown other sizes, or more views or fewer")
        first, second = sorted(shown, key=lambda view: float((view - expected).abs().max()))
        expect_close(first, expected)
        expect_close(second, expected.flip(3))


# equal to the definition


def default_views(call: Call, g: Generator) -> None:
    expect_oracle(call, convolutions(g), some_images(g))


def any_scales_without_flip(call: Call, g: Generator) -> None:
    scales = tuple(real(g, 0.4, 2.0) for _ in range(3))
    expect_oracle(call, convolutions(g, stride=1), some_images(g), scales=scales, flip=False)


def equal_scales_count_twice(call: Call, g: Generator) -> None:
    twice = real(g, 1.5, 2.5)
    expect_oracle(call, convolutions(g), some_images(g), scales=(0.5, twice, twice))
    images = draw_images(g, 2, 6, 8)
    same_size = (1.51, 1.52, 0.5)  # 9 rows and 12 columns, twice
    expect_oracle(call, convolutions(g), images, scales=same_size)


def strong_shrinking(call: Call, g: Generator) -> None:
    images = draw_images(g, 2, whole(g, 16, 24), whole(g, 16, 24))
    scales = (real(g, 0.2, 0.3), real(g, 0.3, 0.45))
    expect_oracle(call, convolutions(g, stride=1), images, scales=scales)


def thin_images(call: Call, g: Generator) -> None:
    for height, width in ((1, whole(g, 5, 12)), (whole(g, 5, 12), 1), (1, 1)):
        expect_oracle(call, convolutions(g), draw_images(g, 2, height, width))


def odd_sides(call: Call, g: Generator) -> None:
    height, width = shuffled(g, (7, 11, 13, 17))[:2]
    images = draw_images(g, 2, height, width)
    for options in ({}, {"scales": (0.5, 1.5, 2.5)}):
        expect_oracle(call, convolutions(g), images, **options)


# odd sizes


def expect_sizes_of(call: Call, g: Generator, height: int, width: int, *scales: float) -> None:
    """The model is shown what sides a scale gives, whatever is made of its answers."""
    for scale in scales:
        model = Probe(convolutions(g))
        call(model, draw_images(g, 1, height, width), scales=(scale,))
        expect_sizes(model, {view_size((height, width), scale): 2})


def halves(call: Call, g: Generator) -> None:
    height, width = (2 * whole(g, 3, 7) + 1 for _ in range(2))
    expect_sizes_of(call, g, height, width, 0.5, 1.5, 2.5)


def halves_to_even_and_odd(call: Call, g: Generator) -> None:
    """Sides 4k + 1 and 4k + 3: their halves lie above an even and above an odd number."""
    k = whole(g, 1, 4)
    expect_sizes_of(call, g, 4 * k + 1, 4 * k + 3, 0.5)
    expect_sizes_of(call, g, 4 * k + 3, 4 * k + 1, 0.5)


def prime_sides(call: Call, g: Generator) -> None:
    height, width = shuffled(g, (7, 11, 13, 17))[:2]
    expect_sizes_of(call, g, height, width, *DEFAULT)


# a mirrored image gives a mirrored result


def expect_mirrored(call: Call, network: nn.Module, images: Tensor, scales: Sequence) -> None:
    found, mirrored = (
        predicted(call, Probe(network), x, scales=scales) for x in (images, images.flip(3))
    )
    expect_close(mirrored, found.flip(3), 1e-6)


def mirrored_image(call: Call, g: Generator) -> None:
    """At these sizes and scales each weight of the interpolation is exact in float32."""
    images = draw_images(g, 2, 4 * whole(g, 1, 3), 4 * whole(g, 1, 3))
    expect_mirrored(call, convolutions(g, stride=1), images, (0.5, 1.0, 2.0))
    expect_mirrored(call, pointwise(g, 3), images, (0.25, 0.5, 1.0))


def mirrored_image_seen_by_place(call: Call, g: Generator) -> None:
    images = draw_images(g, 1, 4 * whole(g, 1, 4), 4 * whole(g, 1, 4))
    expect_mirrored(call, Ramp(draw_slopes(g, 3, 3.0)), images, (0.5, 1.0, 2.0))


# what a model says of a place stays in its place


def ramp(slopes: Tensor, height: int, width: int) -> Tensor:
    """The logits of a `Ramp` on the grid of the image itself, in float64."""
    logits = torch.zeros(1, len(slopes), height, width, dtype=torch.float64)
    for c, (down, across) in enumerate(slopes.tolist()):
        for i in range(height):
            for j in range(width):
                logits[0, c, i, j] = down * (i + 0.5) / height + across * (j + 0.5) / width
    return logits


def logits_by_place(call: Call, g: Generator) -> None:
    height, width, slopes = whole(g, 2, 9), whole(g, 2, 9), draw_slopes(g, 3, 4.0)
    logits = ramp(slopes, height, width)
    expected = (softmax(logits) + softmax(logits.flip(3))) / 2
    found = call(Probe(Ramp(slopes)), draw_images(g, 1, height, width), scales=(1.0,))
    expect_close(found, expected)


def logits_by_place_at_any_scale(call: Call, g: Generator) -> None:
    """Bilinear interpolation keeps a plane as it is, but for the margin."""
    height, width, slopes = whole(g, 10, 15), whole(g, 10, 15), draw_slopes(g, 3, 4.0)
    scales = tuple(real(g, 0.5, 2.0) for _ in range(3))
    logits = ramp(slopes, height, width)
    expected = (softmax(logits) + softmax(logits.flip(3))) / 2
    found = predicted(call, Probe(Ramp(slopes)), draw_images(g, 1, height, width), scales=scales)
    inside = (..., slice(2, -2), slice(2, -2))
    expect_close(found[inside], expected[inside])


def image_of_its_own_coordinates(call: Call, g: Generator) -> None:
    """What comes back from any view of a plane is the plane, but for the margin."""
    height, width = whole(g, 12, 16), whole(g, 12, 16)
    scales = tuple(real(g, 0.5, 2.0) for _ in range(3))
    images = ramp(draw_slopes(g, 3, 1.0), height, width).float()
    network = pointwise(g, 3)
    found = predicted(call, Probe(network), images, scales=scales)
    expected = softmax(network(images).detach())
    inside = (..., slice(3, -3), slice(3, -3))
    expect_close(found[inside], expected[inside])


# probabilities are averaged


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def views_that_disagree(call: Call, g: Generator) -> None:
    """Right and left of the middle, the model is as sure of one class as of the other."""
    height, width, slope = whole(g, 1, 4), whole(g, 4, 9), real(g, 5.0, 9.0)
    model = Probe(Ramp(torch.tensor([[0.0, 0.0], [0.0, slope]])))
    found = call(model, draw_images(g, 1, height, width), scales=(1.0,))
    columns = [(j + 0.5) / width for j in range(width)]
    row = [(sigmoid(slope * c) + sigmoid(slope * (1 - c))) / 2 for c in columns]
    second = torch.tensor(row, dtype=torch.float64).expand(1, height, width)
    expect_close(found, torch.stack([1 - second, second], dim=1))


def scales_that_disagree(call: Call, g: Generator) -> None:
    height, slope = 4 * whole(g, 1, 3), real(g, 4.0, 20.0)
    images = draw_images(g, 1, height, whole(g, 4, 9))
    scales = (0.25, 0.5, 1.25, real(g, 1.5, 3.0))
    heights = [view_size((height,), scale)[0] for scale in scales]
    mean = sum(sigmoid(slope * (h / height - 1)) for h in heights) / len(heights)
    found = call(Probe(Tall(slope, height)), images, scales=scales, flip=bool(whole(g, 0, 1)))
    second = torch.full((1, *images.shape[2:]), mean, dtype=torch.float64)
    expect_close(found, torch.stack([1 - second, second], dim=1))


# BatchNorm statistics stay as they were


def statistics(call: Call, g: Generator) -> None:
    expect_same_buffers(call, Probe(convolutions(g)), some_images(g))


def statistics_with_modes_mixed(call: Call, g: Generator) -> None:
    """The model is in eval mode but for its BatchNorm."""
    model = Probe(convolutions(g)).eval()
    model.network[1].train()
    expect_same_buffers(call, model, some_images(g))


# the model runs in eval mode without gradients


def in_train_mode(call: Call, g: Generator) -> None:
    expect_inference(call, Probe(convolutions(g)), some_images(g))


def modes_mixed(call: Call, g: Generator) -> None:
    model = Probe(convolutions(g))
    draw_modes(g, model)
    expect_inference(call, model, some_images(g), scales=(1.0,), flip=False)


# each module gets its mode back


def any_modes(call: Call, g: Generator) -> None:
    for _ in range(3):
        model = Probe(convolutions(g))
        draw_modes(g, model)
        expect_same_modes(call, model, some_images(g))


def all_in_one_mode(call: Call, g: Generator) -> None:
    expect_same_modes(call, Probe(convolutions(g)), some_images(g))
    expect_same_modes(call, Probe(convolutions(g)).eval(), some_images(g))


def after_an_exception(call: Call, g: Generator) -> None:
    for _ in range(3):
        height = 4 * whole(g, 2, 3)
        refused = view_size((height,), shuffled(g, DEFAULT)[0])[0]
        model = Probe(nn.Sequential(Fussy(refused), convolutions(g)))
        draw_modes(g, model)
        expect_same_modes_after_error(call, model, draw_images(g, 1, height, whole(g, 6, 12)))


def after_bad_scales(call: Call, g: Generator) -> None:
    for scales in ((), (1.0, -real(g, 0.1, 2.0))):
        model = Probe(convolutions(g))
        draw_modes(g, model)
        expect_same_modes_after_error(call, model, some_images(g), scales=scales)


# two calls give the same result


def with_dropout(call: Call, g: Generator) -> None:
    model, images = Probe(convolutions(g, dropout=0.5)), some_images(g)
    first, second = (predicted(call, model, images) for _ in range(2))
    expect_close(second, first, 1e-6)


def with_dropout_alone_in_train_mode(call: Call, g: Generator) -> None:
    model, images = Probe(convolutions(g, dropout=0.5)).eval(), some_images(g)
    model.network[3].train()
    first, second = (predicted(call, model, images) for _ in range(2))
    expect_close(second, first, 1e-6)


# an image does not depend on the rest of its batch


def each_image_alone(call: Call, g: Generator) -> None:
    images, network = draw_images(g, 3, whole(g, 5, 9), whole(g, 5, 9)), convolutions(g)
    found = predicted(call, Probe(network), images)
    for i in range(3):
        expect_close(call(Probe(network), images[i : i + 1]), found[i : i + 1])


def other_order_of_the_batch(call: Call, g: Generator) -> None:
    images, network = draw_images(g, 4, whole(g, 5, 9), whole(g, 5, 9)), convolutions(g)
    order = [1, 2, 3, 0]
    found = predicted(call, Probe(network), images)
    expect_close(call(Probe(network), images[order]), found[order])


# the order of the scales is irrelevant


def other_order_of_the_scales(call: Call, g: Generator) -> None:
    images, network = some_images(g), convolutions(g)
    scales = (0.5, 1.0, real(g, 1.3, 1.6), real(g, 1.7, 2.0))
    found = predicted(call, Probe(network), images, scales=scales)
    for other in (scales[::-1], scales[1:] + scales[:1], tuple(shuffled(g, scales))):
        expect_close(call(Probe(network), images, scales=other), found)


# bad scales raise ValueError


def no_scales(call: Call, g: Generator) -> None:
    expect_error(ValueError, call, Probe(convolutions(g)), some_images(g), scales=())


def scale_of_zero(call: Call, g: Generator) -> None:
    for scales in ((0.0,), (1.0, 0.0)):
        expect_error(ValueError, call, Probe(convolutions(g)), some_images(g), scales=scales)


def negative_scale(call: Call, g: Generator) -> None:
    scales = tuple(shuffled(g, (1.0, real(g, 0.5, 2.0), -real(g, 0.01, 2.0))))
    expect_error(ValueError, call, Probe(convolutions(g)), some_images(g), scales=scales)


TESTS = {
    "float32 [B,C,H,W]": [coarse_output, logits_of_another_type],
    "one scale without flip is plain prediction": [fine_output, one_view_of_coarse_output],
    "classes sum to 1": [any_views, large_logits],
    "number and sizes of the views": [counted, tiny_images, what_the_views_show],
    "equal to the definition": [
        default_views,
        any_scales_without_flip,
        equal_scales_count_twice,
        odd_sides,
        strong_shrinking,
        thin_images,
    ],
    "odd sizes": [halves, halves_to_even_and_odd, prime_sides],
    "a mirrored image gives a mirrored result": [
        mirrored_image,
        mirrored_image_seen_by_place,
    ],
    "what a model says of a place stays in its place": [
        logits_by_place,
        logits_by_place_at_any_scale,
        image_of_its_own_coordinates,
    ],
    "probabilities are averaged": [views_that_disagree, scales_that_disagree],
    "BatchNorm statistics stay as they were": [statistics, statistics_with_modes_mixed],
    "the model runs in eval mode without gradients": [in_train_mode, modes_mixed],
    "each module gets its mode back": [
        any_modes,
        all_in_one_mode,
        after_an_exception,
        after_bad_scales,
    ],
    "two calls give the same result": [with_dropout, with_dropout_alone_in_train_mode],
    "an image does not depend on the rest of its batch": [
        each_image_alone,
        other_order_of_the_batch,
    ],
    "the order of the scales is irrelevant": [other_order_of_the_scales],
    "bad scales raise ValueError": [no_scales, scale_of_zero, negative_scale],
}
