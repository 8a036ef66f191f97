"""Gaussian filtering of pixels by their features: exactly, and on the permutohedral lattice.

Sources: P. Krähenbühl, V. Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NIPS 2011, where a fully connected CRF becomes such filters; A. Adams, J. Baek, M. A.
Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010.

Every pixel i has features f_i, for example its place and its colour, each divided by a sigma of
its own, and values v_i. The filter gives each pixel the sum

    out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j,

pixel i itself included with factor 1, divided by nothing.

**Exact.** Take the sum as it stands: N * N factors for N pixels, whatever the features are.

**The lattice.** Pixels of similar features need almost the same sum. Cover the space of features
with a lattice of vertices, and

1. *splat*: each pixel hands its values out to the vertices of the simplex round it;
2. *blur*: the vertices mix with their neighbours, one direction after the other;
3. *slice*: each pixel collects from the vertices that it gave to.

Only vertices next to a pixel exist, so that time and memory grow with N. Cubes would do as well
but have 2^D corners; the simplices of the permutohedral lattice have D + 1.

**Where the vertices are.** Take all points of D + 1 whole numbers and look along (1, ..., 1). What
you see has D dimensions: points that lie behind each other are one vertex, and each vertex has
2 (D + 1) neighbours, one step ahead or behind in one coordinate. To look is to take the mean off
the coordinates, so that the picture is the plane of vectors of sum 0; the features are rotated
onto it. Round a vector y of the plane lie floor(y), then floor(y) with 1 more in the coordinate
that floor cut most, then with 1 more in the two that it cut most, and so on. With 1 more in all of
them the walk is back at its first vertex. Put what was cut, 0 to 1 for each coordinate, on a
circle: the D + 1 gaps are the barycentric weights.

The paper scales all this by D + 1, so that vertices have whole coordinates on the plane, and
starts the walk at the closest vertex of remainder 0. The simplex and the weights are the same.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Factors that the exact filter holds at a time, unless one row of them is longer: N.
TILE = 2**18

# Coordinates up to here keep at least six digits behind the point in float64.
FARTHEST = 1e9


def gaussian_filter(
    features: Tensor, values: Tensor, *, method: Literal["lattice", "exact"] = "lattice"
) -> Tensor:
    """Sum over j of exp(-|f_i - f_j|^2 / 2) v_j for each pixel i, j = i included.

    Args:
        features: floating [N, D], each already divided by its sigma. They get no gradient.
        values: floating [N, C], on the same device. Their gradient is exact for both methods.
        method: "exact" takes time N * N and holds max(N, 2**18) factors at a time, going backward
            too. "lattice" approximates, in time and memory that grow with N: see `Lattice`.

    Returns [N, C] in the wider type of the two, float32 at least. Raises TypeError for what is no
    floating-point tensor and ValueError for sizes that do not fit, numbers that are not finite and
    another method.
    """
    if method == "lattice":
        return Lattice(features).filter(values)
    if method != "exact":
        raise ValueError(f"method: expected 'lattice' or 'exact'; got {method!r}")
    _check_features(features)
    _check_values(values, features.shape[0], features.device)
    dtype = _wider(features.dtype, values.dtype)
    return _Exact.apply(features.detach().to(dtype), values.to(dtype))


class _Exact(torch.autograd.Function):
    """The sum itself. It treats i and j alike, so that the gradient is filtered like the values.

    Left to autograd, the backward pass would keep all N * N factors.
    """

    @staticmethod
    def forward(ctx, features: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        rows = max(1, TILE // len(features))
        sums = []
        with torch.autocast(features.device.type, enabled=False):
            for some in features.split(rows):
                # |f_i|^2 - 2 f_i f_j + |f_j|^2 would be quicker, but loses digits far from the
                # origin.
                distance = torch.cdist(some, features, compute_mode="donot_use_mm_for_euclid_dist")
                sums.append(distance.square_().mul_(-0.5).exp_() @ values)
        return torch.cat(sums)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor]:
        (features,) = ctx.saved_tensors
        return None, _Exact.apply(features, gradient)


class Lattice:
    """The permutohedral lattice round pixels of features [N, D], for many filterings.

    To build it takes longer than to filter: build it once for the features of an image.

    **How wide it blurs.** Along each of the D + 1 directions the kernel (1, 2, 1) / 4 has variance
    1/2, and to splat or slice is to convolve with a box of width 1, variance 1/12. Together 1/2 +
    1/12 + 1/12 = 2/3, so that features enter the lattice times sqrt(2/3).

    **How much it returns.** The blurred values times (4 pi / 3)^(D/2) sqrt(D + 1). That makes the
    integral of the filter that of the Gaussian, (2 pi)^(D/2): a vertex has a volume of
    1 / sqrt(D + 1) to itself, in units of the features (3/2)^(D/2) times that.

    **How exact it is.** Where pixels lie dense, 1 to 7 % off for D = 1 to 5. Where they lie thin,
    as colours do, the blur ends at vertices that have no pixel and too little comes back: about
    0.7 of the exact sum on images, and of its own value for a pixel far from all others. To divide
    by the filter of ones, as a CRF does, makes up for most of it.

    Source: Adams, Baek and Davis, 2010. Departures: vertices are found by sorting one number each
    instead of in a hash table; the constant. Krähenbühl's code has 2^(D + 1) / (1 + 2^-D), 0.7 of
    this one for D = 5: a pixel on a vertex, all others there, then counts itself with factor 1.
    """

    def __init__(self, features: Tensor) -> None:
        """Raises TypeError or ValueError for other than floating [N, D] within -1e9 .. 1e9."""
        _check_features(features)
        farthest = features.abs().max()
        if farthest > FARTHEST:
            raise ValueError(
                f"features: expected -{FARTHEST:.0e} .. {FARTHEST:.0e} for the lattice; "
                f"got {farthest:.1e}"
            )
        self.dtype = features.dtype
        self.num_pixels, dimensions = features.shape
        directions = dimensions + 1

        # In float64: floor leaves only the digits behind the point.
        y = _onto_plane(features.detach().double() * math.sqrt(2 / 3))
        cell = y.floor()
        cut, order = (y - cell).sort(dim=1, descending=True)
        # After k steps of the walk the weight is what the k-th coordinate was cut more than the
        # next one; round the end of the circle for k = 0.
        before = torch.cat([cut[:, -1:] + 1, cut[:, :-1]], dim=1)
        self.weights = before - cut

        # Every vertex as one number, the sum of its coordinates times `steps`. A step in direction
        # i adds steps[i], a step in all of them nothing.
        steps = _steps(cell.long())
        taken = steps[order].roll(1, dims=1)
        taken[:, 0] = (cell.long() * steps).sum(dim=1)
        numbers, sorting = taken.cumsum(dim=1).flatten().sort()
        vertices, vertex, pixels = numbers.unique_consecutive(
            return_inverse=True, return_counts=True
        )
        # For slice: the vertices of each pixel. For splat: the pixels of each vertex, one vertex
        # after the other, with their weights, and where those of a vertex begin.
        self.vertices = torch.empty_like(vertex)
        self.vertices[sorting] = vertex
        self.vertices = self.vertices.view(self.num_pixels, directions)
        self.givers = sorting // directions
        self.given = self.weights.flatten()[sorting]
        self.first = pixels.cumsum(0) - pixels
        self.neighbours = [_neighbours(vertices, step) for step in steps]
        self.scale = (4 * math.pi / 3) ** (dimensions / 2) * math.sqrt(directions)

    def filter(self, values: Tensor) -> Tensor:
        """Approximately the sum over j of exp(-|f_i - f_j|^2 / 2) v_j: [N, C] -> [N, C].

        Arguments, result and errors are those of `gaussian_filter`.
        """
        _check_values(values, self.num_pixels, self.weights.device)
        values = values.to(_wider(self.dtype, values.dtype))
        splat = F.embedding_bag(
            self.givers,
            values,
            self.first,
            mode="sum",
            per_sample_weights=self.given.to(values.dtype),
        )
        # The last row stands for all vertices that do not exist, and stays zero.
        blurred = F.pad(splat, (0, 0, 0, 1))
        for ahead, behind in self.neighbours:
            blurred = blurred / 2 + (blurred[ahead] + blurred[behind]) / 4
        return self.scale * F.embedding_bag(
            self.vertices,
            blurred,
            mode="sum",
            per_sample_weights=self.weights.to(values.dtype),
        )


def _onto_plane(features: Tensor) -> Tensor:
    """Rotate [N, D] onto the plane of vectors of sum 0: [N, D + 1], distances as they were.

    Feature d has coordinates 0 .. d equal and coordinate d + 1 to make up for them (the paper's
    choice).
    """
    d = torch.arange(1, features.shape[1] + 1, dtype=features.dtype, device=features.device)
    scaled = features / (d * (d + 1)).sqrt()
    from_d_on = scaled.flip(1).cumsum(1).flip(1)
    return F.pad(from_d_on, (0, 1)) - F.pad(d * scaled, (1, 0))


def _steps(cell: Tensor) -> Tensor:
    """int64 [D + 1] of sum 0 that give each vertex round `cell` [N, D + 1] a number of its own.

    They are place values: coordinates less the last one, as digits of a number. Where these are
    too many for 64 bits, drawn at random: overflow then makes the number a hash, and the odds that
    two of a million vertices share one are below one in a million.
    """
    digits = cell[:, :-1] - cell[:, -1:]
    # A vertex of the simplex is up to 1 away from its cell, to either side, and a neighbour 2.
    bases = (digits.amax(0) - digits.amin(0) + 5).tolist()
    if math.prod(bases) < 2**63:
        steps = [math.prod(bases[:i]) for i in range(len(bases))]
    else:
        generator = torch.Generator().manual_seed(0)
        steps = torch.randint(2**63 - 1, (len(bases),), generator=generator).tolist()
    steps = torch.tensor(steps, device=cell.device)
    return torch.cat([steps, -steps.sum(0, keepdim=True)])


def _neighbours(vertices: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the vertices one step ahead and behind, for sorted `vertices` [M]: [M + 1] each.

    Row M stands for a vertex that does not exist. Its neighbours do not, either.
    """
    missing = len(vertices)
    row = torch.searchsorted(vertices, vertices + step).clamp_max(missing - 1)
    exists = vertices[row] == vertices + step
    ahead, behind = torch.full((2, missing + 1), missing, device=vertices.device)
    ahead[:-1][exists] = row[exists]
    behind[row[exists]] = exists.nonzero().flatten()
    return ahead, behind


def _wider(*dtypes: torch.dtype) -> torch.dtype:
    return torch.promote_types(torch.promote_types(*dtypes), torch.float32)


def _check_features(features: Tensor) -> None:
    _check_floating("features", features)
    if features.ndim != 2 or features.numel() == 0:
        raise ValueError(f"features: expected [N, D] with N, D >= 1; got {list(features.shape)}")
    _check_finite("features", features)


def _check_values(values: Tensor, num_pixels: int, device: torch.device) -> None:
    _check_floating("values", values)
    if values.ndim != 2 or len(values) != num_pixels or values.numel() == 0:
        raise ValueError(
            f"values: expected [{num_pixels}, C], one row for each row of features, C >= 1; "
            f"got {list(values.shape)}"
        )
    if values.device != device:
        raise ValueError(f"values: expected the device of features, {device}; got {values.device}")
    _check_finite("values", values)


def _check_floating(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor; got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point tensor; got {value.dtype}")


def _check_finite(name: str, value: Tensor) -> None:
    if not value.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers; got NaN or infinity")
