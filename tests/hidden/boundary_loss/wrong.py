"""Wrong answers to exercise 1, `boundary_loss`, and a property that each of them breaks.

Each is the right answer with one part exchanged.
"""

# canary: 5a3c0e7e-hidden-segcourse

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LAPLACIAN = torch.tensor([[1.0, 1.0, 1.0], [1.0, -8.0, 1.0], [1.0, 1.0, 1.0]])
SOBEL = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])


def one_hot(labels: Tensor, valid: Tensor, classes: int) -> Tensor:
    return (F.one_hot(labels, classes).movedim(-1, 1) * valid.unsqueeze(1)).float()


def filtered(maps: Tensor, kernel: Tensor, pad: str) -> Tensor:
    """A 3x3 filter of each map of [B, H, W] or [B, C, H, W]."""
    flat = maps.float().reshape(-1, 1, *maps.shape[-2:])
    return F.conv2d(F.pad(flat, (1, 1, 1, 1), pad), kernel.view(1, 1, 3, 3)).view(maps.shape)


def dilated(edge: Tensor, reach: int) -> Tensor:
    return F.max_pool2d(edge.float(), 2 * reach + 1, stride=1, padding=reach) > 0


# The parts. Edges and band: (pred, labels, valid, width) -> bool or float [B, H, W].


def right_edges(pred: Tensor, labels: Tensor, valid: Tensor, reach: int = 1) -> Tensor:
    members = one_hot(labels, valid, pred.shape[1])
    seen = F.max_pool2d(members, 2 * reach + 1, stride=1, padding=reach)
    return valid & (seen.sum(dim=1) > 1)


def right_band(edges: Callable) -> Callable:
    return lambda pred, labels, valid, width: dilated(edges(pred, labels, valid), width - 1)


def right_weight(band: Tensor, boundary_weight: float) -> Tensor:
    return 1 + boundary_weight * band


