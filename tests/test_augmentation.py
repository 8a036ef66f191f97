"""Augmentation: every pixel and every label is where the map of coordinates says, to the bit."""

import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from torch import nn

from segcourse.augmentation import Augmented, adjust_colour, resample
from segcourse.toyscape import NUM_CLASSES, Toyscape
from segcourse.training import fit, pixel_loss

VOID = 255
SIDES = st.integers(1, 40)


class Coordinates:
    """A data set whose image holds the index of each pixel, scaled to 0..1, in float64.

    Red is the column over W, green the row over H. The mask is a function of the pixel with some
    void in it. Instances number the pixels, from 1 on, so that a label names where it comes from.
    """

    def __init__(self, height, width, length=64):
        self.height, self.width, self.length = height, width, length

    def __len__(self):
        return self.length

    def batch(self, indices):
        row, column = torch.meshgrid(
            torch.arange(self.height), torch.arange(self.width), indexing="ij"
        )
        red, green = column.double() / self.width, row.double() / self.height
        mask = torch.where((row + 2 * column) % 7 == 0, VOID, (3 * row + 5 * column) % 9)
        values = {
            "image": torch.stack([red, green, torch.zeros_like(red)]),
            "mask": mask,
            "instances": row * self.width + column + 1,
        }
        return {name: value.expand(len(indices), *value.shape) for name, value in values.items()}


def windows(count, height, width, seed, scales=(0.3, 3.0)):
    """Random arguments of `resample` in float64; some windows reach over the image's border."""
    draw = torch.Generator().manual_seed(seed)
    u = torch.rand(4, count, generator=draw, dtype=torch.float64)
    return {
        "flip": u[0] < 0.5,
        "scale": scales[0] * (scales[1] / scales[0]) ** u[1],
        "centre": torch.stack([width * u[2], height * u[3]], dim=1),
    }


def places(flip, scale, centre, height, width):
    """Where each pixel centre of the window lies: x [B,1,W] and y [B,H,1], in px."""
    sign = 1 - 2 * flip.double()
    x = centre[:, :1] + (sign / scale)[:, None] * (torch.arange(width) + 0.5 - width / 2)
    y = centre[:, 1:] + (1 / scale)[:, None] * (torch.arange(height) + 0.5 - height / 2)
    return x[:, None, :], y[:, :, None]


def check_against_coordinates(function, height=24, width=17, seed=0):
    """Fails unless `function` moves pixels, classes and instances as `resample` promises."""
    data = Coordinates(height, width)
    before, window = data.batch(range(32)), windows(32, height, width, seed)
    after = function(before, **window)
    x, y = places(**window, height=height, width=width)

    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    assert torch.equal(after["instances"] > 0, inside)
    pixel = (y.floor() * width + x.floor()).long()
    assert torch.equal(after["instances"][inside], pixel[inside] + 1)
    assert torch.equal(after["mask"][inside], before["mask"][0].flatten()[pixel[inside]])
    assert (after["mask"][~inside] == VOID).all()

    column, row = (x - 0.5).clamp(0, width - 1), (y - 0.5).clamp(0, height - 1)
    red, green = (after["image"] * torch.tensor([width, height, 1])[:, None, None])[:, :2].unbind(
        1
    )
    torch.testing.assert_close(red, column.expand_as(red), rtol=0, atol=1e-9)
    torch.testing.assert_close(green, row.expand_as(green), rtol=0, atol=1e-9)


def by_grid_sample(
    batch,
    *,
    flip,
    scale,
    centre,
    align_corners=False,
    label_mode="nearest",
    label_flip=None,
    label_scale=1,
    image_scale=1,
    shift=0.0,
):
    """The same with torch's affine_grid and grid_sample; each keyword is a way to get it wrong."""
    height, width = batch["image"].shape[2:]

    def sample(values, flip, scale, mode, padding, shift=0.0):
        theta = torch.zeros(len(values), 2, 3, dtype=torch.float64)
        theta[:, 0, 0] = (1 - 2 * flip.double()) / scale
        theta[:, 1, 1] = 1 / scale
        theta[:, :, 2] = 2 * (centre + shift) / torch.tensor([width, height]) - 1
        grid = F.affine_grid(theta, list(values.shape), align_corners=align_corners)
        return F.grid_sample(
            values.contiguous(), grid, mode, padding_mode=padding, align_corners=align_corners
        )

    moved = {"image": sample(batch["image"], flip, scale * image_scale, "bilinear", "border")}
    label_flip = flip if label_flip is None else label_flip(flip)
    for name, outside in (("mask", VOID), ("instances", 0)):
        shown = batch[name][:, None].double() - outside  # grid_sample pads with 0
        shown = sample(shown, label_flip, scale * label_scale, label_mode, "zeros", shift)
        moved[name] = shown[:, 0].round().long() + outside
    return moved


