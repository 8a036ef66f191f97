"""Wrong answers to exercise 3, each with the property whose hidden test must fail it."""

# canary: 5a3c0e7e-hidden-segcourse

from collections.abc import Callable

import torch
from torch import Tensor

from segcourse.filters import Lattice

DEFAULTS = {"w_bilateral": 10.0, "sxy": 80.0, "srgb": 13.0, "w_gauss": 3.0, "sg": 3.0}


def _places(image: Tensor) -> Tensor:
    height, width = image.shape[:2]
    return torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(-1, 2).float()


def _colours(image: Tensor) -> Tensor:
    if image.dtype != torch.uint8:
        raise TypeError("image: expected uint8")
    return image.reshape(-1, 3).float()


def _factors(features: Tensor) -> Tensor:
    far = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-far.square() / 2)


def _symmetric(kernel: Tensor) -> Tensor:
    n = kernel.sum(1)
    return kernel / (n[:, None] * n).sqrt()


def _kernel(
    image: Tensor,
    *,
    w_bilateral: float,
    sxy: float,
    srgb: float,
    w_gauss: float,
    sg: float,
    factors: Callable[[Tensor], Tensor] = _factors,
    normalised: Callable[[Tensor], Tensor] = _symmetric,
) -> Tensor:
    """Both kernels, weighted: right unless `factors` or `normalised` is replaced."""
    place, colour = _places(image), _colours(image)
    bilateral = normalised(factors(torch.cat([place / sxy, colour / srgb], dim=1)))
    return w_bilateral * bilateral + w_gauss * normalised(factors(place / sg))


def _unary(probs: Tensor) -> Tensor:
    return -probs.flatten(1).T.clamp(1e-5, 1).log()


def _infer(kernel: Tensor, probs: Tensor, iters: int, sign: float = 1.0) -> Tensor:
    """Mean field: right unless `sign` is -1."""
    unary = _unary(probs)
    q = (-unary).softmax(dim=1)
    for _ in range(iters):
        q = (sign * kernel @ q - unary).softmax(dim=1)
    return q.T.reshape(probs.shape)


def unnormalised(image, probs, *, iters=5, **options):
    kernel = _kernel(image, **DEFAULTS | options, normalised=lambda kernel: kernel)
    return _infer(kernel, probs, iters)


def rows_normalised(image, probs, *, iters=5, **options):
    """A mean over the others, 1 / n_i in place of the two square roots."""
    kernel = _kernel(image, **DEFAULTS | options, normalised=lambda k: k / k.sum(1, keepdim=True))
    return _infer(kernel, probs, iters)


def columns_normalised(image, probs, *, iters=5, **options):
    """What a pixel says is shared out among those that hear it."""
    kernel = _kernel(image, **DEFAULTS | options, normalised=lambda k: k / k.sum(0))
    return _infer(kernel, probs, iters)


def on_the_lattice(before: float, after: float) -> Callable[..., Tensor]:
    """Values times n^before are filtered, the sums times n^after: both are -1/2 if right."""

    def dense_crf(image, probs, *, iters=5, **options):
        options = DEFAULTS | options
        place, colour = _places(image), _colours(image)
        both = torch.cat([place / options["sxy"], colour / options["srgb"]], dim=1)
        kernels = []
        for name, features in (("w_bilateral", both), ("w_gauss", place / options["sg"])):
            lattice = Lattice(features)
            n = lattice.filter(torch.ones(len(features), 1))
            kernels.append((options[name] * n**after, lattice, n**before))
        unary = _unary(probs)
        q = (-unary).softmax(dim=1)
        for _ in range(iters):
            heard = sum(after * lattice.filter(before * q) for after, lattice, before in kernels)
            q = (heard - unary).softmax(dim=1)
        return q.T.reshape(probs.shape)

    return dense_crf


def mean_over_the_image(image, probs, *, iters=5, **options):
    kernel = _kernel(image, **DEFAULTS | options, normalised=lambda k: k / len(k))
    return _infer(kernel, probs, iters)


def wrong_sign(image, probs, *, iters=5, **options):
    return _infer(_kernel(image, **DEFAULTS | options), probs, iters, sign=-1.0)


def colours_over_255(image, probs, *, iters=5, srgb=13.0, **options):
    return _infer(_kernel(image, **DEFAULTS | options | {"srgb": srgb * 255}), probs, iters)


def sigmas_swapped(image, probs, *, iters=5, sxy=80.0, srgb=13.0, **options):
    return _infer(_kernel(image, **DEFAULTS | options | {"sxy": srgb, "srgb": sxy}), probs, iters)


def weights_swapped(image, probs, *, iters=5, w_bilateral=10.0, w_gauss=3.0, **options):
    options |= {"w_bilateral": w_gauss, "w_gauss": w_bilateral}
    return _infer(_kernel(image, **DEFAULTS | options), probs, iters)


