"""The CRF on the lattice beside the authors' code and beside the exact computation."""

import pytest
import torch
import torch.nn.functional as F
from hidden.dense_crf.reference import dense_crf

from segcourse.toyscape import Toyscape

# What pydensecrf2 1.1, Krähenbühl's code, gives the second class of the image below:
# `DenseCRF2D(12, 10, 2)`, the negative logarithm of the probabilities as unary energy,
# `addPairwiseGaussian(sxy=2, compat=1.5)`, `addPairwiseBilateral(sxy=6, srgb=20, compat=2)`,
# `inference(5)`.
SECOND = """
0.00000 0.01550 0.03399 0.07857 0.01873 0.05225 0.15230 0.05075 0.16430 0.41963 0.97272 0.84105
0.00603 0.02117 0.04217 0.00699 0.02629 0.06688 0.22320 0.08171 0.23058 0.93646 0.77451 0.90167
0.01142 0.02961 0.05885 0.01264 0.03894 0.10194 0.03614 0.12428 0.87075 0.67626 0.86086 0.94251
0.01925 0.04365 0.00575 0.02178 0.06515 0.01338 0.06034 0.77304 0.93302 0.79130 0.91423 0.97090
0.02941 0.00153 0.01208 0.03559 0.10819 0.03062 0.63635 0.86905 0.66220 0.86653 0.94953 0.99027
0.04433 0.00681 0.02206 0.05982 0.01571 0.45817 0.75622 0.92898 0.78221 0.91708 0.97312 0.86210
0.00161 0.01443 0.04073 0.10777 0.27450 0.58757 0.84659 0.63972 0.85323 0.94597 0.80290 0.90545
0.00843 0.02700 0.07232 0.13677 0.39934 0.70814 0.40882 0.73921 0.90058 0.97116 0.85922 0.93075
0.01977 0.05024 0.04261 0.24537 0.53248 0.79408 0.54957 0.81399 0.93086 0.77014 0.89679 0.95456
0.04134 0.41827 0.12611 0.36837 0.65186 0.31667 0.64234 0.85720 0.95614 0.81841 0.91832 0.97336
"""


def test_the_lattice_gives_what_pydensecrf_gives():
    y, x = torch.meshgrid(torch.arange(10), torch.arange(12), indexing="ij")
    left = (x + y < 10).unsqueeze(-1)
    image = torch.where(left, torch.tensor([200, 120, 60]), torch.tensor([40, 90, 150]))
    pattern = (7 * x + 5 * y).unsqueeze(-1) + 3 * torch.arange(3)
    image = (image + 2 * pattern % 11).byte()
    second = ((5 * x + 3 * y) % 17 + x) / 29
    options = {"w_bilateral": 2.0, "sxy": 6.0, "srgb": 20.0, "w_gauss": 1.5, "sg": 2.0}
    found = dense_crf(image, torch.stack([1 - second, second]), **options)
    expected = torch.tensor([float(word) for word in SECOND.split()]).view(10, 12)
    torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0], 1 - expected, rtol=0, atol=1e-4)


def kernel(features, rows=512):
    """exp(-|f_i - f_j|^2 / 2) / sqrt(n_i n_j) of all pairs, [N, N], made row by row."""
    n, dimensions = features.shape
    matrix = torch.empty(n, n)
    centred = features - features.mean(dim=0)
    square = centred.square().sum(dim=1)
    for block in range(0, n, rows):
        part = centred[block : block + rows]
        distance = square[block : block + rows, None] + square - 2 * part @ centred.T
        matrix[block : block + rows] = (-distance.clamp_min(0) / 2).exp()
    norm = matrix.sum(dim=1).rsqrt()
    return matrix.mul_(norm).mul_(norm.unsqueeze(1))


@pytest.mark.slow
def test_the_lattice_is_close_to_exact():
    """At the contract's default settings, 128 x 128 pixels, 4 classes, rough probabilities."""
    scene = Toyscape("val", size=128, length=2)[1]
    image = (255 * scene["image"]).round().byte().movedim(0, -1)
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    noise = F.interpolate(noise, (128, 128), mode="bilinear")[0]
    truth = F.one_hot(scene["mask"].clamp_max(9) // 3, 4).movedim(-1, 0)
    probs = (3 * truth + 2 * noise).softmax(dim=0)

    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    place, colour = torch.stack([x, y], dim=-1).view(-1, 2), image.reshape(-1, 3).float()
    both = 10 * kernel(torch.cat([place / 80, colour / 13], dim=1))
    both += 3 * kernel(place / 3)
    log = probs.flatten(1).clamp(1e-5, 1).log()
    exact = log.softmax(dim=0)
    for _ in range(5):
        exact = (log + exact @ both).softmax(dim=0)

    found = dense_crf(image, probs).flatten(1)
    assert (found - exact).abs().mean() < 0.003
    assert (found.argmax(0) != exact.argmax(0)).float().mean() < 0.01
