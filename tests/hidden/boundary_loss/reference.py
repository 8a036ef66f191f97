"""A right answer to exercise 1; its contract stands in `segcourse.exercises.boundary_loss`."""

# canary: 5a3c0e7e-hidden-segcourse

import torch
import torch.nn.functional as F
from torch import Tensor


def boundary_loss(
    pred: Tensor,
    target: Tensor,
    *,
    boundary_weight: float = 5.0,
    width: int = 1,
    ignore_index: int = 255,
    class_weight: Tensor | None = None,
) -> Tensor:
    if pred.ndim != 4 or target.shape != (pred.shape[0], *pred.shape[2:]):
        raise ValueError(
            "target: expected [B, H, W] for pred [B, C, H, W]; "
            f"got {list(target.shape)} for {list(pred.shape)}"
        )
    pred = pred.to(torch.promote_types(pred.dtype, torch.float32))
    valid = target != ignore_index
    labels = target.where(valid, 0)

    # A valid pixel is an edge pixel if its 3x3 window holds valid pixels of two classes or more.
    # Beyond the image max_pool2d sees minus infinity, which is no class.
    members = F.one_hot(labels, pred.shape[1]).movedim(-1, 1) * valid.unsqueeze(1)
    in_window = F.max_pool2d(members.to(pred.dtype), 3, stride=1, padding=1)
    edge = valid & (in_window.sum(dim=1) > 1)
    near = F.max_pool2d(edge.to(pred.dtype), 2 * width - 1, stride=1, padding=width - 1)

    weight = (1 + boundary_weight * near) * valid
    if class_weight is not None:
        weight = weight * class_weight.to(pred.dtype)[labels]
    losses = F.cross_entropy(pred, labels, reduction="none")
    total = weight.sum()
    return (weight * losses).sum() / total.where(total > 0, 1)


def with_laplacian(
    pred, target, boundary_weight=5.0, width=1, ignore_index=255, class_weight=None
):
    """Right, too: a convolution for each class, a band that grows, float32 for all."""
    batch, classes, height, columns = pred.shape
    if tuple(target.shape) != (batch, height, columns):
        raise ValueError("shapes")
    pred = pred.float()
    mask = (target != ignore_index).float()
    if mask.sum() == 0:
        return pred.sum() * 0.0

    kernel = torch.ones(1, 1, 3, 3)
    kernel[0, 0, 1, 1] = 0
    neighbours = F.conv2d(mask.unsqueeze(1), kernel, padding=1).squeeze(1)
    band = torch.zeros_like(mask)
    for label in range(classes):
        members = ((target == label) & (target != ignore_index)).float()
        laplacian = F.conv2d(members.unsqueeze(1), kernel, padding=1).squeeze(1)
        band[(laplacian - neighbours * members).abs() > 0.5] = 1
    band = band * mask
    for _ in range(width - 1):
        band = (F.conv2d(band.unsqueeze(1), torch.ones(1, 1, 3, 3), padding=1) > 0).float()[:, 0]

    labels = torch.where(mask > 0, target, torch.zeros_like(target))
    weight = mask * (1 + boundary_weight * band)
    if class_weight is not None:
        weight = weight * class_weight.float()[labels]
    chosen = pred.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (weight * (pred.logsumexp(dim=1) - chosen)).sum() / (weight.sum() + 1e-8)


def with_loops(pred, target, *, boundary_weight=5.0, width=1, ignore_index=255, class_weight=None):
    """Right, too: shifted copies of the labels, and a list of images."""
    if pred.dim() != 4 or target.dim() != 3 or pred[:, 0].shape != target.shape:
        raise ValueError(f"{pred.shape} and {target.shape} do not fit")
    total, divisor = 0.0 * pred.float().sum(), 0.0
    for logits, labels in zip(pred, target, strict=True):
        rows, columns = labels.shape
        frame = torch.full((rows + 2, columns + 2), ignore_index)
        frame[1:-1, 1:-1] = labels
        edge = torch.zeros(rows, columns, dtype=torch.bool)
        for i in range(3):
            for j in range(3):
                other = frame[i : i + rows, j : j + columns]
                edge |= (other != labels) & (other != ignore_index) & (labels != ignore_index)
        band = torch.zeros(rows, columns)
        for i, j in edge.nonzero().tolist():
            band[max(i - width + 1, 0) : i + width, max(j - width + 1, 0) : j + width] = 1
        weight = (1 + boundary_weight * band)[labels != ignore_index]
        kept = labels[labels != ignore_index]
        if class_weight is not None:
            weight = weight * class_weight[kept]
        log_p = logits.float()[:, labels != ignore_index].log_softmax(0)
        total = total - (weight * log_p[kept, torch.arange(len(kept))]).sum()
        divisor = divisor + weight.sum()
    return total / divisor if divisor > 0 else total


ALSO_RIGHT = (with_laplacian, with_loops)
