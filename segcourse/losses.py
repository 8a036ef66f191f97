"""Losses for semantic segmentation: cross entropy, focal, Tversky, Dice and Lovász-Softmax.

One contract for all of them, so that one can stand in for another:

- `logits` are floating point [B, C, H, W], finite, before the softmax, with C >= 2; `target` is
  int64 [B, H, W] with labels 0..C-1 and `ignore_index` for void.
- Void pixels change neither the value nor a gradient. If all pixels are void, the loss is 0 and
  its gradient is 0.
- float16 and bfloat16 logits are computed in float32, also under autocast; float64 stays. The loss
  has the wider type, the gradient that of the logits.
- `weight` [C] holds one factor per class, each at least 0.
- `reduction` is "mean", "sum" or "none".

**Two families.** Cross entropy and focal loss give a number for every *pixel*. "none" is
[B, H, W] with 0 at void, each pixel times the weight of its true class; "sum" adds; "mean" divides
the sum by the sum of those weights, without weights by the number of valid pixels.

Tversky, Dice and Lovász-Softmax give a number for every *class*, counted over all pixels of the
batch, or over each image with `per_image=True`. `classes` says which classes count: "present", the
default, those that the target holds; "all", every class. "none" is [C], per image [B, C], each
class times its weight and 0 where it does not count; "sum" adds; "mean" is the mean over the
classes that count, weighted by `weight`, and then the plain mean over the images in which one
counts. With "present" a probability spent on an absent class is still paid for: it is missing at
the true class. Tversky and Dice have no second derivative.

**Other libraries** have other conventions. The tests hold each loss against them to 1e-6, in value
and gradient, where the two can be made equal:

| loss | library | what differs from here |
|---|---|---|
| cross entropy | torch | NaN if all pixels are void, or all weights 0 |
| label smoothing | segmentation-models-pytorch | "mean" divides by void pixels, too; no weights |
| focal | kornia | "none" is [B, C, H, W]; "mean" divides by B * C * H * W, void and all |
| focal | MONAI | "mean" divides by the valid pixels, not by their weights; float32 |
| focal | segmentation-models-pytorch | a sigmoid for each class; equal for two opposite logits |
| Dice, Tversky | segmentation-models-pytorch | an absent class is 0, the sum is divided by C |
| Dice | kornia | "macro": per image, all classes; "micro": one quotient of sums over classes |
| Tversky | kornia | per image, one quotient of sums over classes: only alpha + beta matters |
| Dice, Tversky | MONAI | per image unless `batch=True`, all classes; Dice doubles `smooth` |
| Jaccard | segmentation-models-pytorch, MONAI | as their Dice |
| Lovász-Softmax | Berman's code | no weights |
| Lovász-Softmax | segmentation-models-pytorch | as Berman's; fails on float64 |
| Lovász-Softmax | kornia | per image, all classes; sorts labels, see `lovasz_softmax` |

kornia's one-hot labels, of which its focal and Dice losses are made, are also 1e-6 too high.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from segcourse.metrics import check_labels

Reduction = Literal["mean", "sum", "none"]
Classes = Literal["present", "all"]
Loss = Callable[..., Tensor]

# In pixels. Keeps a quotient and its slope finite where a class has no pixel and no probability.
SMALLEST_REGION = 1e-7


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Minus the logarithm of the probability of the true class, pixel by pixel.

    `label_smoothing` e in [0, 1] gives each class e / C of the truth and the true class 1 - e
    more (Szegedy et al., 2016). As in torch, `weight` then scales each of the C terms, and "mean"
    still divides by the weights of the true classes.
    """
    logits, weight = _checked(logits, target, ignore_index, weight, reduction)
    _check_range("label_smoothing", label_smoothing, 0, 1)
    losses = F.cross_entropy(
        logits,
        target,
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none" if reduction == "none" else "sum",
    )
    return _reduce_pixels(losses, target, ignore_index, weight, reduction)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross entropy times (1 - p) ** gamma, where p is the probability of the true class.

    Pixels that are right already weigh less. `gamma` is at least 0, and 0 is `cross_entropy`.
    `weight` is the paper's alpha, one for each class: a single alpha for all would only scale the
    loss.

    Source: Lin, Goyal, Girshick, He and Dollár, 2017 (RetinaNet). Departures: softmax over C
    classes instead of a sigmoid for each; "mean" is over pixels, where the paper divides by the
    number of anchors that hold an object.
    """
    logits, weight = _checked(logits, target, ignore_index, weight, reduction)
    _check_range("gamma", gamma, 0, math.inf)
    entropy = F.cross_entropy(logits, target, ignore_index=ignore_index, reduction="none")
    # 1 - p without cancellation. At p = 1 the slope of (1 - p) ** gamma is infinite for gamma < 1,
    # and infinity times an entropy of 0 is not a number; the smallest number keeps it finite.
    miss = -torch.expm1(-entropy.clamp_min(torch.finfo(entropy.dtype).tiny))
    losses = miss**gamma * entropy
    if weight is not None:
        losses = losses * _pixel_weights(target, ignore_index, weight)
    return _reduce_pixels(losses, target, ignore_index, weight, reduction)


def tversky_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 0.0,
    classes: Classes = "present",
    per_image: bool = False,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """1 - (TP + smooth) / (TP + alpha * FP + beta * FN + smooth) for each class.

    TP sums the probability of the class over its true pixels, FP over all others, FN sums what is
    missing to 1 over its true pixels. `alpha` and `beta` are at least 0 and not both 0. Both 1/2
    is Dice, both 1 is Jaccard (soft IoU); beta > alpha asks for recall. `smooth`, in pixels, is at
    least 0. A class whose denominator is below 1e-7 pixels counts as missed.

    With `classes="all"` and `smooth=0` an absent class costs 1, whatever the logits, and teaches
    nothing. With `smooth > 0` it costs less the smaller its FP.

    Source: Salehi, Erdogmus and Gholipour, 2017. Departures: C classes where the paper has two;
    `smooth`.
    """
    logits, weight = _checked(logits, target, ignore_index, weight, reduction)
    _check_choice("classes", classes, ("present", "all"))
    for name, value in (("alpha", alpha), ("beta", beta), ("smooth", smooth)):
        _check_range(name, value, 0, math.inf)
    if alpha == beta == 0:
        raise ValueError("alpha, beta: expected one of them above 0; got 0 and 0")
    void = target == ignore_index
    pixels = _pixels(target, void, logits.shape[1], per_image)
    true_positive, predicted = _ProbabilitySums.apply(logits, target.masked_fill(void, 0), void)
    if not per_image:
        true_positive = true_positive.sum(dim=0, keepdim=True)
        predicted = predicted.sum(dim=0, keepdim=True)
    false_positive = predicted - true_positive
    false_negative = pixels - true_positive
    region = true_positive + alpha * false_positive + beta * false_negative + smooth
    losses = 1 - (true_positive + smooth) / region.clamp_min(SMALLEST_REGION)
    return _reduce_regions(losses, _counts(pixels, classes), per_image, weight, reduction)


def dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    smooth: float = 0.0,
    classes: Classes = "present",
    per_image: bool = False,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """1 - 2 TP / (2 TP + FP + FN) for each class: `tversky_loss` with alpha = beta = 1/2.

    Source: Milletari, Navab and Ahmadi, 2016 (V-Net). Departure: the paper squares the
    probabilities in the denominator; here they are summed as they are, as in most later work.
    """
    return tversky_loss(
        logits,
        target,
        alpha=0.5,
        beta=0.5,
        smooth=smooth,
        classes=classes,
        per_image=per_image,
        ignore_index=ignore_index,
        weight=weight,
        reduction=reduction,
    )


def lovasz_softmax(
    logits: Tensor,
    target: Tensor,
    *,
    classes: Classes = "present",
    per_image: bool = False,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Lovász extension of 1 - IoU for each class, a surrogate that has a gradient.

    The error of a pixel is 1 - p inside the class and p outside, where p is its probability of the
    class. Take the pixels from the largest error to the smallest and call each wrong in turn:
    1 - IoU grows from 0 to 1. The loss is the sum of these steps, each times the pixel's error. It
    is 1 - IoU where all errors are 0 or 1, and a surrogate elsewhere.

    With `classes="all"` an absent class costs its largest probability.

    Source: Berman, Rannen Triki and Blaschko, 2018. kornia 0.8 sorts labels where the paper sorts
    membership of the class, so that it agrees for class 1 of two only.
    """
    logits, weight = _checked(logits, target, ignore_index, weight, reduction)
    _check_choice("classes", classes, ("present", "all"))
    void = target == ignore_index
    pixels = _pixels(target, void, logits.shape[1], per_image)
    counts = _counts(pixels, classes)
    labels = target.masked_fill(void, -1)
    losses = _LovaszExtension.apply(logits.softmax(dim=1), labels, void, pixels, counts)
    return _reduce_regions(losses, counts, per_image, weight, reduction)


