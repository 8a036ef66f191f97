"""Wrong answers to exercise 2, each with a property whose hidden tests must fail it."""

# canary: 5a3c0e7e-hidden-segcourse

import contextlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

HORIZONTAL, VERTICAL = (3,), (2,)


# The right parts, of which each wrong answer has one replaced.


def half_up(side, scale):
    return max(1, math.floor(side * scale + 0.5))


def bilinear(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def require_positive(scales):
    if not scales or min(scales) <= 0:
        raise ValueError("scales")


@contextlib.contextmanager
def inference(model):
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def mean_probability(views, sides, resize):
    return torch.stack([resize(view.float(), sides).softmax(1) for view in views]).mean(0)


def answer(
    *,
    check=require_positive,
    side=half_up,
    shrink=bilinear,
    enlarge=bilinear,
    mode=inference,
    mirror=HORIZONTAL,
    mirror_back=HORIZONTAL,
    mirrored=lambda scale, flip: flip,
    chosen=lambda scales, sides: scales,
    combine=mean_probability,
) -> Callable:
    """An answer of these parts; with all defaults it is right."""

    def tta_predict(model, x, *, scales=(0.75, 1.0, 1.25), flip=True):
        check(scales)
        sides, views = tuple(x.shape[2:]), []
        with mode(model):
            for scale in chosen(scales, sides):
                view = shrink(x, tuple(side(n, scale) for n in sides))
                views.append(model(view))
                if mirrored(scale, flip):
                    views.append(model(view.flip(mirror)).flip(mirror_back))
            return combine(views, sides, enlarge)

    return tta_predict


# Resizing.


def corners_aligned(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def nearest(maps, size):
    return F.interpolate(maps, size, mode="nearest")


def antialiased(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)


def bicubic(maps, size):
    return F.interpolate(maps, size, mode="bicubic", align_corners=False)


def half_to_even(side, scale):
    return max(1, round(side * scale))


def down(side, scale):
    return max(1, int(side * scale))


def up(side, scale):
    return math.ceil(side * scale)


def to_multiples_of_four(side, scale):
    return max(4, 4 * round(side * scale / 4))


def possibly_zero(side, scale):
    return math.floor(side * scale + 0.5)


def one_view_of_each_size(scales, sides):
    return {tuple(half_up(n, s) for n in sides): s for s in scales}.values()


def each_scale_once(scales, sides):
    return sorted(set(scales))


# What the views give together.


def mean_logit(views, sides, resize):
    return torch.stack([resize(view.float(), sides) for view in views]).mean(0).softmax(1)


def logits(views, sides, resize):
    return torch.stack([resize(view.float(), sides) for view in views]).mean(0)


def softmax_before_resize(views, sides, resize):
    return torch.stack([resize(view.float().softmax(1), sides) for view in views]).mean(0)


def votes(views, sides, resize):
    ballots = [resize(view.float(), sides).argmax(1) for view in views]
    classes = views[0].shape[1]
    return torch.stack([F.one_hot(b, classes).movedim(3, 1).float() for b in ballots]).mean(0)


def most_sure(views, sides, resize):
    highest = torch.stack([resize(view.float(), sides).softmax(1) for view in views]).amax(0)
    return highest / highest.sum(1, keepdim=True)


def total(views, sides, resize):
    return mean_probability(views, sides, resize) * len(views)


def running_mean(views, sides, resize):
    mean, *rest = (resize(view.float(), sides).softmax(1) for view in views)
    for probabilities in rest:
        mean = (mean + probabilities) / 2
    return mean


def softmax_over_the_batch(views, sides, resize):
    return torch.stack([resize(view.float(), sides).softmax(0) for view in views]).mean(0)


def type_of_the_model(views, sides, resize):
    return mean_probability([view.double() for view in views], sides, resize).to(views[0].dtype)


def size_of_the_logits(views, sides, resize):
    return mean_probability(views, tuple(views[0].shape[2:]), resize)


def two_resizes(model, x, *, scales=(0.75, 1.0, 1.25), flip=True):
    """The logits go to the size of the view first, and from there to the size of the image."""
    require_positive(scales)
    views = []
    with inference(model):
        for scale in scales:
            view = bilinear(x, tuple(half_up(n, scale) for n in x.shape[2:]))
            views.append(bilinear(model(view), tuple(view.shape[2:])))
            if flip:
                mirrored = bilinear(model(view.flip(3)), tuple(view.shape[2:]))
                views.append(mirrored.flip(3))
        return mean_probability(views, tuple(x.shape[2:]), bilinear)


# The state of the model.


@contextlib.contextmanager
def as_it_is(model):
    with torch.no_grad():
        yield


@contextlib.contextmanager
def root_alone(model):
    training, model.training = model.training, False
    try:
        with torch.no_grad():
            yield
    finally:
        model.training = training


@contextlib.contextmanager
def eval_for_good(model):
    model.eval()
    with torch.no_grad():
        yield


@contextlib.contextmanager
def train_afterwards(model):
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


@contextlib.contextmanager
def mode_of_the_root(model):
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextlib.contextmanager
def lost_in_an_exception(model):
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    with torch.no_grad():
        yield
    for module, training in modes:
        module.training = training


@contextlib.contextmanager
def eval_only_if_the_root_trains(model):
    with inference(model) if model.training else torch.no_grad():
        yield


@contextlib.contextmanager
def with_gradients(model):
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training


# The scales.


def anything(scales):
    pass


def not_empty(scales):
    if not scales:
        raise ValueError("scales")


def not_negative(scales):
    if not scales or min(scales) < 0:
        raise ValueError("scales")


SHAPE = "float32 [B,C,H,W]"
PLAIN = "one scale without flip is plain prediction"
SUM = "classes sum to 1"
VIEWS = "number and sizes of the views"
DEFINITION = "equal to the definition"
ODD = "odd sizes"
MIRRORED = "a mirrored image gives a mirrored result"
PLACE = "what a model says of a place stays in its place"
AVERAGED = "probabilities are averaged"
STATISTICS = "BatchNorm statistics stay as they were"
EVAL = "the model runs in eval mode without gradients"
MODES = "each module gets its mode back"
REPEATED = "two calls give the same result"
BATCH = "an image does not depend on the rest of its batch"
ORDER = "the order of the scales is irrelevant"
SCALES = "bad scales raise ValueError"

WRONG: dict[str, tuple[Callable, str]] = {
    "no unflip": (answer(mirror_back=()), MIRRORED),
    "no unflip, by place": (answer(mirror_back=()), PLACE),
    "mean of logits": (answer(combine=mean_logit), AVERAGED),
    "vertical flip": (answer(mirror=VERTICAL, mirror_back=VERTICAL), VIEWS),
    "vertical flip, by place": (answer(mirror=VERTICAL, mirror_back=VERTICAL), PLACE),
    "corners aligned": (answer(shrink=corners_aligned, enlarge=corners_aligned), DEFINITION),
    "corners aligned on the way in": (answer(shrink=corners_aligned), PLACE),
    "corners aligned on the way out": (answer(enlarge=corners_aligned), PLAIN),
    "no eval mode": (answer(mode=as_it_is), STATISTICS),
    "mode not restored": (answer(mode=eval_for_good), MODES),
    "softmax before resize": (answer(combine=softmax_before_resize), DEFINITION),
    "votes": (answer(combine=votes), AVERAGED),
    "nearest": (answer(shrink=nearest, enlarge=nearest), DEFINITION),
    "nearest on the way in": (answer(shrink=nearest), DEFINITION),
    "nearest on the way out": (answer(enlarge=nearest), PLAIN),
    # Beyond the notes.
    "the model's type": (answer(combine=type_of_the_model), SHAPE),
    "the logits' size": (answer(combine=size_of_the_logits), SHAPE),
    "flips always": (answer(mirrored=lambda scale, flip: True), PLAIN),
    "returns logits": (answer(combine=logits), PLAIN),
    "a sum for a mean": (answer(combine=total), SUM),
    "mirrors one scale only": (answer(mirrored=lambda scale, flip: flip and scale == 1), VIEWS),
    "one view": (answer(chosen=lambda s, _: (1.0,), mirrored=lambda s, flip: False), VIEWS),
    "sides rounded up": (answer(side=up), VIEWS),
    "sides of multiples of four": (answer(side=to_multiples_of_four), VIEWS),
    "sides of 0": (answer(side=possibly_zero), VIEWS),
    "antialiased": (answer(shrink=antialiased), DEFINITION),
    "bicubic": (answer(shrink=bicubic), DEFINITION),
    "two resizes": (two_resizes, DEFINITION),
    "one view of each size": (answer(chosen=one_view_of_each_size), DEFINITION),
    "equal scales once": (answer(chosen=each_scale_once), DEFINITION),
    "sides rounded half to even": (answer(side=half_to_even), ODD),
    "sides rounded down": (answer(side=down), ODD),
    "the surest view": (answer(combine=most_sure), AVERAGED),
    "root alone in eval mode": (answer(mode=root_alone), REPEATED),
    "eval mode only if the root trains": (answer(mode=eval_only_if_the_root_trains), REPEATED),
    "gradients recorded": (answer(mode=with_gradients), EVAL),
    "part of it in train mode": (answer(mode=root_alone), EVAL),
    "train mode afterwards": (answer(mode=train_afterwards), MODES),
    "the root's mode for all": (answer(mode=mode_of_the_root), MODES),
    "mode lost in an exception": (answer(mode=lost_in_an_exception), MODES),
    "softmax over the batch": (answer(combine=softmax_over_the_batch), BATCH),
    "running mean": (answer(combine=running_mean), ORDER),
    "scales unchecked": (answer(check=anything), SCALES),
    "negative scales unchecked": (answer(check=not_empty), SCALES),
    "scale 0 allowed": (answer(check=not_negative), SCALES),
}