WRONG = {
    "corners of pixels on corners of the image": {"align_corners": True},
    "labels not flipped": {"label_flip": torch.zeros_like},
    "image flipped and labels flipped back": {"label_flip": torch.logical_not},
    "labels interpolated": {"label_mode": "bilinear"},
    "labels half a pixel off": {"shift": 0.5},
    "labels a tenth of a pixel off": {"shift": 0.1},
    "labels a little too large": {"label_scale": 1.02},
    "image a little too large": {"image_scale": 1.02},
}


def inverted_for_labels(batch, *, flip, scale, centre):
    labels = resample(batch, flip=flip, scale=1 / scale, centre=centre)
    return labels | {"image": resample(batch, flip=flip, scale=scale, centre=centre)["image"]}


@given(SIDES, SIDES, st.integers(0, 10**6))
def test_image_and_labels_are_where_the_coordinates_say(height, width, seed):
    check_against_coordinates(resample, height, width, seed)


def test_grid_sample_agrees():
    check_against_coordinates(by_grid_sample)
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        batch = {
            "image": torch.rand(16, 4, 31, 20, generator=draw, dtype=torch.float64),
            "mask": torch.randint(0, 9, (16, 31, 20), generator=draw),
            "instances": torch.randint(0, 9, (16, 31, 20), generator=draw),
        }
        window = windows(16, 31, 20, seed)
        ours, theirs = resample(batch, **window), by_grid_sample(batch, **window)
        torch.testing.assert_close(ours["image"], theirs["image"], rtol=0, atol=1e-12)
        assert torch.equal(ours["mask"], theirs["mask"])
        assert torch.equal(ours["instances"], theirs["instances"])


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_resampling_is_caught(name):
    with pytest.raises(AssertionError):
        check_against_coordinates(lambda *a, **k: by_grid_sample(*a, **k, **WRONG[name]))


def test_a_scale_inverted_for_the_labels_is_caught():
    with pytest.raises(AssertionError):
        check_against_coordinates(inverted_for_labels)


@given(SIDES, SIDES, st.integers(0, 10**6))
def test_a_doubled_image_is_the_one_that_torch_makes(height, width, seed):
    """The window shows the lower right quarter of a larger image, and nothing else."""
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)).double()
    framed = F.pad(image, (width, 0, height, 0), mode="constant")
    window = {
        "flip": torch.tensor([False]),
        "scale": torch.tensor([2.0]),
        "centre": torch.tensor([[1.5 * width, 1.5 * height]]),
    }
    ours = resample({"image": framed}, **window)["image"]
    torch_s = F.interpolate(framed, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, torch_s[:, :, 2 * height :, 2 * width :], rtol=0, atol=1e-12)


def still(count, height, width):
    """The arguments that leave a batch as it is."""
    return {
        "flip": torch.zeros(count, dtype=torch.bool),
        "scale": torch.ones(count),
        "centre": torch.tensor([[width / 2, height / 2]]).repeat(count, 1),
    }


@given(SIDES, SIDES, st.integers(-45, 45), st.integers(-45, 45), st.booleans())
def test_flips_and_shifts_by_whole_pixels_are_exact(height, width, right, down, flip):
    draw = torch.Generator().manual_seed(height * width)
    batch = {
        "image": torch.rand(2, 3, height, width, generator=draw),
        "mask": torch.randint(0, 9, (2, height, width), generator=draw),
        "instances": torch.randint(0, 9, (2, height, width), generator=draw),
    }
    window = still(2, height, width)
    window["centre"] += torch.tensor([right, down])
    window["flip"] |= flip
    after = resample(batch, **window)
    assert list(after) == list(batch)

    def cut(values, mode, fill=0):
        width_and_height = (abs(right), abs(right), abs(down), abs(down))
        values = F.pad(values, width_and_height, mode, fill)
        rows = slice(abs(down) + down, abs(down) + down + height)
        columns = slice(abs(right) + right, abs(right) + right + width)
        values = values[..., rows, columns]
        return values.flip(-1) if flip else values

    assert torch.equal(after["image"], cut(batch["image"], "replicate", None))
    assert torch.equal(after["mask"], cut(batch["mask"], "constant", VOID))
    assert torch.equal(after["instances"], cut(batch["instances"], "constant", 0))


