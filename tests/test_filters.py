"""Gaussian filters: the literal sum, the paper's lattice point by point, and what theory says."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segcourse import filters
from segcourse.filters import Lattice, gaussian_filter
from segcourse.toyscape import NUM_CLASSES, Toyscape

exact = functools.partial(gaussian_filter, method="exact")
lattice = functools.partial(gaussian_filter, method="lattice")

both = pytest.mark.parametrize("method", ("exact", "lattice"))
each_dimension = pytest.mark.parametrize("dimensions", (1, 2, 3, 4, 5))


def drawn(pixels, dimensions, channels=2, *, spread=4.0, seed=0):
    """Features uniform in a cube of side `spread`, values normal; float64."""
    generator = torch.Generator().manual_seed(seed)
    features = spread * torch.rand(pixels, dimensions, generator=generator, dtype=torch.float64)
    return features, torch.randn(pixels, channels, generator=generator, dtype=torch.float64)


@functools.cache
def scene(index, size=64):
    """Features and class probabilities of a Toyscape scene, sigmas 80 pixels and 13 grey levels.

    The probabilities are those of a network that is right and sure of it here and there.
    """
    item = Toyscape("val", size=size)[index]
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    colour = (255 * item["image"]).round()
    features = torch.stack([x / 80, y / 80, *(colour / 13)], dim=-1).flatten(0, 1).double()
    truth = F.one_hot(item["mask"], NUM_CLASSES).double()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(index)).double()
    return features, (3 * truth + noise).softmax(dim=-1).flatten(0, 1)


def literal_sum(features, values):
    rows = []
    for f in features:
        row = torch.zeros_like(values[0])
        for g, v in zip(features, values, strict=True):
            row += math.exp(-(math.dist(f.tolist(), g.tolist()) ** 2) / 2) * v
        rows.append(row)
    return torch.stack(rows)


def papers_lattice(features, values):
    """Adams et al. by the letter, one point at a time, times the constant of `Lattice`.

    Vertices have D + 1 whole coordinates of sum 0 and equal remainder mod D + 1, in a dict. The
    weights solve the linear equations that define them.
    """
    d = features.shape[1]
    basis = np.zeros((d + 1, d))
    for j in range(d):
        basis[: j + 1, j] = 1
        basis[j + 1, j] = -(j + 1)
    basis *= math.sqrt(2 / 3) * (d + 1) / np.linalg.norm(basis, axis=0)
    table, corners = {}, []
    for f, v in zip(features.numpy(), values.numpy(), strict=True):
        y = basis @ f
        zero = (d + 1) * np.rint(y / (d + 1))
        excess = round(zero.sum() / (d + 1))
        falling = np.argsort(zero - y)
        if excess > 0:
            zero[falling[len(falling) - excess :]] -= d + 1
        else:
            zero[falling[:-excess]] += d + 1
        falling = np.argsort(zero - y)
        vertices = np.repeat(zero[None], d + 1, axis=0)
        for k in range(d + 1):
            vertices[k] += k
            vertices[k, falling[d + 1 - k :]] -= d + 1
        equations = np.vstack([vertices.T, np.ones(d + 1)])
        weights = np.linalg.lstsq(equations, np.append(y, 1), rcond=None)[0]
        assert weights.min() > -1e-6
        corners.append(list(zip(map(tuple, vertices.astype(int)), weights, strict=True)))
        for p, w in corners[-1]:
            table[p] = table.get(p, 0) + w * v
    for i in range(d + 1):
        ahead = np.full(d + 1, -1)
        ahead[i] = d

        def at(p, table=table):
            return table.get(tuple(p), 0)

        table = {
            p: at(p) / 2 + (at(np.add(p, ahead)) + at(np.subtract(p, ahead))) / 4 for p in table
        }
    volume = math.sqrt(3 / 2) ** d / math.sqrt(d + 1)
    scale = math.sqrt(2 * math.pi) ** d / volume
    return scale * torch.from_numpy(np.stack([sum(w * table[p] for p, w in c) for c in corners]))


# --- exact -------------------------------------------------------------------------------------


@each_dimension
def test_exact_is_the_double_loop(dimensions):
    features, values = drawn(23, dimensions)
    torch.testing.assert_close(exact(features, values), literal_sum(features, values))


@pytest.mark.parametrize("tile", (1, 100, 10**6))
def test_exact_holds_a_tile_of_the_factors_in_both_passes(tile, monkeypatch):
    features, values = drawn(30, 3)
    whole = exact(features, values)
    cdist, held, saved = torch.cdist, [], []

    def counted(*args, **options):
        distances = cdist(*args, **options)
        held.append(distances.numel())
        return distances

    def kept(tensor):
        saved.append(tensor.numel())
        return tensor

    monkeypatch.setattr(filters, "TILE", tile)
    monkeypatch.setattr(torch, "cdist", counted)
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda tensor: tensor):
        result = exact(features, values.requires_grad_())
    torch.testing.assert_close(result, whole)
    result.sum().backward()
    assert sum(held) == 2 * 30 * 30 and max(held) <= max(tile, 30)
    assert sum(saved) <= features.numel() + values.numel()


def test_exact_keeps_its_digits_far_from_the_origin():
    """|f_i|^2 - 2 f_i f_j + |f_j|^2 in float32 has none left here."""
    features, values = drawn(50, 2)
    near = (features * 64).round() / 64
    torch.testing.assert_close(
        exact((near + 4096).float(), values.float()), exact(near, values).float()
    )


# --- the lattice beside others -----------------------------------------------------------------


@pytest.mark.parametrize("dimensions", (1, 2, 3, 4, 5, 6))
@pytest.mark.parametrize("spread", (1.0, 4.0, 50.0))
def test_the_lattice_is_the_papers(dimensions, spread):
    features, values = drawn(60, dimensions, spread=spread)
    features -= spread / 3
    torch.testing.assert_close(lattice(features, values), papers_lattice(features, values))


def test_vertices_too_far_apart_for_64_bits_are_found_too():
    """Clusters up to 1e6 sigmas apart in each of 5 features: 100 bits in all."""
    features, values = drawn(80, 5)
    features += 1e6 * drawn(8, 5, spread=1.0, seed=1)[0].repeat(10, 1)
    result, expected = lattice(features, values), papers_lattice(features, values)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


# What pydensecrf2 1.1, Krähenbühl's code, computes for the image and the values below. It shows no
# filter, but one step of mean field between two labels of probabilities p and 1 - p adds the
# filters of p and of 1 - p to their logits. With p = (1 + value) / 2 the difference of the two is
# the filter of the values. `DenseCRF2D(12, 10, 2)`, `addPairwiseBilateral(sxy=(5, 5),
# srgb=(13, 13, 13), compat=1, kernel=DIAG_KERNEL, normalization=NO_NORMALIZATION)`,
# `inference(1)`; the logarithm of the quotient of the two answers less that of p / (1 - p).
MESSAGES = """
2.74759 2.77647 4.14785 2.67466 3.83474 4.00209 2.47783 2.60450 2.80335 1.33654 3.45363 2.53099
2.93694 3.78662 2.82360 4.35733 4.03428 3.55322 3.99309 2.34627 2.53165 4.53903 3.63639 3.22290
2.84311 3.56450 4.49518 3.22840 4.23518 4.36849 2.84033 3.63983 3.93502 4.17083 4.91304 3.69725
3.70653 3.87136 3.81622 4.73936 3.17939 4.13633 3.97394 4.77595 4.64419 5.17628 4.35500 4.73126
3.09512 3.72722 4.76103 3.14808 4.59632 3.86448 3.99314 5.69233 5.25776 5.11283 5.67345 4.66883
4.11509 3.23817 3.75059 4.54181 2.99219 4.23807 5.06112 4.86525 5.61771 5.11259 4.32204 5.38815
2.51478 3.57147 3.66887 3.07931 4.77981 4.55616 4.95854 6.29077 5.48042 5.33670 5.42041 4.43313
3.67392 2.70179 3.02111 3.81432 4.53453 5.12535 4.57896 4.48197 5.88981 5.03430 4.36150 5.16993
2.35043 3.25668 3.57951 3.62285 4.65995 4.55146 4.43675 5.18434 5.01490 5.05298 4.13966 3.26807
2.51088 2.71635 3.39099 3.21741 3.37612 4.62973 4.44676 3.90862 4.98904 4.85694 3.63527 3.98889
"""


def recorded_image():
    """Features [120, 5] and values [120, 1] of an image of two colours under a pattern."""
    y, x, c = torch.meshgrid(torch.arange(10), torch.arange(12), torch.arange(3), indexing="ij")
    colours = torch.where(x + y < 10, torch.tensor([200, 120, 60]), torch.tensor([40, 90, 150]))
    colours = colours + 2 * ((7 * x + 5 * y + 3 * c) % 11)
    x, y = x[..., 0], y[..., 0]
    features = torch.stack([x / 5, y / 5, *(colours / 13).unbind(-1)], dim=-1)
    return features.flatten(0, 1), ((x * y % 6 + 1) / 8).view(-1, 1)


def test_the_lattice_computes_what_pydensecrf_does():
    features, values = recorded_image()
    constant = 2**6 / (1 + 2**-5) / Lattice(features).scale
    messages = constant * lattice(features, values).view(10, 12)
    recorded = torch.tensor([float(word) for word in MESSAGES.split()]).view(10, 12)
    torch.testing.assert_close(messages, recorded, rtol=0, atol=2e-5)


# --- the lattice beside the exact sum ----------------------------------------------------------


def grid(dimensions, spacing):
    """A dense grid over -5 .. 5 in each dimension, and 150 points of it away from the border."""
    axis = torch.arange(-5, 5, spacing, dtype=torch.float64)
    features = torch.cartesian_prod(*[axis] * dimensions).view(-1, dimensions)
    inner = (features.abs().amax(dim=1) < 1.5).nonzero().flatten()
    chosen = torch.randperm(len(inner), generator=torch.Generator().manual_seed(0))[:150]
    return features, inner[chosen]


def moments(filtering, dimensions, spacing):
    """Integral and covariance of the response to one pixel, its place averaged over."""
    features, places = grid(dimensions, spacing)
    response = filtering(features, F.one_hot(places, len(features)).T.double())
    away = features[:, None] - features[places]
    mass = response.sum()
    covariance = torch.einsum("ip,ipa,ipb->ab", response, away, away) / mass
    return mass / len(places) * spacing**dimensions, covariance


@pytest.mark.parametrize(("dimensions", "spacing"), [(1, 0.02), (2, 0.15), (3, 0.5)])
def test_where_pixels_lie_dense_integral_and_covariance_are_the_gaussians(dimensions, spacing):
    integral, covariance = moments(lattice, dimensions, spacing)
    assert integral == pytest.approx((2 * math.pi) ** (dimensions / 2), rel=0.01)
    assert (covariance - torch.eye(dimensions)).abs().max() < 0.02


def deviation(filtering, features, values):
    """Mean relative deviation from the exact sum."""
    expected = exact(features, values)
    return ((filtering(features, values) - expected).abs() / expected).mean().item()


@pytest.mark.parametrize(
    ("dimensions", "bound"), [(1, 0.02), (2, 0.03), (3, 0.04), (4, 0.05), (5, 0.08)]
)
def test_where_pixels_lie_dense_the_lattice_is_close_to_exact(dimensions, bound):
    features, values = drawn(3000, dimensions)
    assert deviation(lattice, features, values.abs()) < bound


def normalised(filtering, features, values):
    """The message of a CRF: n_i^-1/2 k_ij n_j^-1/2, where n is the filter of ones."""
    n = filtering(features, torch.ones_like(values[:, :1])).rsqrt()
    return n * filtering(features, n * values)


@pytest.mark.parametrize("index", range(4))
def test_on_images_the_lattice_loses_up_to_a_third_and_normalisation_makes_up_for_it(index):
    features, probabilities = scene(index)
    assert 0.2 < deviation(lattice, features, probabilities) < 1 / 3
    messages = normalised(lattice, features, probabilities)
    off = (messages - normalised(exact, features, probabilities)).abs()
    assert off.mean() < 0.004
    # A few pixels of a colour that is nearly theirs alone are further off.
    assert off.amax(dim=1).quantile(0.99) < 0.1


def lone_points(dimensions):
    """300 points in a row, each at least 70 sigmas away from all others."""
    return drawn(300, dimensions, spread=30.0)[0] + 100 * torch.arange(300.0)[:, None]


@each_dimension
def test_a_lone_point_keeps_its_value(dimensions):
    """Exactly; on the lattice about: it depends on where in a simplex the point lies."""
    features, values = lone_points(dimensions), drawn(300, 1)[1]
    torch.testing.assert_close(exact(features, values), values)
    kept = lattice(features, values) / values
    assert kept.min() > 0.5 and kept.max() < 1.3
    assert 0.6 < kept.mean() < 0.9


def faults(filtering):
    """The statements about a filter of two features that do not hold."""
    features, values = lone_points(2), drawn(300, 1)[1]
    kept = (filtering(features, values) / values).mean()
    integral, covariance = moments(filtering, 2, 0.15)
    dense, values = drawn(1000, 2)
    statements = {
        "a lone point keeps its value": 0.7 < kept < 1.05,
        "integral": 0.99 < integral / (2 * math.pi) < 1.01,
        "covariance": (covariance - torch.eye(2)).abs().max() < 0.02,
        "close to exact": deviation(filtering, dense, values.abs()) < 0.03,
    }
    return [statement for statement, holds in statements.items() if not holds]


def without_a_direction(features, values):
    skewed = Lattice(features)
    skewed.neighbours = skewed.neighbours[:-1]
    return skewed.filter(values)


def with_the_constant_of_pydensecrf(features, values):
    built = Lattice(features)
    d = features.shape[1]
    built.scale = 2 ** (d + 1) / (1 + 2**-d)
    return built.filter(values)


@both
def test_no_statement_fails(method):
    assert faults(functools.partial(gaussian_filter, method=method)) == []


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (lambda f, v: exact(f, v) - v, "a lone point keeps its value"),
        (lambda f, v: lattice(f, v) - v, "a lone point keeps its value"),
        (lambda f, v: exact(f, v) / exact(f, torch.ones_like(v[:, :1])), "integral"),
        (lambda f, v: exact(f * math.sqrt(2), v), "covariance"),
        (lambda f, v: lattice(f * math.sqrt(2), v), "covariance"),
        (lambda f, v: lattice(f / math.sqrt(2), v), "covariance"),
        (without_a_direction, "covariance"),
        (with_the_constant_of_pydensecrf, "integral"),
    ],
)
def test_a_wrong_filter_is_found_out(wrong, fault):
    assert fault in faults(wrong)


# --- what holds for both -----------------------------------------------------------------------


@both
@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.integers(0, 10**6))
def test_the_filter_is_linear_and_its_gradient_the_adjoint(
    method, pixels, dimensions, channels, seed
):
    """<u, K v> = <K^T u, v>, where K^T is what autograd applies."""
    filtering = functools.partial(gaussian_filter, method=method)
    features, v = drawn(pixels, dimensions, channels, seed=seed)
    u = drawn(pixels, dimensions, channels, seed=seed + 1)[1]
    torch.testing.assert_close(
        filtering(features, 3 * v - u / 2), 3 * filtering(features, v) - filtering(features, u) / 2
    )
    v.requires_grad_()
    result = filtering(features, v)
    (adjoint,) = torch.autograd.grad(result, v, u)
    torch.testing.assert_close((u * result).sum(), (adjoint * v).sum())


@both
def test_gradients_by_finite_differences(method):
    features, values = drawn(12, 3)
    filtering = functools.partial(gaussian_filter, features, method=method)
    assert torch.autograd.gradcheck(filtering, values.requires_grad_())


@both
def test_features_get_no_gradient(method):
    features, values = (x.requires_grad_() for x in drawn(9, 2))
    gaussian_filter(features, values, method=method).sum().backward()
    assert features.grad is None and values.grad is not None
    assert not gaussian_filter(features, values.detach(), method=method).requires_grad


@both
@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_order_of_the_pixels_does_not_matter(method, pixels, dimensions, random):
    features, values = drawn(pixels, dimensions, seed=random.randrange(10**6))
    order = torch.tensor(random.sample(range(pixels), pixels))
    torch.testing.assert_close(
        gaussian_filter(features[order], values[order], method=method),
        gaussian_filter(features, values, method=method)[order],
    )


@both
@each_dimension
def test_pixels_of_equal_features_add_up(method, dimensions):
    features, values = drawn(1, dimensions)
    alone = gaussian_filter(features, torch.ones_like(values), method=method)
    _, values = drawn(7, dimensions)
    together = gaussian_filter(features.expand(7, -1), values, method=method)
    torch.testing.assert_close(together, (alone * values.sum(0)).expand(7, -1))


@both
@each_dimension
@pytest.mark.parametrize("distance", (100.0, 1e6))
def test_clusters_far_apart_do_not_meet(method, dimensions, distance):
    filtering = functools.partial(gaussian_filter, method=method)
    (f, v), (g, w) = drawn(30, dimensions), drawn(20, dimensions, seed=1)
    g = g - distance
    together = filtering(torch.cat([f, g]), torch.cat([v, w]))
    torch.testing.assert_close(together, torch.cat([filtering(f, v), filtering(g, w)]))


@both
@each_dimension
def test_one_pixel(method, dimensions):
    features, values = drawn(1, dimensions, 3)
    kept = gaussian_filter(features, values, method=method) / values
    torch.testing.assert_close(kept, kept[0, 0].expand(1, 3))
    assert 0.5 < kept[0, 0] < 1.3


def test_moving_all_features_changes_the_lattice_a_little_and_exact_not_at_all():
    features, values = drawn(2000, 2, 1)
    values, moved = values.abs(), features + torch.tensor([0.37, -11.2])
    torch.testing.assert_close(exact(moved, values), exact(features, values))
    change = (lattice(moved, values) / lattice(features, values) - 1).abs()
    assert 0.001 < change.mean() < 0.04


def test_swapping_two_features_changes_the_lattice_a_little():
    features, values = drawn(2000, 3, 1)
    change = lattice(features.flip(1), values.abs()) / lattice(features, values.abs()) - 1
    assert 0.001 < change.abs().mean() < 0.06


@both
def test_two_runs_and_a_lattice_used_twice_give_the_same_bits(method):
    features, probabilities = scene(0, 32)
    results = [gaussian_filter(features, probabilities, method=method) for _ in range(2)]
    assert torch.equal(*results)
    if method == "lattice":
        built = Lattice(features)
        built.filter(probabilities.flip(0))
        assert torch.equal(built.filter(probabilities), results[0])


HALF, SINGLE, DOUBLE = torch.float16, torch.float32, torch.float64


@both
@pytest.mark.parametrize(
    ("features_type", "values_type", "result_type"),
    [
        (HALF, HALF, SINGLE),
        (torch.bfloat16, HALF, SINGLE),
        (HALF, SINGLE, SINGLE),
        (SINGLE, SINGLE, SINGLE),
        (SINGLE, DOUBLE, DOUBLE),
        (DOUBLE, HALF, DOUBLE),
    ],
)
@pytest.mark.parametrize("autocast", (False, True))
def test_types(method, features_type, values_type, result_type, autocast):
    """The result has the wider type, float32 at least, and the gradient that of the values."""
    features, values = drawn(40, 5)
    features, values = features.to(features_type), values.to(values_type).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = gaussian_filter(features, values, method=method)
        result.sum().backward()
    assert (result.dtype, values.grad.dtype) == (result_type, values_type)
    expected = gaussian_filter(features.double(), values.double(), method=method)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


BAD_FEATURES = [
    ([[1.0]], TypeError, "features: expected a tensor; got list"),
    (torch.ones(4, 2).long(), TypeError, "features: expected a floating.* torch.int64"),
    (torch.ones(4), ValueError, r"features: expected \[N, D\].* got \[4\]"),
    (torch.ones(0, 2), ValueError, r"features: .* got \[0, 2\]"),
    (torch.ones(4, 0), ValueError, r"features: .* got \[4, 0\]"),
    (torch.full((4, 2), math.nan), ValueError, "features: expected finite"),
    (torch.full((4, 2), math.inf), ValueError, "features: expected finite"),
]
BAD_VALUES = [
    (2.0, TypeError, "values: expected a tensor; got float"),
    (torch.ones(4, 2).bool(), TypeError, "values: expected a floating.* torch.bool"),
    (torch.ones(4), ValueError, r"values: expected \[4, C\].* got \[4\]"),
    (torch.ones(3, 2), ValueError, r"values: expected \[4, C\].* got \[3, 2\]"),
    (torch.ones(4, 0), ValueError, r"values: expected \[4, C\].* got \[4, 0\]"),
    (torch.full((4, 2), math.inf), ValueError, "values: expected finite"),
    (torch.ones(4, 2, device="meta"), ValueError, "values: expected the device.* cpu; got meta"),
]


@both
@pytest.mark.parametrize(("features", "error", "message"), BAD_FEATURES)
def test_bad_features_are_named(method, features, error, message):
    with pytest.raises(error, match=message):
        gaussian_filter(features, torch.ones(4, 2), method=method)


@both
@pytest.mark.parametrize(("values", "error", "message"), BAD_VALUES)
def test_bad_values_are_named(method, values, error, message):
    with pytest.raises(error, match=message):
        gaussian_filter(torch.ones(4, 2), values, method=method)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="method: expected 'lattice' or 'exact'; got 'fast'"):
        gaussian_filter(torch.ones(4, 2), torch.ones(4, 2), method="fast")


def test_features_too_far_out_for_the_lattice_are_named():
    features = torch.tensor([[0.0], [-2e9]])
    with pytest.raises(ValueError, match=r"features: .*1e\+09 for the lattice; got 2.0e\+09"):
        Lattice(features)
    torch.testing.assert_close(exact(features, features / 2e9), features / 2e9)
