"""The data set: the same scene everywhere, exact truth, and no way to mix up the splits."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.utils.data import DataLoader

from segcourse import rendering, toyscape
from segcourse.toyscape import Toyscape, detection_targets, panoptic_ids, void_border


@pytest.fixture
def threads():
    """Lets a test change the number of threads; puts it back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def same_bytes(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("size", "count"), [(33, 40), (64, 60), (128, 20)])
def test_a_scene_is_the_same_alone_in_any_batch_and_with_any_number_of_threads(
    size, count, threads
):
    scenes = Toyscape(size=size, length=100, difficulty=0.6, seed=7)
    threads(1)
    together = scenes.render(torch.arange(count))
    for workers, batch in ((1, 1), (1, 7), (2, 1), (2, 7), (2, count), (3, count)):
        threads(workers)
        parts = [scenes.render(part) for part in torch.arange(count).split(batch)]
        assert same_bytes(together, [torch.cat(p) for p in zip(*parts, strict=True)])
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    assert same_bytes(scenes.render(shuffled), [x[shuffled] for x in together])


def test_workers_and_the_main_process_draw_the_same_items():
    scenes = Toyscape(length=6)
    for index, item in enumerate(DataLoader(scenes, batch_size=None, num_workers=2)):
        for name, value in scenes[index].items():
            assert torch.equal(item[name], value), name


def test_length_does_not_change_a_scene_but_seed_split_and_difficulty_do():
    index = torch.tensor([5])
    first = Toyscape(length=10).render(index)[0]
    assert torch.equal(first, Toyscape(length=9999).render(index)[0])
    for other in (Toyscape(seed=1), Toyscape(split="val"), Toyscape(difficulty=0.26)):
        assert not torch.equal(first, other.render(index)[0]), other


def test_star_size_makes_stars_taller_and_nothing_else():
    indices = torch.arange(400)
    usual, large = (
        Toyscape(size=96, star_size=factor).batch(indices)["mask"] for factor in (1.0, 1.5)
    )
    star = toyscape.CLASSES.index("star")
    was_star, is_star = usual == star, large == star
    assert 1.8 < is_star.sum() / was_star.sum() < 2.5  # 1.5 squared
    others = ~(was_star | is_star)
    assert torch.equal(usual[others], large[others])


def test_size_keeps_the_layout():
    small, large = (Toyscape(size=s).batch(torch.arange(40))["mask"] for s in (64, 256))
    agree = (small == large[:, 2::4, 2::4]).float().mean()
    assert agree > 0.93, f"only {agree:.3f} of the pixels keep their class"


def test_no_two_scenes_of_the_three_splits_share_a_stream_of_random_numbers():
    tables = [
        rendering._uniforms(seed, split, torch.arange(3000), 4)
        for seed in (0, 1, 2**23 - 1)
        for split in range(3)
    ]
    rows = torch.cat(tables)
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_the_random_numbers_are_uniform_and_uncorrelated():
    u = rendering._uniforms(0, 0, torch.arange(20000), 12)
    assert u.min() >= 0 and u.max() < 1
    histogram = torch.histc(u, 20, 0, 1) / u.numel()
    assert (histogram - 0.05).abs().max() < 0.0022  # five standard deviations
    correlation = torch.corrcoef(u.T) - torch.eye(12)
    assert correlation.abs().max() < 0.03
    neighbours = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1]
    assert abs(neighbours) < 0.03


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(32, 140),
    index=st.integers(0, 10**6),
    difficulty=st.floats(0, 1),
    split=st.sampled_from(toyscape.SPLITS),
)
def test_the_parts_of_an_item_agree_with_each_other(size, index, difficulty, split):
    item = Toyscape(split, size, 10**6 + 1, difficulty)[index]
    image, mask, instances = item["image"], item["mask"], item["instances"]
    assert image.shape == (3, size, size) and image.dtype == torch.float32
    assert 0 <= image.min() and image.max() <= 1
    assert mask.shape == instances.shape == (size, size)
    assert mask.dtype == instances.dtype == item["labels"].dtype == torch.int64
    assert 0 <= mask.min() and mask.max() < toyscape.NUM_CLASSES

    count = len(item["labels"])
    assert instances.unique().tolist() in (list(range(count + 1)), list(range(1, count + 1)))
    assert item["masks"].shape == (count, size, size) and item["masks"].dtype == torch.bool
    assert torch.equal(instances > 0, mask >= len(toyscape.STUFF))
    if count:
        assert torch.equal(instances > 0, item["masks"].any(0))
    for number, (box, label, visible) in enumerate(
        zip(item["boxes"], item["labels"], item["masks"], strict=True), start=1
    ):
        assert torch.equal(visible, instances == number)
        assert (mask[visible] == label).all()
        y, x = ndimage.find_objects(visible.numpy().astype(int))[0]
        assert box.tolist() == [x.start, y.start, x.stop, y.stop]