@given(SIDES, SIDES, st.integers(0, 10**6))
def test_a_flipped_window_is_the_window_flipped(height, width, seed):
    batch, window = Coordinates(height, width).batch(range(4)), windows(4, height, width, seed)
    there = resample(batch, **window)
    back = resample(batch, **window | {"flip": ~window["flip"]})
    for name, values in there.items():
        torch.testing.assert_close(back[name].flip(-1), values, rtol=0, atol=1e-9)


@given(SIDES, SIDES, st.integers(0, 10**6))
def test_no_label_and_no_value_arises(height, width, seed):
    draw = torch.Generator().manual_seed(seed)
    batch = {
        "image": torch.rand(4, 3, height, width, generator=draw),
        "mask": torch.randint(0, 200, (4, height, width), generator=draw),
        "instances": torch.randint(0, 9, (4, height, width), generator=draw),
    }
    after = resample(batch, **windows(4, height, width, seed))
    for i in range(4):
        assert after["image"][i].amin() >= batch["image"][i].amin()
        assert after["image"][i].amax() <= batch["image"][i].amax()
        for name, outside in (("mask", VOID), ("instances", 0)):
            assert set(after[name][i].unique().tolist()) <= {
                outside,
                *batch[name][i].unique().tolist(),
            }


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6))
def test_the_items_of_a_batch_do_not_meet(height, width, seed):
    draw = torch.Generator().manual_seed(seed)
    batch = {"image": torch.rand(3, 3, height, width, generator=draw)}
    window = windows(3, height, width, seed)
    together = resample(batch, **window)["image"]
    for i in range(3):
        one = {name: value[i : i + 1] for name, value in window.items()}
        assert torch.equal(
            resample({"image": batch["image"][i : i + 1]}, **one)["image"][0], together[i]
        )


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32, torch.float64))
def test_shapes_and_dtypes_stay_and_the_batch_is_not_touched(dtype):
    batch = {"image": torch.rand(2, 3, 9, 70).to(dtype), "mask": torch.ones(2, 9, 70).long()}
    copies = {name: value.clone() for name, value in batch.items()}
    after = resample(batch, **windows(2, 9, 70, 0))
    assert list(after) == ["image", "mask"]
    for name in batch:
        assert after[name].dtype == batch[name].dtype and after[name].shape == batch[name].shape
        assert torch.equal(batch[name], copies[name])
    assert adjust_colour(batch["image"], **factors(2)).dtype == dtype


def test_half_precision_images_are_moved_with_full_precision():
    """In float16 the centre, 2501, would be 2500."""
    values = torch.rand(1, 1, 1, 3000)
    window = still(1, 1, 3000)
    window["centre"] += torch.tensor([1001, 0])
    half, full = (resample({"image": v}, **window)["image"] for v in (values.half(), values))
    assert torch.equal(half, full.half())


def test_a_window_far_away_sees_the_border_and_void():
    for far in (-1e30, 1e30):
        window = still(1, 5, 5) | {"centre": torch.tensor([[far, 2.5]])}
        after = resample(Coordinates(5, 5).batch([0]), **window)
        assert (after["mask"] == VOID).all() and (after["instances"] == 0).all()
        assert (after["image"][:, 0] == (0 if far < 0 else 4 / 5)).all()


# Colour


def factors(count, brightness=1.0, contrast=1.0, saturation=1.0):
    named = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    return {name: torch.full((count,), float(factor)) for name, factor in named.items()}


PILLOW = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("factor", (0.0, 0.4, 1.0, 1.7))
def test_pillow_agrees_to_its_rounding(name, factor):
    for index in range(3):
        image = Toyscape(length=3).batch(torch.tensor([index]))["image"]
        as_bytes = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
        theirs = np.asarray(PILLOW[name](Image.fromarray(as_bytes)).enhance(factor))
        ours = adjust_colour(image, **factors(1, **{name: factor}))[0].permute(1, 2, 0) * 255
        # Pillow rounds the grey, multiplied by up to 1, and cuts the fraction off the result.
        assert np.abs(ours.numpy() - theirs).max() < 1.6


def test_the_colours_of_each_image_change_by_its_own_factors():
    image = torch.rand(3, 3, 8, 8)
    own = {
        name: 0.5 + torch.rand(3, generator=torch.Generator().manual_seed(i))
        for i, name in enumerate(PILLOW)
    }
    together = adjust_colour(image, **own)
    for i in range(3):
        alone = adjust_colour(image[i : i + 1], **{k: v[i : i + 1] for k, v in own.items()})
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)
    assert together.amin() >= 0 and together.amax() <= 1


