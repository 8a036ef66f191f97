"""A right answer to exercise 3, `dense_crf`, and others that a student may as well give."""

# canary: 5a3c0e7e-hidden-segcourse

import torch
from torch import Tensor

from segcourse.filters import Lattice, gaussian_filter


def dense_crf(
    image: Tensor,
    probs: Tensor,
    *,
    iters: int = 5,
    w_bilateral: float = 10.0,
    sxy: float = 80.0,
    srgb: float = 13.0,
    w_gauss: float = 3.0,
    sg: float = 3.0,
) -> Tensor:
    """Mean field [C,H,W] of a fully connected CRF, its Gaussian filters on the lattice."""
    if image.dtype != torch.uint8:
        raise TypeError(f"image: expected uint8; got {image.dtype}")
    height, width = image.shape[:2]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # In the authors' order, column first: the lattice is not the same in another.
    place = torch.stack([columns, rows], dim=-1).flatten(0, 1).to(probs)
    colour = image.reshape(-1, 3).to(probs)
    kernels = []
    for weight, features in (
        (w_bilateral, torch.cat([place / sxy, colour / srgb], dim=1)),
        (w_gauss, place / sg),
    ):
        lattice = Lattice(features)
        norm = lattice.filter(torch.ones_like(place[:, :1])).rsqrt()
        kernels.append((weight, lattice, norm))

    unary = -probs.flatten(1).T.clamp(1e-5, 1).log()
    q = (-unary).softmax(dim=1)
    for _ in range(iters):
        agreement = sum(w * norm * lattice.filter(norm * q) for w, lattice, norm in kernels)
        q = (agreement - unary).softmax(dim=1)
    return q.T.reshape(probs.shape)


def exact_filter(
    image, probs, *, iters=5, w_bilateral=10.0, sxy=80.0, srgb=13.0, w_gauss=3.0, sg=3.0
):
    """The filters taken exactly, in float32, and the Potts penalty as the paper writes it."""
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        raise TypeError("uint8 image expected")
    classes, height, width = probs.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack([columns, rows], dim=-1).float().reshape(-1, 2)
    bilateral = torch.cat([position / sxy, image.float().reshape(-1, 3) / srgb], dim=-1)
    smooth = position / sg
    ones = torch.ones(height * width, 1)
    norm_b = gaussian_filter(bilateral, ones, method="exact").sqrt()
    norm_s = gaussian_filter(smooth, ones, method="exact").sqrt()

    unary = -probs.clamp(min=1e-5).log()
    potts = 1 - torch.eye(classes)
    q = torch.softmax(-unary, dim=0)
    for _ in range(iters):
        flat = q.permute(1, 2, 0).reshape(-1, classes)
        message = w_bilateral * gaussian_filter(bilateral, flat / norm_b, method="exact") / norm_b
        message += w_gauss * gaussian_filter(smooth, flat / norm_s, method="exact") / norm_s
        penalty = (message @ potts).reshape(height, width, classes).permute(2, 0, 1)
        q = torch.softmax(-unary - penalty, dim=0)
    return q


def kernel_matrix(
    image, probs, *, iters=5, w_bilateral=10.0, sxy=80.0, srgb=13.0, w_gauss=3.0, sg=3.0
):
    """Both kernels as one matrix in float64; products of probabilities in place of logarithms."""
    if image.dtype != torch.uint8:
        raise TypeError("uint8 image expected")
    height, width = image.shape[:2]
    place = torch.tensor([(y, x) for y in range(height) for x in range(width)]).double()
    colour = image.view(-1, 3).double()

    def normalised(squares):
        kernel = torch.exp(-squares / 2)
        norm = kernel.sum(1) ** -0.5
        return norm[:, None] * kernel * norm

    far = (place[:, None] - place[None]).square().sum(-1)
    unlike = (colour[:, None] - colour[None]).square().sum(-1)
    kernel = w_bilateral * normalised(far / sxy**2 + unlike / srgb**2)
    kernel += w_gauss * normalised(far / sg**2)

    prior = probs.double().flatten(1).clamp(1e-5, 1)
    q = prior / prior.sum(0)
    for _ in range(iters):
        q = prior * torch.exp(q @ kernel)
        q /= q.sum(0)
    return q.view(probs.shape)


ALSO_RIGHT = (exact_filter, kernel_matrix)
