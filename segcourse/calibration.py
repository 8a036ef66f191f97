"""Calibration: is a network right in 80 % of the pixels of which it is 80 % sure?

`Calibration` compares the two over a whole data set; `best_temperature` repairs much of the
difference with one number.
"""

import torch
from torch import Tensor

from segcourse.metrics import check_labels


class Calibration:
    """Confidence and accuracy of a network's answers, counted in bins of equal width.

    The confidence of a pixel is the largest of its class probabilities. Void pixels are left out.

    Attributes:
        pixels: int64 [bins], how many pixels have a confidence in (i / bins, (i + 1) / bins].
        confidence, accuracy: float64 [bins], their means in each bin, NaN where it is empty.

    Source: Guo, Pleiss, Sun and Weinberger, 2017, with a pixel in place of an image.
    """

    def __init__(self, bins: int = 15, ignore_index: int = 255) -> None:
        if not isinstance(bins, int) or bins < 1:
            raise ValueError(f"bins: expected a whole number of at least 1; got {bins!r}")
        self.bins, self.ignore_index = bins, ignore_index
        self._sums = torch.zeros(3, bins, dtype=torch.float64)  # pixels, confidence, right ones

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add a batch: logits floating [B, C, H, W], target int64 [B, H, W]."""
        _check(logits, target, self.ignore_index)
        valid = target != self.ignore_index
        confidence, answer = logits.detach().double().softmax(dim=1).max(dim=1)
        confidence = confidence[valid]
        right = (answer == target)[valid]
        bins = ((confidence * self.bins).ceil().long() - 1).clamp(0, self.bins - 1)
        rows = (torch.ones_like(confidence), confidence, right.double())
        counts = torch.stack([bins.bincount(row, minlength=self.bins) for row in rows])
        self._sums = self._sums.to(counts.device) + counts

    @property
    def pixels(self) -> Tensor:
        return self._sums[0].long()

    @property
    def confidence(self) -> Tensor:
        return self._sums[1] / self._sums[0]

    @property
    def accuracy(self) -> Tensor:
        return self._sums[2] / self._sums[0]

    def error(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over all pixels, 0..1.

        The differences are taken bin by bin, so that pixels of one bin can make up for each other
        and those of two bins cannot. NaN if no pixel was counted.
        """
        pixels, confidence, right = self._sums
        return ((confidence - right).abs().sum() / pixels.sum()).item()


def best_temperature(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> float:
    """The T > 0 for which softmax(logits / T) has the smallest cross entropy, by bisection.

    Dividing by T changes no answer, only how sure the network says it is. T is found on pixels
    that the network was not trained on, and held against others still. It is kept within
    1/100..100, where networks that are always right or no better than chance end.

    Args: logits floating [B, C, H, W], target int64 [B, H, W]. ValueError if all pixels are void.

    Source: Guo, Pleiss, Sun and Weinberger, 2017.
    """
    _check(logits, target, ignore_index)
    valid = target != ignore_index
    if not valid.any():
        raise ValueError("target: expected a pixel that is not void")
    scores = logits.detach().movedim(1, -1)[valid].double()
    true = scores.gather(1, target[valid].unsqueeze(1)).mean()

    def slope(inverse: float) -> float:
        """Of the cross entropy in 1 / T: the mean score expected less the score of the truth."""
        return ((scores * inverse).softmax(dim=1) * scores).sum(dim=1).mean() - true

    low, high = -2.0, 2.0  # the cross entropy is convex in 1 / T, and its slope rises
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(10**middle) > 0 else (middle, high)
    return 10 ** -((low + high) / 2)


def _check(logits: Tensor, target: Tensor, ignore_index: int) -> None:
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor; got {type(value).__name__}")
    if logits.ndim != 4 or not logits.is_floating_point():
        raise ValueError(
            f"logits: expected floating [B, C, H, W]; got {logits.dtype} {list(logits.shape)}"
        )
    size = [len(logits), *logits.shape[2:]]
    if target.dtype != torch.int64 or list(target.shape) != size:
        raise ValueError(f"target: expected int64 {size}; got {target.dtype} {list(target.shape)}")
    check_labels("target", target, logits.shape[1], ignore_index)
    if not logits.isfinite().all():
        raise ValueError("logits: expected finite numbers; got NaN or infinity")