def test_the_three_steps_come_in_their_order_and_are_clamped_once():
    image = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    value = 1.5 * image
    red, green, blue = value.unbind(1)
    mean = (0.299 * red + 0.587 * green + 0.114 * blue).mean((1, 2))[:, None, None, None]
    value = mean + 0.5 * (value - mean)
    red, green, blue = value.unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    value = (grey + 1.3 * (value - grey)).clamp(0, 1)
    found = adjust_colour(image, **factors(2, 1.5, 0.5, 1.3))
    # The factor 1.3 is float32, as `factors` makes it.
    torch.testing.assert_close(found, value, rtol=0, atol=1e-6)


def test_factors_of_one_keep_an_image_to_the_bit():
    image = torch.rand(4, 3, 16, 16)
    assert torch.equal(adjust_colour(image, **factors(4)), image)


# The random draws


def test_with_all_switched_off_a_batch_is_the_datas_to_the_bit():
    data, indices = Toyscape(length=8), torch.tensor([5, 1, 1])
    off = Augmented(data, flip=False, scale=(1, 1), colour=0)
    assert len(off) == 8
    for name, values in off.batch(indices).items():
        assert torch.equal(values, data.batch(indices)[name])


def test_the_draws_follow_from_torchs_seed_alone():
    data, indices = Augmented(Toyscape(length=8, size=32)), torch.arange(8)

    def drawn(seed):
        torch.manual_seed(seed)
        return data.batch(indices)

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], other["image"])
    assert not torch.equal(again["image"], data.batch(indices)["image"])


def test_one_switch_leaves_the_other_draws_alike():
    def drawn(**kwargs):
        torch.manual_seed(0)
        return Augmented(Toyscape(length=8, size=32), **kwargs).batch(torch.arange(8))

    usual = drawn()
    assert torch.equal(drawn(colour=0)["mask"], usual["mask"])
    unflipped = drawn(flip=False)["instances"]
    same = [torch.equal(a, b) for a, b in zip(unflipped, usual["instances"], strict=True)]
    assert 0 < sum(same) < 8


def estimated(data, count, height, width):
    """The flip, scale and position of the windows of `data`, read off the coordinates it shows.

    Position is the share of the free room left of (above) the window, 0 .. 1.
    """
    batch = data.batch(range(count))
    size = {"x": width, "y": height}
    lines = {"x": batch["image"][:, 0, 0] * width, "y": batch["image"][:, 1, :, 0] * height}
    found = {"flip": lines["x"][:, 0] > lines["x"][:, -1]}
    for axis, line in lines.items():
        step = line.diff(dim=1)
        inverse = step.abs().amax(1)  # the step is 1 / scale except where the border is repeated
        # A pair of neighbours with the whole step lies inside the image, so it is on the line.
        pair = (step.abs() / inverse[:, None] > 1 - 1e-6).float().argmax(1)
        sign = torch.where(found["flip"], -1, 1) if axis == "x" else 1
        place = line.gather(1, pair[:, None])[:, 0] + 0.5
        centre = place - sign * inverse * (pair + 0.5 - size[axis] / 2)
        room = size[axis] * (1 - inverse)
        found[axis] = (centre - size[axis] / 2) / room + 0.5
        found[f"scale_{axis}"] = 1 / inverse
    return found


def distance_from_uniform(values):
    """Kolmogorov's: 1.95 / sqrt(n) is passed by chance once in a thousand times."""
    values = values.double().sort().values
    n = len(values)
    steps = torch.arange(n + 1) / n
    return max((values - steps[:-1]).abs().max(), (steps[1:] - values).abs().max()).item()


@pytest.mark.parametrize("scale", ((0.5, 2.0), (1.0, 3.0), (0.4, 0.9)))
def test_the_draws_are_distributed_as_promised(scale):
    count = 4000
    torch.manual_seed(0)
    found = estimated(Augmented(Coordinates(12, 20), scale=scale, colour=0), count, 12, 20)
    torch.testing.assert_close(found["scale_x"], found["scale_y"], rtol=1e-6, atol=0)
    assert found["flip"].float().mean().item() == pytest.approx(0.5, abs=2 / math.sqrt(count))
    least, greatest = scale
    uniform = {
        "scale": (found["scale_x"] / least).log() / math.log(greatest / least),
        "x": found["x"],
        "y": found["y"],
    }
    for values in uniform.values():
        assert distance_from_uniform(values) < 1.95 / math.sqrt(count)
    draws = torch.stack([found["flip"].double(), *uniform.values()])
    assert (draws.corrcoef() - torch.eye(4)).abs().max() < 4 / math.sqrt(count)