def window_of_11(image, probs, *, iters=5, **options):
    """Convolutional CRF: pixels more than 5 rows or columns apart are not connected."""
    close = torch.cdist(_places(image), _places(image), p=float("inf")) < 5.5
    kernel = _kernel(image, **DEFAULTS | options, factors=lambda f: _factors(f) * close)
    return _infer(kernel, probs, iters)


def drifting_unary(image, probs, *, iters=5, **options):
    """Each iteration takes the last Q for what the network said."""
    kernel = _kernel(image, **DEFAULTS | options)
    for _ in range(iters):
        probs = _infer(kernel, probs, 1)
    return probs


def no_colour_term(image, probs, *, iters=5, **options):
    _colours(image)
    return _infer(_kernel(torch.zeros_like(image), **DEFAULTS | options), probs, iters)


def rows_and_columns_mixed(image, probs, *, iters=5, **options):
    """Places listed column by column, colours and values row by row."""
    height, width = image.shape[:2]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="xy")
    options = DEFAULTS | options
    place, colour = torch.stack([y, x], dim=-1).reshape(-1, 2).float(), _colours(image)
    both = torch.cat([place / options["sxy"], colour / options["srgb"]], dim=1)
    kernel = options["w_bilateral"] * _symmetric(_factors(both))
    kernel = kernel + options["w_gauss"] * _symmetric(_factors(place / options["sg"]))
    return _infer(kernel, probs, iters)


def self_term_dropped(image, probs, *, iters=5, **options):
    """Others only. A pixel without any has n = 0."""
    kernel = _kernel(
        image,
        **DEFAULTS | options,
        factors=lambda f: _factors(f).fill_diagonal_(0),
        normalised=lambda k: k / (k.sum(1)[:, None] * k.sum(1) + 1e-20).sqrt(),
    )
    return _infer(kernel, probs, iters)


def self_term_taken_off_the_message(image, probs, *, iters=5, **options):
    """As in the paper's sum over j other than i, but n has the self term."""
    kernel = _kernel(
        image, **DEFAULTS | options, normalised=lambda k: _symmetric(k).fill_diagonal_(0)
    )
    return _infer(kernel, probs, iters)


def sigma_off_by_sqrt_2(image, probs, *, iters=5, **options):
    """exp(-d^2) for exp(-d^2 / 2)."""
    kernel = _kernel(image, **DEFAULTS | options, factors=lambda f: _factors(f * 2**0.5))
    return _infer(kernel, probs, iters)


def normalised_together(image, probs, *, iters=5, **options):
    """The two kernels added up, and the sum normalised."""
    options = DEFAULTS | options
    kernel = _symmetric(_kernel(image, **options, normalised=lambda kernel: kernel))
    return _infer((options["w_bilateral"] + options["w_gauss"]) * kernel, probs, iters)


def one_iteration_too_few(image, probs, *, iters=5, **options):
    return _infer(_kernel(image, **DEFAULTS | options), probs, max(iters - 1, 0))


def one_iteration_too_many(image, probs, *, iters=5, **options):
    return _infer(_kernel(image, **DEFAULTS | options), probs, iters + 1)


def always_five(image, probs, *, iters=5, **options):
    return _infer(_kernel(image, **DEFAULTS | options), probs, 5)


def hard_messages(image, probs, *, iters=5, **options):
    """Pixels send their label and not how sure of it they are."""
    kernel, unary = _kernel(image, **DEFAULTS | options), _unary(probs)
    q = (-unary).softmax(dim=1)
    for _ in range(iters):
        votes = torch.zeros_like(q).scatter_(1, q.argmax(1, keepdim=True), 1.0)
        q = (kernel @ votes - unary).softmax(dim=1)
    return q.T.reshape(probs.shape)


def starts_even(image, probs, *, iters=5, **options):
    kernel, unary = _kernel(image, **DEFAULTS | options), _unary(probs)
    q = torch.full_like(unary, 1 / len(probs))
    for _ in range(iters):
        q = (kernel @ q - unary).softmax(dim=1)
    return q.T.reshape(probs.shape)


def no_unary(image, probs, *, iters=5, **options):
    kernel = _kernel(image, **DEFAULTS | options)
    q = (-_unary(probs)).softmax(dim=1)
    for _ in range(iters):
        q = (kernel @ q).softmax(dim=1)
    return q.T.reshape(probs.shape)


def class_after_class(image, probs, *, iters=5, **options):
    """A class already hears what the classes before it have become."""
    kernel, unary = _kernel(image, **DEFAULTS | options), _unary(probs)
    q = (-unary).softmax(dim=1)
    for _ in range(iters):
        for c in range(len(probs)):
            logits = q.clamp_min(1e-30).log()
            logits[:, c] = kernel @ q[:, c] - unary[:, c]
            q = logits.softmax(dim=1)
    return q.T.reshape(probs.shape)


def not_clipped(image, probs, *, iters=5, **options):
    kernel, unary = _kernel(image, **DEFAULTS | options), -probs.flatten(1).T.log()
    q = (-unary).softmax(dim=1)
    for _ in range(iters):
        q = (kernel @ q - unary).softmax(dim=1)
    return q.T.reshape(probs.shape)