@pytest.mark.parametrize("size", [64, 100, 128])
def test_every_number_of_a_scene_is_the_same_alone_and_in_a_batch(size):
    """Exact, before rounding to bytes could hide a difference."""
    together = rendering._sample(5, 0, torch.arange(200), size, 0.4, 1.0)
    for i in range(0, 200, 3):
        alone = rendering._sample(5, 0, torch.tensor([i]), size, 0.4, 1.0)
        for part, whole in ((alone, together), (alone.objects, together.objects)):
            for field in fields(part):
                if field.name != "objects":
                    one, many = getattr(part, field.name)[0], getattr(whole, field.name)[i]
                    assert torch.equal(one, many), field.name


def painted_slowly(scenes, size):
    """Pictures and codes by the plain painter's algorithm: each object over the whole canvas."""
    parts = rendering._sample(0, 0, scenes, size, 0.25, 1.0)
    rgb, label = rendering._stuff(parts, size)
    canvas = rgb.shape[-1]
    facts = rendering._facts(parts.objects)
    for scene in range(len(scenes)):
        for number in range(rendering.OBJECTS):  # the deepest first
            if not parts.objects.present[scene, number]:
                continue
            layer = torch.empty(1, 4, canvas * canvas)
            codes = torch.empty(1, canvas * canvas, dtype=torch.uint8)
            shape = rendering._OUTLINES[parts.objects.shape[scene, number]]
            fact, corner = facts[scene, number][None], torch.zeros(1, 2)
            rendering._paint(shape, fact, corner, canvas, layer, codes)
            keep, colour = layer[0, :1].view(1, canvas, canvas), layer[0, 1:].view_as(rgb[scene])
            rgb[scene] = rgb[scene] * keep + colour
            mine = codes[0].view(canvas, canvas)
            label[scene] = torch.where(mine > 0, mine, label[scene])
    return rendering._camera(rgb, parts, size), label[:, :size, :size]


@pytest.mark.parametrize("size", [64, 100, 128])
def test_tiles_show_what_a_plain_painter_paints(size):
    """Every object in full, the nearer over the deeper, in the picture as in the truth."""
    scenes = torch.arange(12)
    pictures, codes = Toyscape(size=size).render(scenes)
    slow_pictures, slow_codes = painted_slowly(scenes, size)
    assert torch.equal(codes, slow_codes)
    assert (pictures.int() - slow_pictures.int()).abs().max() <= 1  # last bits of other sums


def test_instances_are_numbered_from_the_deepest_on():
    scenes = Toyscape()
    _, codes = scenes.render(torch.arange(30))
    batch = scenes.batch(torch.arange(30))
    for numbers, instances in zip((codes >> 4).long(), batch["instances"], strict=True):
        raw = [n for n in numbers.unique().tolist() if n]
        for name, number in enumerate(raw, start=1):
            assert torch.equal(instances == name, numbers == number)


def test_the_dial_moves_noise_and_size():
    easy, hard = (rendering._sample(0, 0, torch.arange(300), 64, d, 1.0) for d in (0.0, 1.0))
    assert hard.noise.mean() > 4 * easy.noise.mean()
    assert hard.objects.height.mean() < 0.9 * easy.objects.height.mean()
    assert (hard.objects.height <= easy.objects.height + 1e-4).all()


def test_scenes_cut_their_textures_at_different_places():
    windows = rendering._sample(0, 0, torch.arange(50), 64, 0.25, 1.0).windows
    for column in windows.T:
        assert len(column.unique()) > 45


def test_a_callers_autocast_and_default_device_change_nothing():
    plain = Toyscape(size=40).render(torch.arange(5))
    rendering._atlases.cache_clear()
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        indices = torch.arange(5, device="cpu")
        assert same_bytes(plain, Toyscape(size=40).render(indices))