def test_the_factors_of_colour_are_uniform():
    """Of a grey image of 0.4 only the brightness shows; the others need a pattern."""
    count = 4000

    class Patterns:
        def __len__(self):
            return count

        def batch(self, indices):
            image = torch.full((len(indices), 3, 4, 4), 0.4)
            image[:, 0, 0, 0], image[:, :, 3, 3] = 0.6, 0.5
            return {"image": image.double()}

    torch.manual_seed(0)
    image = Augmented(Patterns(), flip=False, scale=(1, 1), colour=0.3).batch(range(count))[
        "image"
    ]
    plain = Patterns().batch([0])["image"]

    def luma(image):
        return (image * torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]).sum(1)

    brightness = luma(image).mean((1, 2)) / luma(plain).mean()
    contrast = (luma(image)[:, 3, 3] - luma(image)[:, 1, 1]) / 0.1 / brightness
    saturation = (image[:, 0, 0, 0] - image[:, 1, 0, 0]) / 0.2 / brightness / contrast
    for factor in (brightness, contrast, saturation):
        assert distance_from_uniform((factor - 0.7) / 0.6) < 1.95 / math.sqrt(count)
    correlation = torch.stack([brightness, contrast, saturation]).corrcoef()
    assert (correlation - torch.eye(3)).abs().max() < 4 / math.sqrt(count)


def test_a_small_image_is_seen_whole_and_an_enlarged_one_fills_the_window():
    torch.manual_seed(0)
    small = Augmented(Coordinates(12, 20), scale=(0.6, 0.6), colour=0).batch(range(64))
    shown = (small["instances"] > 0).sum((1, 2)) / 240
    assert ((shown - 0.36).abs() < 0.06).all()
    assert small["image"][:, :2].amin((0, 2, 3)).tolist() == [0, 0]
    large = Augmented(Coordinates(12, 20), scale=(1.0, 2.0), colour=0).batch(range(64))
    assert (large["instances"] > 0).all()


# With the rest of the course


class Interrupted(Exception):
    pass


def test_a_run_of_fit_is_resumed_to_the_same_numbers(tmp_path):
    data = Augmented(Toyscape(length=8, size=32).prerender())
    steps = 104

    def run(stop_at=None, **kwargs):
        torch.manual_seed(0)
        calls = []
        plain = pixel_loss(F.cross_entropy, ignore_index=VOID)

        def loss(model, batch):
            calls.append(batch)
            if len(calls) == stop_at:
                raise Interrupted
            return plain(model, batch)

        model = nn.Conv2d(3, NUM_CLASSES, 1)
        return fit(model, data, loss, steps, batch_size=2, device="cpu", **kwargs).losses

    whole = run()
    assert math.isfinite(whole[-1]) and run() == whole and run(seed=1) != whole
    with pytest.raises(Interrupted):
        run(stop_at=102, checkpoint=tmp_path / "run.pt")
    assert run(checkpoint=tmp_path / "run.pt") == whole


def test_a_batch_is_quick():
    """Typically 1.2 ms on one thread; the bound leaves room for a busy machine."""
    data, indices = Augmented(Toyscape(length=64).prerender()), torch.arange(8)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        for _ in range(30):
            began = time.process_time()
            data.batch(indices)
            seconds.append(time.process_time() - began)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 3e-3


# Errors