def clipped_elsewhere(image, probs, *, iters=5, **options):
    return _infer(_kernel(image, **DEFAULTS | options), probs.clamp_min(1e-3), iters)


def softmax_over_pixels(image, probs, *, iters=5, **options):
    kernel, unary = _kernel(image, **DEFAULTS | options), _unary(probs)
    q = (-unary).softmax(dim=1)
    for _ in range(iters):
        q = (kernel @ q - unary).softmax(dim=0)
    return q.T.reshape(probs.shape)


def last_softmax_missing(image, probs, *, iters=5, **options):
    kernel, unary = _kernel(image, **DEFAULTS | options), _unary(probs)
    q = (-unary).softmax(dim=1)
    for _ in range(iters):
        q = (kernel @ q).mul(probs.flatten(1).T.clamp(1e-5, 1))
    return q.T.reshape(probs.shape)


def grey(image, probs, *, iters=5, **options):
    """One brightness in place of three channels."""
    _colours(image)
    image = image.float().mean(-1, keepdim=True).round().byte().expand_as(image)
    return _infer(_kernel(image, **DEFAULTS | options), probs, iters)


def colours_overflow(image, probs, *, iters=5, **options):
    """Differences from the first pixel, taken in uint8: below 0 they start again at 255."""
    _colours(image)
    return _infer(_kernel(image - image[0, 0], **DEFAULTS | options), probs, iters)


def brightness_divided_out(image, probs, *, iters=5, **options):
    colour = _colours(image).view(image.shape)
    image = (128 * colour / colour.mean(-1, keepdim=True).clamp_min(1)).clamp(0, 255).byte()
    return _infer(_kernel(image, **DEFAULTS | options), probs, iters)


def earlier_pixels_only(image, probs, *, iters=5, **options):
    kernel = _kernel(image, **DEFAULTS | options, normalised=lambda k: _symmetric(k).tril())
    return _infer(kernel, probs, iters)


def float_image_accepted(image, probs, *, iters=5, **options):
    image = image.byte()
    return _infer(_kernel(image, **DEFAULTS | options), probs, iters)


def squeezed(image, probs, *, iters=5, **options):
    """Sides of length 1 are lost."""
    return _infer(_kernel(image, **DEFAULTS | options), probs, iters).squeeze()


WRONG: dict[str, tuple[Callable[..., Tensor], str]] = {
    "unnormalised": (unnormalised, "one message"),
    "rows normalised": (rows_normalised, "one message"),
    "rows normalised, lattice": (on_the_lattice(before=0, after=-1), "one message"),
    "columns normalised": (columns_normalised, "one message"),
    "columns normalised, lattice": (on_the_lattice(before=-1, after=0), "one message"),
    "mean over the image": (mean_over_the_image, "the mean field"),
    "wrong sign": (wrong_sign, "a lone outlier is removed"),
    "colours over 255": (colours_over_255, "the edge snaps to the colour edge"),
    "sigmas swapped": (sigmas_swapped, "srgb very large"),
    "weights swapped": (weights_swapped, "each weight and sigma"),
    "window of 11": (window_of_11, "one message"),
    "drifting unary": (drifting_unary, "many iterations"),
    "no colour term": (no_colour_term, "the edge snaps to the colour edge"),
    "rows and columns mixed": (rows_and_columns_mixed, "transpose"),
    "self term dropped": (self_term_dropped, "srgb near 0"),
    "self term taken off the message": (self_term_taken_off_the_message, "srgb near 0"),
    "sigma off by sqrt 2": (sigma_off_by_sqrt_2, "each weight and sigma"),
    "normalised together": (normalised_together, "each weight and sigma"),
    "one iteration too few": (one_iteration_too_few, "one message"),
    "one iteration too many": (one_iteration_too_many, "zero iterations give the unary"),
    "always five": (always_five, "zero iterations give the unary"),
    "hard messages": (hard_messages, "uniform stays uniform"),
    "starts even": (starts_even, "zero iterations give the unary"),
    "no unary": (no_unary, "zero weights give the unary"),
    "class after class": (class_after_class, "exchanging the classes"),
    "not clipped": (not_clipped, "hard probabilities"),
    "clipped elsewhere": (clipped_elsewhere, "hard probabilities"),
    "softmax over pixels": (softmax_over_pixels, "probabilities [C,H,W]"),
    "last softmax missing": (last_softmax_missing, "classes sum to 1"),
    "grey": (grey, "the edge snaps to the colour edge"),
    "colours overflow": (colours_overflow, "one message"),
    "brightness divided out": (brightness_divided_out, "adding a constant colour"),
    "earlier pixels only": (earlier_pixels_only, "flips"),
    "float image accepted": (float_image_accepted, "a float image is refused"),
    "squeezed": (squeezed, "thin images"),
}
