"""Exercise 2: the mean prediction over scaled and mirrored views of an image.

You write

    tta_predict(model, x, *, scales=(0.75, 1.0, 1.25), flip=True) -> Tensor [B,C,H,W]

`model` maps images [B,3,h,w] of any size to logits [B,C,h',w'], often smaller than the images:
every fourth pixel, say. `x` holds images [B,3,H,W]. The result is a float32 tensor of
probabilities, the mean over all views.

**The views.** Each scale s in `scales` gives the images at floor(H * s + 0.5) rows and
floor(W * s + 0.5) columns, at least 1 each; with `flip=True` also the mirror image of that, left
and right exchanged. Two scales that are equal, or give the same size, are two scales all the same.

**From a view back to the image.** Mirror the logits of a mirrored view back, resize the logits to
H rows and W columns in one step, take the softmax over the classes. These probabilities are
averaged, each view with the same weight. All of this is done in float32, also where the model
returns another type. Every resize is bilinear, with `align_corners=False` and without
antialiasing.

**The model.** It runs in eval mode and without gradients. Afterwards each of its modules is in the
mode in which it was before, train or eval: some may have been in one and some in the other. This
holds also where the model raises an exception, which reaches the caller.

ValueError for empty `scales` and for a scale that is not above 0.

Test-time augmentation of this kind: L.-C. Chen et al., "Encoder-Decoder with Atrous Separable
Convolution for Semantic Image Segmentation", ECCV 2018.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segcourse.exercises.contract import (
    AnswerError,
    Call,
    Contract,
    Property,
    Test,
    expect_close,
    expect_error,
    expect_finite,
    expect_tensor,
)

CONTRACT = Contract(
    "tta_predict",
    (
        Property(
            "float32 [B,C,H,W]",
            None,
            "look at the shape and dtype of what you return: a model may give coarser logits, and "
            "logits of another dtype",
        ),
        Property(
            "one scale without flip is plain prediction",
            None,
            "with scales=(1.0,) and flip=False there is one view, the images as they are",
        ),
        Property("classes sum to 1", 1, "a mean has as many terms as it is divided by"),
        Property(
            "number and sizes of the views",
            2,
            "print the shape of each view: two per scale with flip=True, one without",
        ),
        Property(
            "equal to the definition",
            2,
            "take one view at a time: which way is each tensor resized, and when? Does each "
            "scale count?",
        ),
        Property("odd sizes", 2, "which whole number is a half rounded to?"),
        Property(
            "a mirrored image gives a mirrored result",
            1,
            "in which order do left and right stand in the logits of a mirrored view?",
        ),
        Property(
            "what a model says of a place stays in its place",
            2,
            "follow one pixel to the view and back",
        ),
        Property(
            "probabilities are averaged",
            2,
            "let one view be sure of class 0 and another of class 1: what is their mean?",
        ),
        Property(
            "BatchNorm statistics stay as they were",
            1,
            "in train mode a BatchNorm learns from each batch that it is shown",
        ),
        Property(
            "the model runs in eval mode without gradients",
            1,
            "every module of the model counts; a prediction needs no graph",
        ),
        Property(
            "each module gets its mode back",
            2,
            "modules may differ in their modes, and the model may raise an exception",
        ),
        Property(
            "two calls give the same result",
            1,
            "dropout draws random numbers in train mode",
        ),
        Property(
            "an image does not depend on the rest of its batch",
            1,
            "which axis of the logits holds the classes?",
        ),
        Property(
            "the order of the scales is irrelevant",
            1,
            "each view has the same weight in a mean",
        ),
        Property("bad scales raise ValueError", 1, "no view at all; a scale of 0; a negative one"),
    ),
)


@dataclass(frozen=True)
class View:
    """What a model was shown, and how it ran: one call of its forward."""

    images: Tensor  # [b,3,h,w]
    training: bool  # was any module in train mode?
    gradients: bool  # were gradients recorded?


class Probe(nn.Module):
    """A model that keeps a record of what it is shown: logits of `network`, [b,C,h',w'].

    `views` has a `View` for each forward and is shared with all copies of the probe. That way a
    test can read it although its `Call` copies the arguments. Copies are otherwise real ones,
    since a student's function may copy the model too and run the copy.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.views: list[View] = []
        self._copies: list[Probe] = []

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4:
            raise ValueError(f"images: expected [B,3,H,W]; got {list(images.shape)}")
        training = any(module.training for module in self.modules())
        self.views.append(View(images.detach().clone(), training, torch.is_grad_enabled()))
        return self.network(images)

    def __deepcopy__(self, memo: dict) -> Probe:
        twin = Probe(copy.deepcopy(self.network, memo))
        twin.training = self.training
        twin.views, twin._copies = self.views, self._copies
        self._copies.append(twin)
        return twin

    @property
    def given(self) -> Probe:
        """The probe that the function was handed: the first copy, or itself where none was made.

        Its modes and buffers are as the function left them. Meant for a probe that served one
        call.
        """
        return self._copies[0] if self._copies else self

    def modes(self) -> list[bool]:
        """Is it in train mode? One answer for each module."""
        return [module.training for module in self.modules()]

    def sizes(self) -> Counter[tuple[int, int]]:
        """How many images of each size, (rows, columns), it was shown.

        Images are counted, not calls: views may come one by one or as one batch.
        """
        count: Counter[tuple[int, int]] = Counter()
        for view in self.views:
            rows, columns = view.images.shape[2:]
            count[rows, columns] += len(view.images)
        return count


