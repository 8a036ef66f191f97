"""The lattice filter and the CRF on it: time and memory over the image's size, error beside the
exact filter, and time beside pydensecrf where that is installed (`pip install pydensecrf2`).

The scenes are the course's own. Recorded are the growth of the time over all sizes, relative to
that of N log N, and the time over pydensecrf's.
"""

import functools
import importlib.util
import math
import multiprocessing
import re
import statistics
from pathlib import Path

import numpy as np
import torch
from bench.timing import ratio, record, take_turns
from hidden.dense_crf.reference import dense_crf
from torch import Tensor

from segcourse import plots
from segcourse.filters import Lattice, gaussian_filter
from segcourse.toyscape import Toyscape

SIZES = (128, 256, 512, 1024)
SXY, SRGB = 80.0, 13.0


def scene(size: int) -> Tensor:
    """Four scenes in one image, uint8 [H, W, 3]."""
    parts = [Toyscape("val", size=size // 2, length=4)[i]["image"] for i in range(4)]
    image = torch.cat([torch.cat(parts[:2], dim=2), torch.cat(parts[2:], dim=2)], dim=1)
    return (255 * image).round().byte().movedim(0, -1).contiguous()


def bilateral(size: int) -> Tensor:
    """The five features of each pixel of a scene, [N, 5]."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    place = torch.stack([rows, columns], dim=-1).float() / SXY
    return torch.cat([place, scene(size).float() / SRGB], dim=-1).flatten(0, 1)


def probabilities(classes: int, size: int) -> Tensor:
    """[C, H, W], smooth over the image as a network's are."""
    noise = torch.randn(1, classes, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = torch.nn.functional.interpolate(noise, (size, size), mode="bilinear")
    return (3 * maps[0]).softmax(dim=0)


def five_filters(features: Tensor, values: Tensor) -> None:
    lattice = Lattice(features)
    for _ in range(5):
        lattice.filter(values)


def peak(size: int) -> float:
    """MB that set-up and five filterings need at their peak, in a fresh process of Linux."""
    torch.set_num_threads(1)
    features, values = bilateral(size), torch.rand(size**2, 4)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _peak()
    five_filters(features, values)
    return (_peak() - before) / 1024


def _peak() -> int:
    """The most memory that this process held, in kB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def growth() -> str:
    times = take_turns({
        size: functools.partial(five_filters, bilateral(size), torch.rand(size**2, 4))
        for size in SIZES
    })  # fmt: skip
    rows = []
    for size in SIZES:
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            memory = fresh.apply(peak, (size,))
        seconds = statistics.median(times[size])
        pixels = size**2
        rows.append([size, pixels, 1e3 * seconds, 1e9 * seconds / pixels, memory])
    n_log_n = [pixels * math.log(pixels) for pixels in (SIZES[0] ** 2, SIZES[-1] ** 2)]
    grown = ratio(times[SIZES[-1]], times[SIZES[0]])
    record("lattice growth", grown * n_log_n[0] / n_log_n[1], times[SIZES[-1]])
    head = ["side (px)", "pixels", "time (ms)", "time a pixel (ns)", "peak memory (MB)"]
    caption = "Lattice of 5 features, set-up and 5 filterings of 4 values, one thread"
    return str(plots.table(rows, head, digits=1, caption=caption))


def error() -> str:
    """What one normalised message of the lattice differs by, [C] = 4 at 128 px."""
    features, values = bilateral(128), probabilities(4, 128).flatten(1).T
    messages = []
    for method in ("lattice", "exact"):
        filtered = functools.partial(gaussian_filter, features, method=method)
        norm = filtered(torch.ones(len(features), 1)).rsqrt()
        messages.append(norm * filtered(norm * values))
    off = (messages[0] - messages[1]).abs()
    return (
        f"One message at 128 px, lattice beside exact: mean {off.mean():.5f}, max {off.max():.3f}"
    )


def beside_pydensecrf() -> str:
    """The whole CRF, 21 classes at 512 px, 5 iterations."""
    import pydensecrf.densecrf as library

    image, probs = scene(512), probabilities(21, 512)
    picture = np.ascontiguousarray(image.numpy())
    unary = np.ascontiguousarray(-probs.clamp(1e-5, 1).log().flatten(1).numpy())

    def theirs() -> np.ndarray:
        crf = library.DenseCRF2D(512, 512, 21)
        crf.setUnaryEnergy(unary)
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=SXY, srgb=SRGB, rgbim=picture, compat=10)
        return np.array(crf.inference(5))

    def ours() -> Tensor:
        return dense_crf(image, probs)

    off = (ours().flatten(1) - torch.from_numpy(theirs())).abs().max()
    times = take_turns({"ours": ours, "theirs": theirs})
    found = ratio(times["ours"], times["theirs"])
    record("dense CRF", found, times["ours"])
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return (
        f"CRF, 21 classes at 512 px, 5 iterations: {seconds['ours']:.2f} s, pydensecrf "
        f"{seconds['theirs']:.2f} s, ratio {found:.2f}; max |dQ| {off:.1e}"
    )


def main() -> None:
    print(growth())
    print(error())
    if importlib.util.find_spec("pydensecrf"):
        print(beside_pydensecrf())
    else:
        print("pydensecrf is not installed: no comparison")


if __name__ == "__main__":
    main()