def test_shapes_have_the_classes_of_their_names():
    classes = [toyscape.CLASSES[c] for c in rendering._CLASS_OF.tolist()]
    assert classes == ["tree", "tree", "car", "ball", "ring", "pole", "star"]


def test_every_class_occurs_and_shares_are_those_of_the_text():
    batch = Toyscape().batch(torch.arange(500))
    share = torch.bincount(batch["mask"].flatten(), minlength=10) / batch["mask"].numel()
    by_name = dict(zip(toyscape.CLASSES, share.tolist(), strict=True))
    assert by_name["star"] == min(by_name.values()) and 0.001 < by_name["star"] < 0.006
    assert by_name["grass"] == max(by_name.values())
    assert sum(by_name[name] for name in toyscape.STUFF) > 0.8


def test_difficulty_takes_the_hue_away():
    """A classifier of mean hue alone gets worse as the dial is turned."""

    def hue_accuracy(difficulty):
        hues, labels = [], []
        scenes = rendering._sample(0, 0, torch.arange(400), 64, difficulty, 1.0).objects
        for colour, shape in zip(scenes.colour.flatten(0, 1), scenes.shape.flatten(), strict=True):
            high, low = colour.max(), colour.min()
            r, g, b = ((colour - low) / (high - low)).tolist()
            hues.append(np.arctan2(np.sqrt(3) * (g - b), 2 * r - g - b))
            labels.append(int(shape))
        hues, labels = np.array(hues), np.array(labels)
        angle = np.abs((hues[:, None] - hues[None, :] + np.pi) % (2 * np.pi) - np.pi)
        np.fill_diagonal(angle, np.inf)
        return (labels[angle.argmin(1)] == labels).mean()

    easy, medium, hard = (hue_accuracy(d) for d in (0.0, 0.25, 1.0))
    assert easy > medium + 0.1 > hard + 0.2, (easy, medium, hard)


def test_water_has_the_colours_of_the_sky_so_colour_alone_cannot_tell_them_apart():
    batch = Toyscape().batch(torch.arange(300))
    image, mask = batch["image"].movedim(1, -1), batch["mask"]
    water, sky = (mask == toyscape.CLASSES.index(n) for n in ("water", "sky"))
    closer = 0
    scenes = [i for i in range(300) if water[i].sum() > 60 and sky[i].sum() > 60]
    for i in scenes:
        mean = {n: image[i][mask[i] == n].mean(0) for n in mask[i].unique().tolist()}
        to_sky = (mean[3] - mean[0]).norm()
        closer += to_sky < (mean[3] - mean.get(1, mean[0] + 9)).norm()
    assert closer > 0.7 * len(scenes)


def test_prerendered_batches_equal_batches_drawn_on_demand():
    scenes = Toyscape(length=300)
    kept = scenes.prerender()
    assert len(kept) == 300 and kept.images.dtype == torch.uint8
    indices = torch.tensor([299, 0, 17])
    for name, value in scenes.batch(indices).items():
        assert torch.equal(kept.batch(indices)[name], value), name
    assert torch.equal(kept[17]["mask"], scenes[17]["mask"])


def test_iterating_a_data_set_ends():
    assert sum(1 for _ in Toyscape(length=3)) == 3
    assert sum(1 for _ in Toyscape(length=3).prerender()) == 3


def test_detection_targets_are_the_objects_of_the_items():
    data = Toyscape("val", length=20)
    batch = data.batch(torch.arange(20))
    targets = detection_targets(batch["mask"], batch["instances"])
    assert len(targets) == 20
    for target, mask, i in zip(targets, batch["mask"], range(20), strict=True):
        item = data[i]
        assert torch.equal(target["boxes"], item["boxes"])
        assert torch.equal(target["masks"], item["masks"])
        names = [toyscape.THINGS[label - 1] for label in target["labels"]]
        assert names == [toyscape.CLASSES[label] for label in item["labels"]]
        assert target["labels"].dtype == torch.int64 and torch.equal(target["mask"], mask)


def test_detection_targets_of_missing_numbers_and_of_no_objects():
    mask = torch.zeros(2, 8, 9, dtype=torch.int64)
    instances = torch.zeros_like(mask)
    mask[0, 2:4, 5:9], instances[0, 2:4, 5:9] = 4, 7
    mask[0, 7, 0], instances[0, 7, 0] = 9, 2
    first, second = detection_targets(mask, instances)
    assert first["boxes"].tolist() == [[0, 7, 1, 8], [5, 2, 9, 4]]
    assert first["labels"].tolist() == [6, 1] and first["masks"].sum() == 9
    assert second["boxes"].shape == (0, 4) and second["masks"].shape == (0, 8, 9)
    assert second["labels"].shape == (0,) and second["labels"].dtype == torch.int64
    (alone,) = detection_targets(mask[1:], instances[1:])
    assert alone["boxes"].shape == (0, 4) and alone["masks"].shape == (0, 8, 9)