def right_losses(pred: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(pred, labels, reduction="none")


def right_mean(losses: Tensor, weight: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    weight = weight * factor * valid
    total = weight.sum()
    return (losses * weight).sum() / total.where(total > 0, 1)


def right_type(pred: Tensor) -> Tensor:
    return pred.to(torch.promote_types(pred.dtype, torch.float32))


def right_void(target: Tensor, ignore_index: int) -> Tensor:
    return target == ignore_index


def right_check(pred: Tensor, target: Tensor) -> Tensor:
    if target.shape != (len(pred), *pred.shape[2:]):
        raise ValueError("target: sizes do not fit")
    return target


def answer(
    *,
    edges: Callable = right_edges,
    band: Callable | None = None,
    weigh: Callable = right_weight,
    losses_of: Callable = right_losses,
    mean: Callable = right_mean,
    convert: Callable = right_type,
    find_void: Callable = right_void,
    check: Callable = right_check,
) -> Callable:
    """A `boundary_loss` made of these parts."""
    band = band or right_band(edges)

    def boundary_loss(
        pred: Tensor,
        target: Tensor,
        *,
        boundary_weight: float = 5.0,
        width: int = 1,
        ignore_index: int = 255,
        class_weight: Tensor | None = None,
    ) -> Tensor:
        target = check(pred, target)
        pred = convert(pred)
        void = find_void(target, ignore_index)
        labels = target.masked_fill(void, 0)
        weight = weigh(band(pred, labels, ~void, width).to(pred.dtype), boundary_weight)
        factor = torch.ones_like(weight) if class_weight is None else class_weight[labels]
        return mean(losses_of(pred, labels), weight, factor, ~void)

    return boundary_loss


# Edges.


def sobel_of_labels(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    across, down = (filtered(labels, kernel, "replicate") for kernel in (SOBEL, SOBEL.T))
    return across.abs() + down.abs() > 0


def laplacian_of_labels(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    return filtered(labels, LAPLACIAN, "replicate") != 0


def zero_padded_laplacian(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    members = one_hot(labels, valid, pred.shape[1])
    return (filtered(members, LAPLACIAN, "constant") != 0).any(dim=1)


def reflected_laplacian(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    members = one_hot(labels, valid, pred.shape[1])
    neighbours = filtered(members, (LAPLACIAN > 0).float(), "reflect")
    return valid & (neighbours * (1 - members) > 0).any(dim=1)


def one_side(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    edge = torch.zeros_like(valid)
    both = valid[..., 1:] & valid[..., :-1]
    edge[..., 1:] |= both & (labels[..., 1:] != labels[..., :-1])
    both = valid[:, 1:] & valid[:, :-1]
    edge[:, 1:] |= both & (labels[:, 1:] != labels[:, :-1])
    return edge


def four_neighbours(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    members = one_hot(labels, valid, pred.shape[1])
    rows = F.max_pool2d(members, (3, 1), stride=1, padding=(1, 0))
    columns = F.max_pool2d(members, (1, 3), stride=1, padding=(0, 1))
    return valid & (torch.maximum(rows, columns).sum(dim=1) > 1)


def void_as_a_class(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    labels = labels.where(valid, pred.shape[1])
    members = F.one_hot(labels, pred.shape[1] + 1).movedim(-1, 1).float()
    return F.max_pool2d(members, 3, stride=1, padding=1).sum(dim=1) > 1


def void_as_class_0(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    return right_edges(pred, labels, torch.ones_like(valid))


def edges_of_the_prediction(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    change = filtered(pred.softmax(dim=1), LAPLACIAN, "replicate").abs().amax(dim=1)
    return valid & (change > 0.5)


def edges_across_images(pred: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    members = one_hot(labels, valid, pred.shape[1]).movedim(0, 1)
    seen = F.max_pool3d(members.unsqueeze(0), 3, stride=1, padding=1)[0]
    return valid & (seen.sum(dim=0) > 1)


def count_of_other_neighbours(pred: Tensor, labels: Tensor, valid: Tensor, width: int) -> Tensor:
    members = one_hot(labels, valid, pred.shape[1])
    neighbours = filtered(members, (LAPLACIAN > 0).float(), "constant")
    return (neighbours * (1 - members)).sum(dim=1) / 8 * valid


# The band.


def larger_window(pred: Tensor, labels: Tensor, valid: Tensor, width: int) -> Tensor:
    return right_edges(pred, labels, valid, reach=width)


def diamond(pred: Tensor, labels: Tensor, valid: Tensor, width: int) -> Tensor:
    band = right_edges(pred, labels, valid).float()
    for _ in range(width - 1):
        rows = F.max_pool2d(band, (3, 1), stride=1, padding=(1, 0))
        columns = F.max_pool2d(band, (1, 3), stride=1, padding=(0, 1))
        band = torch.maximum(rows, columns)
    return band


def one_too_wide(pred: Tensor, labels: Tensor, valid: Tensor, width: int) -> Tensor:
    return dilated(right_edges(pred, labels, valid), width)


def always_width_one(pred: Tensor, labels: Tensor, valid: Tensor, width: int) -> Tensor:
    return right_edges(pred, labels, valid)


def stopped_by_void(pred: Tensor, labels: Tensor, valid: Tensor, width: int) -> Tensor:
    band = right_edges(pred, labels, valid)
    for _ in range(width - 1):
        band = dilated(band, 1) & valid
    return band


# Sums and numbers.


def unnormalised(losses: Tensor, weight: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    return (losses * weight * factor * valid).sum() / valid.sum().clamp_min(1)


def means(losses: Tensor, weight: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    parts = zip(losses, weight, factor, valid, strict=True)
    return torch.stack([right_mean(*part) for part in parts])


def mean_of_means(losses: Tensor, weight: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    return means(losses, weight, factor, valid).mean()


def void_in_the_divisor(losses: Tensor, weight: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    return (losses * weight * factor * valid).sum() / (weight * factor).sum()


def factor_in_one_sum(losses: Tensor, weight: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    return right_mean(losses * factor, weight, torch.ones_like(factor), valid)


def zero_by_zero(losses: Tensor, weight: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    weight = weight * factor * valid
    return (losses * weight).sum() / weight.sum()


def loose_zero(losses: Tensor, weight: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    if not valid.any():
        return torch.tensor(0.0)
    return right_mean(losses, weight, factor, valid)


def fresh_zero(losses: Tensor, weight: Tensor, factor: Tensor, valid: Tensor) -> Tensor:
    """`backward` works, and reaches nothing."""
    if not valid.any():
        return torch.tensor(0.0, requires_grad=True)
    return right_mean(losses, weight, factor, valid)


def log_of_softmax(pred: Tensor, labels: Tensor) -> Tensor:
    return -pred.softmax(dim=1).log().gather(1, labels.unsqueeze(1))[:, 0]


def broadcast(pred: Tensor, target: Tensor) -> Tensor:
    return target.expand(len(pred), *pred.shape[2:])


WRONG: dict[str, tuple[Callable, str]] = {
    "cross entropy alone": (
        answer(weigh=lambda band, boundary_weight: torch.ones_like(band)),
        "edges weigh more",
    ),
    "edges only": (
        answer(weigh=lambda band, boundary_weight: boundary_weight * band),
        "constant target is cross entropy",
    ),
    "boundary_weight instead of 1 + boundary_weight": (
        answer(weigh=lambda band, boundary_weight: 1 + (boundary_weight - 1) * band),
        "weight 0 is cross entropy",
    ),
    "unnormalised mean": (answer(mean=unnormalised), "uniform prediction gives log C"),
    "a loss for each image": (answer(mean=means), "a finite number"),
    "mean of the images' means": (answer(mean=mean_of_means), "pooled over the batch"),
    "Sobel on class indices": (answer(edges=sobel_of_labels), "one-pixel line"),
    "Sobel on class indices, renamed": (
        answer(edges=sobel_of_labels),
        "renaming the classes changes nothing",
    ),
    "Laplacian on class indices": (answer(edges=laplacian_of_labels), "staircase"),
    "zero-padded Laplacian": (answer(edges=zero_padded_laplacian), "border"),
    "reflected padding": (answer(edges=reflected_laplacian), "thin images"),
    "one-sided difference": (answer(edges=one_side), "flips and transpose"),
    "four neighbours": (answer(edges=four_neighbours), "diagonal"),
    "void as a class": (answer(edges=void_as_a_class), "void strip"),
    "void as class 0": (answer(edges=void_as_class_0), "void strip"),
    "edges of the soft prediction": (answer(edges=edges_of_the_prediction), "any mask"),
    "edges across images": (answer(edges=edges_across_images), "pooled over the batch"),
    "count of other neighbours": (answer(band=count_of_other_neighbours), "gradient"),
    "a larger window for a larger width": (answer(band=larger_window), "void strip"),
    "a band that void stops": (answer(band=stopped_by_void), "void strip"),
    "a band of diamonds": (answer(band=diamond), "width"),
    "a band one too wide": (answer(band=one_too_wide), "width"),
    "width ignored": (answer(band=always_width_one), "width"),
    "void in the divisor": (answer(mean=void_in_the_divisor), "void"),
    "255 is always void": (
        answer(find_void=lambda target, ignore_index: target == 255),
        "other ignore_index",
    ),
    "0 / 0": (answer(mean=zero_by_zero), "all void"),
    "a 0 without gradient": (answer(mean=loose_zero), "all void"),
    "a fresh 0": (answer(mean=fresh_zero), "all void"),
    "class weights in one sum only": (answer(mean=factor_in_one_sum), "class weights"),
    "log of softmax": (answer(losses_of=log_of_softmax), "large logits and float16"),
    "float16 throughout": (answer(convert=lambda pred: pred), "large logits and float16"),
    "sizes broadcast": (answer(check=broadcast), "sizes that do not fit"),
}