def wrong_batch(**change):
    return Coordinates(8, 8).batch(range(2)) | change


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"mask": torch.ones(2, 8, 8).long()}, "batch: expected image .*; got mask"),
        (wrong_batch(boxes=[torch.zeros(0, 4)] * 2), "batch: .* nothing else; got .*boxes"),
        (wrong_batch(image=torch.rand(3, 8, 8)), r"image: .*; got torch.float32 \[3, 8, 8\]"),
        (wrong_batch(image=torch.ones(2, 3, 8, 8).byte()), "image: .*; got torch.uint8"),
        (wrong_batch(image=torch.rand(0, 3, 8, 8)), r"image: .* not empty; got .* \[0, 3, 8, 8\]"),
        (wrong_batch(image=[1, 2]), r"image: .*; got list \[1, 2\]"),
        (
            wrong_batch(mask=torch.ones(2, 8, 8)),
            r"mask: expected int64 \[2, 8, 8\].* torch.float32",
        ),
        (wrong_batch(mask=torch.ones(2, 9, 8).long()), r"mask: .*; got torch.int64 \[2, 9, 8\]"),
        (wrong_batch(instances=[1, 2]), r"instances: .*; got list \[1, 2\]"),
    ],
)
def test_a_wrong_batch_is_named(batch, message):
    with pytest.raises(ValueError, match=message):
        resample(batch, **still(2, 8, 8))

    class Data(Coordinates):
        def batch(self, indices):
            return batch

    with pytest.raises(ValueError, match=message):
        Augmented(Data(8, 8)).batch(range(2))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("flip", torch.ones(2), r"expected bool \[2\]; got torch.float32 \[2\]"),
        ("flip", True, "expected bool .*; got bool True"),
        ("flip", torch.ones(3).bool(), r"got torch.bool \[3\]"),
        ("scale", 2.0, r"expected floating \[2\]; got float 2.0"),
        ("scale", torch.ones(2).long(), "got torch.int64"),
        ("scale", torch.ones(2, 1), r"got torch.float32 \[2, 1\]"),
        ("scale", torch.tensor([1.0, 0.0]), "above 0; got 0.0"),
        ("scale", torch.tensor([1.0, -2.0]), "above 0; got -2.0"),
        ("scale", torch.tensor([1.0, math.inf]), r"finite numbers; got \[1.0, inf\]"),
        ("centre", torch.ones(2), r"expected floating \[2, 2\]; got torch.float32 \[2\]"),
        ("centre", torch.full((2, 2), math.nan), "finite numbers; got .*nan"),
    ],
)
def test_a_wrong_window_is_named(name, value, message):
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        resample(wrong_batch(), **still(2, 8, 8) | {name: value})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.rand(2, 1, 8, 8), r"3 channels; got torch.float32 \[2, 1, 8, 8\]"),
        (torch.rand(3, 8, 8), r"floating \[B,C,H,W\].*; got torch.float32 \[3, 8, 8\]"),
        (torch.ones(2, 3, 8, 8).byte(), "got torch.uint8"),
        (torch.full((2, 3, 8, 8), 2.0), "values in 0 .. 1; got 2.0 .. 2.0"),
        (torch.full((2, 3, 8, 8), -0.5), "values in 0 .. 1; got -0.5 .. -0.5"),
        (torch.full((2, 3, 8, 8), math.nan), "values in 0 .. 1; got nan"),
    ],
)
def test_a_wrong_image_is_named(image, message):
    with pytest.raises(ValueError, match=f"image: expected .*{message}"):
        adjust_colour(image, **factors(2))


@pytest.mark.parametrize("name", PILLOW)
def test_a_wrong_factor_is_named(name):
    for value, message in ((1.0, "got float 1.0"), (torch.ones(3), r"got torch.float32 \[3\]")):
        with pytest.raises(ValueError, match=rf"{name}: expected floating \[2\]; {message}"):
            adjust_colour(torch.rand(2, 3, 4, 4), **factors(2) | {name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("flip", 0.5, "True or False; got 0.5"),
        ("scale", 2.0, r"0 < least <= greatest; got 2.0"),
        ("scale", (2.0, 0.5), r"got \(2.0, 0.5\)"),
        ("scale", (0.0, 1.0), r"got \(0.0, 1.0\)"),
        ("scale", (0.5, 1.0, 2.0), r"got \(0.5, 1.0, 2.0\)"),
        ("scale", (0.5, math.inf), r"got \(0.5, inf\)"),
        ("scale", ("a", "b"), r"got \('a', 'b'\)"),
        ("colour", 1.5, "0 .. 1; got 1.5"),
        ("colour", -0.1, "0 .. 1; got -0.1"),
        ("colour", True, "0 .. 1; got True"),
        ("colour", "0.2", "0 .. 1; got '0.2'"),
    ],
)
def test_a_wrong_setting_is_named(name, value, message):
    with pytest.raises(ValueError, match=f"^{name}: expected .*{message}"):
        Augmented(Coordinates(8, 8), **{name: value})


@pytest.mark.parametrize("data", ([1, 2], None, nn.Identity()))
def test_data_without_batches_is_named(data):
    with pytest.raises(TypeError, match=f"data: expected .*; got {type(data).__name__}"):
        Augmented(data)