def test_panoptic_ids_name_every_segment_once():
    item = Toyscape()[3]
    ids = panoptic_ids(item["mask"], item["instances"])
    assert torch.equal(ids // 1000, item["mask"]) and torch.equal(ids % 1000, item["instances"])
    void = torch.full((2, 2), toyscape.VOID)
    assert panoptic_ids(void, torch.zeros_like(void)).unique().tolist() == [toyscape.VOID]


@pytest.mark.parametrize("width", [1, 2])
def test_void_border_is_what_lies_near_another_class(width):
    mask = Toyscape()[11]["mask"]
    expected = torch.zeros_like(mask, dtype=torch.bool)
    for dy in range(-width, width + 1):
        for dx in range(-width, width + 1):
            shifted = ndimage.shift(mask.numpy(), (dy, dx), order=0, mode="nearest")
            inside = torch.ones_like(expected)
            if dy:
                inside[: max(dy, 0)] = inside[len(mask) + min(dy, 0) :] = False
            if dx:
                inside[:, : max(dx, 0)] = inside[:, len(mask) + min(dx, 0) :] = False
            expected |= inside & (torch.from_numpy(shifted) != mask)
    bordered = void_border(mask, width)
    assert torch.equal(bordered == toyscape.VOID, expected)
    assert torch.equal(bordered[~expected], mask[~expected])
    assert torch.equal(void_border(mask[None], width)[0], bordered)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"split": "training"}, ValueError, "split.*train, val, test.*'training'"),
        ({"size": 31}, ValueError, "size.*32.*31"),
        ({"size": 64.0}, TypeError, "size.*int.*float"),
        ({"length": 0}, ValueError, "length.*1.*0"),
        ({"difficulty": 1.5}, ValueError, "difficulty.*0 .. 1.*1.5"),
        ({"difficulty": float("nan")}, ValueError, "difficulty"),
        ({"seed": -1}, ValueError, "seed.*-1"),
        ({"size": 513}, ValueError, "size.*512.*513"),
        ({"difficulty": "hard"}, ValueError, "difficulty.*'hard'"),
        ({"star_size": 0.5}, ValueError, "star_size.*1 .. 3.*0.5"),
    ],
)
def test_bad_arguments_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        Toyscape(**arguments)


@pytest.mark.parametrize("prerendered", [False, True])
def test_bad_indices_are_named(prerendered):
    scenes = Toyscape(length=5)
    scenes = scenes.prerender() if prerendered else scenes
    for indices in (torch.tensor([2, 5]), torch.tensor([-1])):
        with pytest.raises(IndexError, match="indices: expected 0 .. 4; got"):
            scenes.batch(indices)
    for indices in (torch.tensor([], dtype=torch.int64), torch.ones(5, dtype=torch.bool)):
        with pytest.raises(ValueError, match="indices: expected a non-empty int64 tensor"):
            scenes.batch(indices)
    with pytest.raises(TypeError, match="indices.*list"):
        scenes.batch([0, 1])
    with pytest.raises(TypeError):
        scenes[1.7]
    with pytest.raises(IndexError):
        scenes[5]


def test_bad_masks_are_named():
    mask = torch.zeros(4, 4, dtype=torch.int64)
    for width in (0, 1.5):
        with pytest.raises(ValueError, match=f"width.*{width}"):
            void_border(mask, width)
    for bad in (mask.float(), mask.bool(), mask[0]):
        with pytest.raises(ValueError, match="mask: expected int64"):
            void_border(bad)
    with pytest.raises(ValueError, match=r"instances.*\[4, 4\].*\[3, 4\]"):
        panoptic_ids(mask, mask[:3])
    with pytest.raises(ValueError, match="mask.*uint8"):
        panoptic_ids(mask.byte(), mask)
    with pytest.raises(ValueError, match="instances: expected 0 .. 999; got 0 .. 1500"):
        panoptic_ids(mask, mask.index_fill(0, torch.tensor([1]), 1500))