class Ramp(nn.Module):
    """Logits that depend on where a pixel lies, and not on the images.

    Class c has the logit slopes[c, 0] * row + slopes[c, 1] * column, where both run from 0 at one
    edge of the image to 1 at the other and are taken at the centres of the pixels.
    """

    def __init__(self, slopes: Tensor) -> None:
        super().__init__()
        self.slopes = nn.Parameter(slopes)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
        logits = torch.einsum("cd,dhw->chw", self.slopes, places)
        return logits.expand(len(images), -1, -1, -1)


class Typed(nn.Module):
    """Logits as they come, in another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, logits: Tensor) -> Tensor:
        return logits.to(self.dtype)


class Fussy(nn.Module):
    """Hands images on, and raises RuntimeError for those of one height."""

    def __init__(self, height: int) -> None:
        super().__init__()
        self.height = height

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2] == self.height:
            raise RuntimeError("this model refuses images of that height")
        return images


def predicted(call: Call, model: Probe, images: Tensor, **options: object) -> Tensor:
    """What the function returns; AssertionError unless it is finite and float32 [B,C,H,W]."""
    found = call(model, images, **options)
    expect_tensor(found, torch.float32)
    if found.ndim != 4 or len(found) != len(images) or found.shape[2:] != images.shape[2:]:
        shape = list(found.shape)
        raise AssertionError(f"[B,C,H,W] with the images' B, H and W is expected; got {shape}")
    expect_finite(found)
    return found


def expect_probabilities(call: Call, model: Probe, images: Tensor, **options: object) -> None:
    """AssertionError unless a call returns probabilities that sum to 1 over the classes."""
    found = predicted(call, model, images, **options)
    if found.min() < 0:
        raise AssertionError("a probability is negative")
    expect_close(found.sum(1), torch.ones(len(images), *images.shape[2:]))


def expect_sizes(model: Probe, expected: Mapping[tuple[int, int], int]) -> None:
    """AssertionError unless the probe was shown so many images of each size, (rows, columns)."""
    if model.sizes() != expected:
        raise AssertionError("the model was shown other sizes, or more views or fewer")


def expect_inference(call: Call, model: Probe, images: Tensor, **options: object) -> None:
    """AssertionError unless a call runs all of `model` in eval mode and without gradients."""
    _call_model(call, model, images, **options)
    if any(view.training for view in model.views):
        raise AssertionError("a module of the model was in train mode")
    if any(view.gradients for view in model.views):
        raise AssertionError("gradients were recorded")


def expect_same_modes(call: Call, model: Probe, images: Tensor, **options: object) -> None:
    """AssertionError unless a call leaves each module of `model` in the mode that it has now."""
    before = model.modes()
    _call_model(call, model, images, **options)
    if model.given.modes() != before:
        raise AssertionError("a module of the model was left in another mode")


def expect_same_modes_after_error(
    call: Call, model: Probe, images: Tensor, **options: object
) -> None:
    """As `expect_same_modes`, for a call in which an exception is raised."""
    before = model.modes()
    try:
        call(model, images, **options)
    except AnswerError:
        pass
    else:
        raise AssertionError("an exception should have reached the caller")
    if model.given.modes() != before:
        raise AssertionError("an exception left a module of the model in another mode")


def expect_same_buffers(call: Call, model: Probe, images: Tensor, **options: object) -> None:
    """AssertionError unless a call leaves the buffers of `model` as they are now."""
    before = [buffer.clone() for buffer in model.buffers()]
    _call_model(call, model, images, **options)
    if not all(map(torch.equal, model.given.buffers(), before)):
        raise AssertionError("a BatchNorm of the model has other statistics than before")


def _call_model(call: Call, model: Probe, images: Tensor, **options: object) -> None:
    call(model, images, **options)
    if not model.views:
        raise AssertionError("the model was not called")


def _pattern(*shape: int) -> Tensor:
    """Numbers between -1 and 1 that look irregular and are the same on every machine."""
    count = torch.Size(shape).numel()
    return (((torch.arange(count) * 7 + 3) % 11 - 5) / 5).reshape(shape)


def _images(batch: int, height: int, width: int) -> Tensor:
    return (_pattern(batch, 3, height, width) + 1) / 2


def _network(*, dropout: float = 0.0) -> nn.Sequential:
    """Two classes, a logit for every second pixel, in train mode."""
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(4, 2, 1),
    )
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.copy_(_pattern(*tensor.shape))
        network[1].running_mean.copy_(_pattern(4))
        network[1].running_var.copy_(_pattern(4) ** 2 + 0.5)
    return network


def _two_classes(rows: list[list[float]]) -> Tensor:
    """Probabilities [1,2,H,W] from those of the second class, [H,W]."""
    second = torch.tensor(rows)
    return torch.stack([1 - second, second])[None]


# Stored cases: probabilities [H,W] of the second class.
PLAIN = [
    [0.39915, 0.45262, 0.56163, 0.61461],
    [0.60933, 0.59304, 0.55989, 0.54309],
    [0.78549, 0.71974, 0.55814, 0.46975],
]
MEAN = [
    [0.50814, 0.58103, 0.58421, 0.52354],
    [0.56411, 0.59180, 0.58478, 0.55525],
    [0.60762, 0.59730, 0.58527, 0.58387],
]
ODD = [
    [0.56152, 0.66607, 0.62618],
    [0.53559, 0.67076, 0.60752],
    [0.50470, 0.66328, 0.54324],
    [0.47509, 0.64573, 0.48030],
    [0.45337, 0.62934, 0.47057],
]
PLACE = [
    [0.75544, 0.86532, 0.86532, 0.75544],
    [0.62041, 0.71408, 0.71408, 0.62041],
]
AVERAGED = [
    [0.83318, 0.94176, 0.97069, 0.94176, 0.83318],
]


def _shape_and_type(call: Call) -> None:
    for network in (_network(), nn.Sequential(_network(), Typed(torch.float64))):
        found = predicted(call, Probe(network), _images(2, 5, 8))
        if found.shape[1] != 2:
            raise AssertionError(f"2 classes are expected; got {found.shape[1]}")


def _plain(call: Call) -> None:
    found = call(Probe(_network()), _images(1, 3, 4), scales=(1.0,), flip=False)
    expect_close(found, _two_classes(PLAIN), 1e-4)


def _classes_sum_to_1(call: Call) -> None:
    expect_probabilities(call, Probe(_network()), _images(2, 5, 6))


def _views(call: Call) -> None:
    cases = [
        ({}, {(6, 9): 4, (8, 12): 4, (10, 15): 4}),
        ({"flip": False}, {(6, 9): 2, (8, 12): 2, (10, 15): 2}),
        ({"scales": (0.5, 2.0)}, {(4, 6): 4, (16, 24): 4}),
        ({"scales": (0.05,)}, {(1, 1): 4}),
    ]
    for options, expected in cases:
        model = Probe(_network())
        call(model, _images(2, 8, 12), **options)
        expect_sizes(model, expected)


def _definition(call: Call) -> None:
    images = _images(1, 3, 4)
    expect_close(call(Probe(_network()), images), _two_classes(MEAN), 1e-4)
    found = call(Probe(_network()), _images(1, 5, 3), scales=(0.5, 1.5))
    expect_close(found, _two_classes(ODD), 1e-4)
    for scales in ((1.0, 1.0, 0.5), (1.0, 0.5, 0.6)):  # equal ones, and two of the same size
        alone = [predicted(call, Probe(_network()), images, scales=(s,)) for s in scales]
        found = call(Probe(_network()), images, scales=scales)
        expect_close(found, torch.stack(alone).mean(0))


def _odd(call: Call) -> None:
    model = Probe(_network())
    call(model, _images(1, 5, 3), scales=(0.5, 1.5))
    expect_sizes(model, {(3, 2): 2, (8, 5): 2})


def _mirrored(call: Call) -> None:
    images = _images(2, 8, 12)
    found, mirrored = (
        predicted(call, Probe(_network()), x, scales=(0.5, 1.0, 2.0))
        for x in (images, images.flip(3))
    )
    expect_close(mirrored, found.flip(3), 1e-6)


def _place(call: Call) -> None:
    model = Probe(Ramp(torch.tensor([[0.0, 0.0], [-2.0, 5.0]])))
    expect_close(call(model, _images(1, 2, 4), scales=(1.0,)), _two_classes(PLACE), 1e-4)


def _averaged(call: Call) -> None:
    model = Probe(Ramp(torch.tensor([[0.0, 1.0], [0.0, 8.0]])))
    found = call(model, _images(1, 1, 5), scales=(1.0, 2.0))
    expect_close(found, _two_classes(AVERAGED), 1e-4)


def _statistics(call: Call) -> None:
    expect_same_buffers(call, Probe(_network()), _images(2, 6, 6))


def _inference(call: Call) -> None:
    expect_inference(call, Probe(_network()), _images(1, 6, 6))


def _modes(call: Call) -> None:
    images = _images(1, 8, 8)
    expect_same_modes(call, Probe(_network()), images)
    expect_same_modes(call, Probe(_network()).eval(), images)
    frozen = Probe(_network())
    frozen.network[1].eval()
    expect_same_modes(call, frozen, images)
    fussy = Probe(nn.Sequential(Fussy(10), _network()))
    expect_same_modes_after_error(call, fussy, images)


def _repeated(call: Call) -> None:
    model, mixed = Probe(_network(dropout=0.5)), Probe(_network(dropout=0.5)).eval()
    mixed.network[3].train()  # the dropout, and nothing else
    for probe in (model, mixed):
        first, second = (predicted(call, probe, _images(2, 6, 6)) for _ in range(2))
        expect_close(second, first, 1e-6)


def _batch(call: Call) -> None:
    images = _images(3, 5, 6)
    found = predicted(call, Probe(_network()), images)
    for i in range(3):
        expect_close(call(Probe(_network()), images[i : i + 1]), found[i : i + 1])


def _order(call: Call) -> None:
    images = _images(1, 6, 7)
    found = predicted(call, Probe(_network()), images, scales=(0.5, 1.0, 2.0))
    expect_close(call(Probe(_network()), images, scales=(2.0, 0.5, 1.0)), found)


def _bad_scales(call: Call) -> None:
    for scales in ((), (0.0,), (1.0, -0.5)):
        expect_error(ValueError, call, Probe(_network()), _images(1, 4, 4), scales=scales)


PUBLIC: dict[str, Test] = {
    "float32 [B,C,H,W]": _shape_and_type,
    "one scale without flip is plain prediction": _plain,
    "classes sum to 1": _classes_sum_to_1,
    "number and sizes of the views": _views,
    "equal to the definition": _definition,
    "odd sizes": _odd,
    "a mirrored image gives a mirrored result": _mirrored,
    "what a model says of a place stays in its place": _place,
    "probabilities are averaged": _averaged,
    "BatchNorm statistics stay as they were": _statistics,
    "the model runs in eval mode without gradients": _inference,
    "each module gets its mode back": _modes,
    "two calls give the same result": _repeated,
    "an image does not depend on the rest of its batch": _batch,
    "the order of the scales is irrelevant": _order,
    "bad scales raise ValueError": _bad_scales,
}