def weighted_sum(*terms: tuple[float, Loss]) -> Loss:
    """A loss that adds others: `weighted_sum((1, cross_entropy), (0.5, lovasz_softmax))`.

    What it is called with goes to each of them; an argument that is for one alone goes into
    `functools.partial(focal_loss, gamma=1)`.
    """
    if not terms:
        raise ValueError("terms: expected at least one (factor, loss); got none")
    for term in terms:
        if not (isinstance(term, tuple) and len(term) == 2 and callable(term[1])):
            raise TypeError(f"terms: expected pairs (factor, loss); got {term!r}")
        _check_range("factor", term[0], 0, math.inf)

    def loss(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        values = [factor * function(logits, target, **options) for factor, function in terms]
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise ValueError(f"reduction: expected one shape from every loss; got {shapes}")
        return torch.stack(values).sum(dim=0)

    return loss


class _ProbabilitySums(torch.autograd.Function):
    """Sums of softmax probabilities over valid pixels, with a gradient in closed form.

    (logits [B, C, H, W], labels and void [B, H, W]) -> two tensors [B, C]: the probability of each
    class summed over the pixels that have it as their label, and over all pixels.

    With g_k the slope of the loss in the probability p_k of a pixel, its slope in logit k is
    p_k * (g_k - sum_j g_j p_j). Here g_k is the slope of the second sum, plus that of the first
    where k is the label. Autograd would make three more tensors as large as the logits on its way
    there, and those take most of the time.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, void: Tensor) -> tuple[Tensor, Tensor]:
        probability = logits.softmax(dim=1)
        if void.any():
            probability.masked_fill_(void.unsqueeze(1), 0)  # the slopes are 0 there, too
        places = _places(labels, logits.shape[1])
        right = probability.view(-1).index_select(0, places).view(labels.shape)
        ctx.save_for_backward(probability, labels, places, right)
        # Row by row first: in float32 one long sum would lose digits.
        rows = right.new_zeros(*right.shape[:2], logits.shape[1]).scatter_add_(2, labels, right)
        return rows.sum(dim=1), probability.sum(dim=(2, 3))

    @staticmethod
    def backward(ctx: Any, slope_right: Tensor, slope_all: Tensor) -> tuple:
        if torch.is_grad_enabled():  # create_graph=True: in a sum autograd would drop this part
            raise RuntimeError("dice_loss and tversky_loss have no second derivative")
        probability, labels, places, right = ctx.saved_tensors
        own = slope_right.gather(1, labels.flatten(1)).view_as(right) * right
        with torch.autocast(probability.device.type, enabled=False):
            mean = (slope_all.unsqueeze(1) @ probability.flatten(2)).view_as(right) + own
        grad = torch.empty_like(probability)
        torch.sub(slope_all[:, :, None, None], mean.unsqueeze(1), out=grad).mul_(probability)
        grad.view(-1).scatter_add_(0, places, own.flatten())
        return grad, None, None


def _places(labels: Tensor, num_classes: int) -> Tensor:
    """Where the number of each pixel's label lies in a flat [B * C * H * W].

    One index is read and written in half the time of `gather` and `scatter_add` along the classes.
    """
    pixels = labels[0].numel()
    images = torch.arange(len(labels), device=labels.device).unsqueeze(1) * num_classes * pixels
    first = images + torch.arange(pixels, device=labels.device)
    return torch.add(first, labels.flatten(1), alpha=pixels).flatten()


class _LovaszExtension(torch.autograd.Function):
    """Lovász extensions of 1 - IoU: probabilities [B, C, H, W] -> losses of the classes.

    The losses, `pixels` and `counts` are [1, C], per image [B, C]; classes that do not count are
    left at 0. While the order of the errors stays the same, the loss is linear in them, so that
    the forward pass knows the gradient already.
    """

    @staticmethod
    def forward(
        ctx: Any, probability: Tensor, labels: Tensor, void: Tensor, pixels: Tensor, counts: Tensor
    ) -> Tensor:
        losses = probability.new_zeros(counts.shape)
        slopes = torch.zeros_like(probability)
        for group, c in counts.nonzero().tolist():
            images = slice(None) if len(counts) == 1 else slice(group, group + 1)
            losses[group, c], slopes[images, c] = _lovasz(
                probability[images, c], labels[images] == c, void[images], pixels[group, c]
            )
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple:
        (slopes,) = ctx.saved_tensors
        return grad_losses[:, :, None, None] * slopes, None, None, None, None


def _lovasz(probability: Tensor, members: Tensor, void: Tensor, n: Tensor) -> tuple:
    """Loss of one class of `n` pixels, and its slope in each pixel's probability.

    After k pixels of the class and m others were called wrong, the IoU is (n - k) / (n + m). A
    step is the difference of two such quotients, written as one: their difference in floating
    point has few digits left where the pixels are many.
    """
    # Void comes last, after all pixels of the class, where no step is left.
    errors = (members.to(probability.dtype) - probability).abs().masked_fill(void, -1).flatten()
    # Read as integers, the bits of positive numbers keep their order. On a CPU they sort about 10
    # times faster.
    bits = errors.view(torch.int32 if errors.dtype == torch.float32 else torch.int64)
    order = bits.argsort().flip(0)
    inside = members.flatten()[order]
    k = inside.cumsum(0)
    union = (n + torch.arange(1, len(k) + 1, device=k.device) - k).to(errors.dtype)
    # A class without a pixel has one step, of 1: its IoU of 0 / 0 before it is taken as 1.
    outside = ((n - k) / (union - 1) / union).where(union > 1, 1)
    step = torch.where(inside, 1 / union, outside)
    slope = torch.empty_like(errors)
    slope[order] = step.where(~inside, -step)
    return (step * errors[order]).sum(), slope.view_as(probability)


def _pixels(target: Tensor, void: Tensor, num_classes: int, per_image: bool) -> Tensor:
    """Pixels of each class, int64: [1, C] over the batch, per image [B, C]."""
    slots = num_classes + 1  # the last one is for void
    first = slots * torch.arange(len(target), device=target.device).view(-1, 1, 1)
    labels = target.masked_fill(void, num_classes) + first
    pixels = labels.flatten().bincount(minlength=slots * len(target)).view(-1, slots)[:, :-1]
    return pixels if per_image else pixels.sum(dim=0, keepdim=True)


def _counts(pixels: Tensor, classes: Classes) -> Tensor:
    """Which classes count: bool, in the shape of `pixels`."""
    if classes == "present":
        return pixels > 0
    return (pixels.sum(dim=1, keepdim=True) > 0).expand_as(pixels)


def _pixel_weights(target: Tensor, ignore_index: int, weight: Tensor) -> Tensor:
    """The weight of each pixel's true class, [B, H, W], 0 at void."""
    valid = target != ignore_index
    return weight[target.where(valid, 0)] * valid


def _reduce_pixels(
    losses: Tensor, target: Tensor, ignore_index: int, weight: Tensor | None, reduction: Reduction
) -> Tensor:
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if weight is None:
        return _quotient(losses.sum(), (target != ignore_index).sum())
    return _quotient(losses.sum(), _pixel_weights(target, ignore_index, weight).sum())


def _reduce_regions(
    losses: Tensor, counts: Tensor, per_image: bool, weight: Tensor | None, reduction: Reduction
) -> Tensor:
    """`losses` and `counts` are [B, C], or [1, C] where the batch is counted as one."""
    shares = counts.to(losses.dtype)
    if weight is not None:
        shares = shares * weight
    losses = losses * shares
    if reduction == "none":
        return losses if per_image else losses[0]
    if reduction == "sum":
        return losses.sum()
    total = shares.sum(dim=1)
    return _quotient(_quotient(losses.sum(dim=1), total).sum(), (total > 0).sum())


def _quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator; 0 with zero gradient where the denominator is 0."""
    some = denominator > 0
    return numerator.where(some, 0) / denominator.where(some, 1)


def _checked(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    weight: Tensor | None,
    reduction: Reduction,
) -> tuple[Tensor, Tensor | None]:
    """Logits and weight in the type of the computation; TypeError or ValueError for bad input."""
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor; got {type(value).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"logits: expected a floating-point tensor; got {logits.dtype}")
    if logits.ndim != 4 or logits.numel() == 0 or logits.shape[1] < 2:
        raise ValueError(
            "logits: expected [B, C, H, W] with C >= 2 and at least one pixel; "
            f"got {list(logits.shape)}"
        )
    if target.dtype != torch.int64:
        raise TypeError(f"target: expected int64 labels; got {target.dtype}")
    size = [len(logits), *logits.shape[2:]]
    if list(target.shape) != size:
        raise ValueError(
            f"target: expected {size} for logits {list(logits.shape)}; got {list(target.shape)}"
        )
    if target.device != logits.device:
        raise ValueError(
            f"target: expected the device of logits, {logits.device}; got {target.device}"
        )
    if not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int; got {type(ignore_index).__name__}")
    check_labels("target", target, logits.shape[1], ignore_index)
    _check_choice("reduction", reduction, ("mean", "sum", "none"))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if weight is not None:
        _check_weight(weight, logits)
        weight = weight.to(dtype)
    return logits.to(dtype), weight


def _check_weight(weight: Tensor, logits: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor; got {type(weight).__name__}")
    if list(weight.shape) != [logits.shape[1]]:
        raise ValueError(
            f"weight: expected [{logits.shape[1]}], one for each class; got {list(weight.shape)}"
        )
    if weight.device != logits.device:
        raise ValueError(
            f"weight: expected the device of logits, {logits.device}; got {weight.device}"
        )
    if not ((weight >= 0) & (weight < math.inf)).all():
        raise ValueError(f"weight: expected finite numbers of at least 0; got {weight.tolist()}")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (isinstance(value, int | float) and low <= value <= high and math.isfinite(value)):
        raise ValueError(f"{name}: expected a finite number in [{low}, {high}]; got {value!r}")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}; got {value!r}")
