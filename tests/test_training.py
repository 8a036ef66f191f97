"""fit, evaluate and their helpers on tiny models and random tensors."""

import copy
import io
import itertools
import math
import pickle
import re
import signal
import sys
import threading

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from segcourse import training
from segcourse.metrics import SegmentationMetrics
from segcourse.training import (
    History,
    batch_indices,
    class_weights,
    detect,
    evaluate,
    fit,
    learning_rate,
    pixel_loss,
    predict,
    predict_logits,
    preset,
)

matplotlib.use("Agg")
CROSS_ENTROPY = pixel_loss(F.cross_entropy, ignore_index=255)


class Scenes:
    """Random images whose label is the channel with the largest value."""

    def __init__(self, length=10, side=8, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.image = torch.rand(length, 3, side, side, generator=generator)
        self.mask = self.image.argmax(dim=1)

    def __len__(self):
        return len(self.image)

    def batch(self, indices):
        return {"image": self.image[indices], "mask": self.mask[indices]}


class Items(list):
    """A data set that has items only, no `batch`."""


def tiny(classes=3, hidden=4, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Conv2d(hidden, classes, 1),
        )


def train(model, steps=12, *, loss=CROSS_ENTROPY, data=None, **options):
    options = {"batch_size": 4, "warmup": 3, "device": "cpu"} | options
    return fit(model, data or Scenes(), loss, steps, **options)


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def press_ctrl_c(after_calls, times=1):
    """The loss of CROSS_ENTROPY; its call number `after_calls` comes with Ctrl-C."""
    calls = itertools.count(1)

    def loss(model, batch):
        if next(calls) == after_calls:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return CROSS_ENTROPY(model, batch)

    return loss


def interrupted_then_resumed(path, after_calls=5, **options):
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), loss=press_ctrl_c(after_calls), checkpoint=path, **options)
    model = tiny(seed=99)
    return model, train(model, checkpoint=path, **options)


# --- the same numbers -----------------------------------------------------------------------


def test_two_runs_are_identical():
    models = tiny(), tiny()
    histories = [train(model) for model in models]
    assert equal(values(models[0]), values(models[1]))
    assert histories[0].losses == histories[1].losses


def test_another_seed_gives_other_numbers():
    assert train(tiny(), seed=0).losses != train(tiny(), seed=1).losses


def test_every_step_draws_other_random_numbers():
    drawn = set()

    def loss(model, batch):
        drawn.add(torch.rand(()).item())
        return CROSS_ENTROPY(model, batch)

    train(tiny(), loss=loss)
    assert len(drawn) == 12


def test_seeds_that_differ_above_32_bits_differ():
    assert train(tiny(), seed=0).losses != train(tiny(), seed=2**32).losses


@pytest.mark.parametrize("after_calls", [1, 4, 5, 11])  # 4 * 5 items of 10 end an epoch
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(tmp_path, after_calls):
    whole = tiny()
    history = train(whole)
    model, resumed = interrupted_then_resumed(tmp_path / "run.pt", after_calls)
    assert equal(values(model), values(whole))
    assert resumed.losses == history.losses
    assert resumed.learning_rates == history.learning_rates


def test_without_a_seed_for_each_step_a_resumed_run_differs(tmp_path, monkeypatch):
    torch.manual_seed(0)
    start = torch.get_rng_state()
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    whole = tiny()
    history = train(whole)
    torch.set_rng_state(start)
    model, resumed = interrupted_then_resumed(tmp_path / "run.pt")
    assert resumed.losses[:5] != history.losses[5:]
    assert not equal(values(model), values(whole))


@pytest.mark.parametrize("lost", ["model", "average", "optimizer"])
def test_a_resume_without_one_of_its_parts_differs(tmp_path, lost):
    whole = tiny()
    train(whole)
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), loss=press_ctrl_c(5), checkpoint=path)
    saved = torch.load(path, weights_only=True)
    if lost == "optimizer":
        saved[lost]["state"] = {}
    else:
        saved[lost] = values(tiny())
    torch.save(saved, path)
    model = tiny()
    train(model, checkpoint=path)
    assert not equal(values(model), values(whole))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_trains_and_resumes_to_the_same_numbers(tmp_path, monkeypatch, precision):
    monkeypatch.setattr(training, "_precision", lambda device: precision)
    dtypes = set()
    whole = tiny()
    whole.register_forward_hook(lambda model, images, logits: dtypes.add(logits.dtype))
    history = train(whole, checkpoint=tmp_path / "whole.pt")
    assert dtypes == {precision}
    model, resumed = interrupted_then_resumed(tmp_path / "run.pt", after_calls=7)
    assert equal(values(model), values(whole))
    assert resumed.losses == history.losses
    assert all(value.isfinite().all() for value in values(model).values())
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("run", "whole"))
    assert one["scaler"] == two["scaler"]
    assert ("scale" in one["scaler"]) == (precision == torch.float16)


def test_the_gradient_is_clipped_after_the_scale_of_half_precision_is_taken_off(monkeypatch):
    norms = []
    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        nn.utils, "clip_grad_norm_", lambda *args: norms.append(clip(*args).item()) or clip(*args)
    )
    train(tiny(), 1)
    monkeypatch.setattr(training, "_precision", lambda device: torch.float16)
    train(tiny(), 1)
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_the_callers_random_state_is_untouched(tmp_path):
    before = torch.get_rng_state()
    train(tiny())
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), loss=press_ctrl_c(2))
    assert torch.equal(before, torch.get_rng_state())


def test_a_finished_checkpoint_returns_at_once(tmp_path):
    path = tmp_path / "folder" / "run.pt"
    model = tiny()
    history = train(model, checkpoint=path)
    other = tiny(seed=5)
    again = train(other, loss=lambda model, batch: 1 / 0, checkpoint=path, label="again")
    assert equal(values(model), values(other))
    assert again.losses == history.losses and again.seconds == history.seconds
    assert again.label == "again"


def test_fit_runs_in_a_thread():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(train(tiny())))
    thread.start()
    thread.join()
    assert histories[0].losses == train(tiny()).losses


# --- the loop against torch's own parts -----------------------------------------------------


def test_fit_equals_a_loop_of_torchs_own_schedulers_clipping_and_average():
    steps, warmup, lr, clip, ema = 14, 4, 0.02, 0.3, 0.8
    torch.manual_seed(0)
    data, model = Scenes(), nn.Conv2d(3, 3, 3, padding=1)
    ours = copy.deepcopy(model)
    train(ours, steps, lr=lr, clip=clip, ema=ema, warmup=warmup, weight_decay=0.1, data=data)

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, foreach=False)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup),
        ],
        [warmup],
    )
    average = torch.optim.swa_utils.AveragedModel(
        model, avg_fn=lambda mean, value, n: mean + (1 - min(ema, n / (n + 9))) * (value - mean)
    )
    average.update_parameters(model)  # the first call copies the start and counts as 1
    norms = []
    for step in range(steps):
        batch = data.batch(batch_indices(0, step, 4, len(data)))
        optimizer.zero_grad()
        F.cross_entropy(model(batch["image"]), batch["mask"]).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip).item())
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
    assert max(norms) > clip  # so clipping did something
    for mine, theirs in zip(ours.parameters(), average.module.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_learning_rate_is_a_ramp_and_half_a_cosine():
    rates = [learning_rate(step, 100, 0.5, 20) for step in range(100)]
    assert rates[:20] == pytest.approx([0.5 * k / 20 for k in range(1, 21)])
    assert rates[20:] == pytest.approx([0.5 * math.cos(math.pi * k / 160) ** 2 for k in range(80)])
    assert rates[-1] < 1e-3
    assert learning_rate(0, 10, 0.5, 0) == 0.5
    assert train(tiny(), 9, lr=0.1, warmup=4).learning_rates == [
        learning_rate(step, 9, 0.1, 4) for step in range(9)
    ]


@pytest.mark.parametrize("clip", [0.01, 1e9])
def test_no_gradient_is_longer_than_clip(clip):
    norms = []

    def record(optimizer, args, kwargs):
        gradients = [p.grad.flatten() for g in optimizer.param_groups for p in g["params"]]
        norms.append(torch.cat(gradients).norm().item())

    hook = register_optimizer_step_pre_hook(record)
    try:
        train(tiny(), clip=clip)
    finally:
        hook.remove()
    assert len(norms) == 12
    assert max(norms) <= clip * 1.001
    assert clip < 1 or min(norms) > 0.01  # the first case has shortened every gradient


def test_the_model_ends_as_the_moving_average_of_weights_and_buffers(monkeypatch):
    seen = []
    original = training.update_average

    def record(average, model, ema, step):
        seen.append({name: value.double() for name, value in values(model).items()})
        original(average, model, ema, step)

    monkeypatch.setattr(training, "update_average", record)
    model = tiny()
    by_hand = {name: value.double() for name, value in values(model).items()}
    train(model, 30, ema=0.6)
    for step, now in enumerate(seen):
        decay = min(0.6, (1 + step) / (10 + step))
        by_hand = {name: decay * by_hand[name] + (1 - decay) * now[name] for name in now}
    for name, value in values(model).items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), by_hand[name], rtol=1e-5, atol=1e-6)
            assert not torch.allclose(value.double(), seen[-1][name], rtol=1e-5, atol=1e-6)
        else:
            assert value == 30


def test_shared_weights_are_averaged_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.two = nn.Linear(1, 1)

    model = Shared()
    average = copy.deepcopy(model)
    start = average.one.weight.item()
    with torch.no_grad():
        model.one.weight.fill_(start + 1)
    training.update_average(average, model, ema=0.75, step=1000)
    assert average.two.weight.item() == pytest.approx(start + 0.25)


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 23), data=st.data(), seed=st.integers(0, 2**40))
def test_every_epoch_visits_every_item_once(length, data, seed):
    batch_size = data.draw(st.integers(1, length))
    steps = 3 * length  # 3 * batch_size whole epochs
    order = torch.cat([batch_indices(seed, step, batch_size, length) for step in range(steps)])
    epochs = order.view(3 * batch_size, length)
    assert torch.equal(epochs.sort(dim=1).values, torch.arange(length).expand_as(epochs))


def test_epochs_and_seeds_shuffle_differently():
    first, second = (batch_indices(0, step, 50, 50).tolist() for step in (0, 1))
    assert first != second
    assert first != batch_indices(1, 0, 50, 50).tolist()
    assert first != list(range(50))


def test_fit_learns_the_brightest_channel():
    torch.manual_seed(0)
    model, data = nn.Conv2d(3, 3, 1), Scenes(20)
    before = evaluate(model, data).miou
    history = fit(model, data, CROSS_ENTROPY, 150, lr=0.3, device="cpu")
    assert history.losses[-1] < 0.3 < history.losses[0]
    assert evaluate(model, data).miou > 0.9 > before
    assert not model.training


# --- interrupts, checkpoints and what must not be lost ---------------------------------------


def test_a_second_ctrl_c_stops_at_once_and_writes_nothing_half_done(tmp_path):
    path, model = tmp_path / "run.pt", tiny()
    with pytest.raises(KeyboardInterrupt):
        train(model, loss=press_ctrl_c(4, times=2), checkpoint=path)
    assert not path.exists()
    assert not model.training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_last_step_still_interrupts_and_loses_nothing(tmp_path):
    path, whole, model = tmp_path / "run.pt", tiny(), tiny()
    train(whole)
    with pytest.raises(KeyboardInterrupt):
        train(model, loss=press_ctrl_c(12), checkpoint=path)
    train(model, checkpoint=path)
    assert equal(values(model), values(whole))


def test_ctrl_c_without_a_checkpoint_leaves_a_model_to_use():
    model = tiny()
    with pytest.raises(KeyboardInterrupt):
        train(model, loss=press_ctrl_c(6))
    assert not model.training
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_callers_own_ctrl_c_handler_keeps_its_meaning():
    calls = []
    signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        history = train(tiny(), loss=press_ctrl_c(3))
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert calls == [1] and len(history.losses) == 12


def test_a_failed_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(), loss=press_ctrl_c(5), checkpoint=path)
    before = path.read_bytes()

    def disk_full(state, where):
        where.write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", disk_full)
        with pytest.raises(OSError):
            train(tiny(), checkpoint=path)
    assert path.read_bytes() == before
    whole, model = tiny(), tiny()
    train(whole)
    train(model, checkpoint=path)
    assert equal(values(model), values(whole))
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


class Malicious:
    def __reduce__(self):
        return (exec, ("import segcourse; segcourse.code_ran = True",))


def damaged_files(good: bytes, weight: bytes):
    def zipped(content):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    place = good.index(weight)
    flipped = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "without its last byte": good[:-1],
        "one bit flipped": flipped,
        "text": b"loss 0.5\n",
        "pickled code": pickle.dumps(Malicious()),
        "code in a torch file": zipped({"format": Malicious()}),
        "weights alone": zipped(tiny().state_dict()),
        "a list": zipped([1, 2, 3]),
        "a later format": zipped({"format": training.CHECKPOINT_FORMAT + "0"}),
    }


def test_damaged_and_foreign_checkpoints_are_refused_and_nothing_changes(tmp_path):
    import segcourse

    path = tmp_path / "run.pt"
    model = tiny()
    with pytest.raises(KeyboardInterrupt):
        train(model, loss=press_ctrl_c(5), checkpoint=path)
    saved = torch.load(path, weights_only=True)
    weight = saved["model"]["0.weight"].numpy().tobytes()
    model = tiny().train()
    before, random_state = values(model), torch.get_rng_state()
    for name, content in damaged_files(path.read_bytes(), weight).items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match="run.pt is not a checkpoint") as caught:
            train(model, checkpoint=path)
        assert "Nothing was changed" in str(caught.value), name
        assert path.read_bytes() == content, name
        assert equal(values(model), before) and model.training, name
    assert not hasattr(segcourse, "code_ran")
    assert torch.equal(random_state, torch.get_rng_state())
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 13}, "steps was 12 and is now 13"),
        ({"batch_size": 5}, "batch_size was 4 and is now 5"),
        ({"lr": 0.1, "seed": 3}, "lr was 0.01 and is now 0.1; seed was 0 and is now 3"),
        ({"weight_decay": 0.0}, "weight_decay was 0.01 and is now 0.0"),
        ({"warmup": 2}, "warmup was 3 and is now 2"),
        ({"clip": 1.0}, "clip was 5.0 and is now 1.0"),
        ({"ema": 0.5}, "ema was 0.98 and is now 0.5"),
        ({"data": Scenes(11)}, "items was 10 and is now 11"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path, options, message):
    path = tmp_path / "run.pt"
    train(tiny(), checkpoint=path)
    content, model = path.read_bytes(), tiny(seed=1)
    before = values(model)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        train(model, checkpoint=path, **options)
    assert str(path) in str(caught.value)
    assert equal(values(model), before) and path.read_bytes() == content


def test_a_checkpoint_of_another_precision_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    train(tiny(), checkpoint=path)
    monkeypatch.setattr(training, "_precision", lambda device: torch.float16)
    with pytest.raises(ValueError, match="precision was torch.float32 and is now torch.float16"):
        train(tiny(), checkpoint=path)


def frozen_first_layer():
    model = tiny()
    model[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny(classes=7), "4.weight was [3, 4, 1, 1] and is now [7, 4, 1, 1]"),
        (lambda: tiny()[:4], "4.weight was [3, 4, 1, 1] and is now absent"),
        (lambda: tiny().append(nn.BatchNorm2d(3)), "5.running_mean was absent and is now [3]"),
        (frozen_first_layer, "frozen was [] and is now ['0.weight', '0.bias']"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path, make, message):
    path = tmp_path / "run.pt"
    train(tiny(), checkpoint=path)
    content, model = path.read_bytes(), make()
    before = values(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        train(model, checkpoint=path)
    assert equal(values(model), before) and path.read_bytes() == content


def fail_at(call, factor):
    calls = itertools.count(1)

    def loss(model, batch):
        value = CROSS_ENTROPY(model, batch)
        return value * factor if next(calls) == call else value

    return loss


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_the_last_checkpoint_stays(
    tmp_path, monkeypatch, factor
):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 4)
    path, model, whole = tmp_path / "run.pt", tiny(), tiny()
    with pytest.raises(FloatingPointError, match=f"loss: {factor} in step 9.*learning rate"):
        train(model, loss=fail_at(10, factor), checkpoint=path)
    assert all(value.isfinite().all() for value in values(model).values())
    assert len(torch.load(path, weights_only=True)["history"]["losses"]) == 8
    train(model, checkpoint=path)
    train(whole)
    assert equal(values(model), values(whole))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_take_it():
    model = tiny()

    def root_at_zero(model, batch):
        return (model(batch["image"]) * 0).sum().sqrt()

    with pytest.raises(FloatingPointError, match="gradient: nan in step 0"):
        train(model, loss=root_at_zero)
    assert all(value.isfinite().all() for value in values(model).values())


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: must be a whole number of at least 1; found 0"),
        ({"steps": 2.5}, "steps: must be a whole number"),
        ({"batch_size": 0}, "batch_size: must be"),
        ({"batch_size": 11}, "batch_size: 11 is more than the 10 items of data"),
        ({"data": Items()}, "data: has no items"),
        ({"model": nn.ReLU()}, "model: has no parameters to train"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"clip": float("nan")}, "clip=nan"),
        ({"loss": lambda model, batch: model(batch["image"])}, "0-d tensor; found shape [4, 3"),
        ({"loss": lambda model, batch: 0.5}, "0-d tensor; found float"),
        ({"loss": lambda model, batch: torch.tensor(0.5)}, "does not depend on a parameter"),
    ],
)
def test_bad_input_is_named_and_leaves_the_model_alone(options, message):
    options = {"model": tiny(), "data": Scenes(), "loss": CROSS_ENTROPY, "steps": 3} | options
    options = {"batch_size": 4, "device": "cpu"} | options
    before = values(options["model"])
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(**options)
    assert equal(values(options["model"]), before)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 8, 8), "mask: must be int64; found torch.float32"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), "mask: must be int64"),
        (torch.zeros(2, 8, 9, dtype=torch.int64), "found [2, 8, 9] for [2, 3, 8, 8]"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), "found [2, 1, 8, 8]"),
        (torch.full((2, 8, 8), 3), "labels must lie in 0..2 or be 255 (void); found 3"),
        (torch.full((2, 8, 8), -1), "found -1"),
    ],
)
def test_a_wrong_mask_is_named(mask, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CROSS_ENTROPY(tiny(), {"image": torch.rand(2, 3, 8, 8), "mask": mask})


def test_pixel_loss_is_the_function_of_float32_logits_and_mask():
    model, batch = tiny().eval(), Scenes().batch(torch.arange(4))
    batch["mask"][0] = 255
    weight = torch.tensor([1.0, 2.0, 3.0])
    loss = pixel_loss(F.cross_entropy, weight=weight, ignore_index=255)
    by_hand = F.cross_entropy(model(batch["image"]), batch["mask"], weight, ignore_index=255)
    assert torch.equal(loss(model, batch), by_hand)
    half = {"image": batch["image"].bfloat16(), "mask": batch["mask"]}
    assert loss(copy.deepcopy(model).bfloat16(), half).dtype == torch.float32


# --- data -----------------------------------------------------------------------------------


def test_what_has_one_row_per_object_stays_a_list_even_when_the_counts_agree():
    scenes = Scenes(6)
    items = Items(
        {"image": scenes.image[i], "mask": scenes.mask[i], "boxes": torch.zeros(n, 4), "name": n}
        for i, n in enumerate([2, 2, 2, 2, 0, 3])
    )
    seen = []

    def loss(model, batch):
        seen.append(batch)
        return CROSS_ENTROPY(model, batch)

    history = train(tiny(), 3, data=items, loss=loss)
    for batch in seen:
        assert batch["image"].shape == (4, 3, 8, 8) and batch["mask"].shape == (4, 8, 8)
        assert [len(boxes) for boxes in batch["boxes"]] == batch["name"]
        assert isinstance(batch["boxes"], list)
    assert history.losses == train(tiny(), 3, data=scenes).losses


def test_lists_of_a_batch_method_stay_lists_and_their_tensors_move():
    class Detection(Scenes):
        def batch(self, indices):
            return super().batch(indices) | {"boxes": [torch.zeros(int(i), 4) for i in indices]}

    batch = training._fetch(Detection(), torch.tensor([0, 3]), torch.device("meta"))
    assert [boxes.shape for boxes in batch["boxes"]] == [(0, 4), (3, 4)]
    assert {value.device.type for value in (batch["image"], *batch["boxes"])} == {"meta"}


def test_items_of_different_size_are_named():
    items = Items({"image": torch.rand(3, side, side)} for side in (8, 9))
    with pytest.raises(ValueError, match="data: items differ in the shape of 'image'"):
        train(tiny(), data=items, batch_size=2)


# --- class weights --------------------------------------------------------------------------


def masks(*rows):
    mask = torch.tensor(rows)[:, None]
    return Items({"image": torch.zeros(3, *m.shape), "mask": m} for m in mask)


def test_class_weights_are_one_over_the_root_of_the_share_with_mean_one():
    data = Scenes(37)
    data.mask[0] = 255
    share = np.bincount(data.mask[1:].numpy().ravel(), minlength=3) / data.mask[1:].numel()
    weights = class_weights(data, 3, batch_size=5)
    assert weights.dtype == torch.float32
    expected = share**-0.5 / (share**-0.5).mean()
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_a_class_that_is_absent_weighs_as_much_as_the_rarest():
    weights = class_weights(masks([0] * 32 + [1] * 8 + [3] * 2 + [255]), 4)
    torch.testing.assert_close(weights, torch.tensor([1, 2, 4, 4]) / 2.75)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Items(), "data: has no items"),
        (masks([255, 255]), "every pixel of every mask is void"),
        (masks([0, 5]), "labels must lie in 0..2 or be 255 (void); found 5"),
        (masks([0.0, 1.0]), "mask: must be int64"),
    ],
)
def test_class_weights_refuse_bad_masks(data, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        class_weights(data, 3)


# --- evaluate and predict -------------------------------------------------------------------


def test_evaluate_is_the_metric_of_all_predictions_in_eval_mode():
    model, data = tiny().train(), Scenes(11)
    data.mask[3, :4] = 255
    before = values(model)
    scores = evaluate(model, data, batch_size=4)
    assert equal(values(model), before) and model.training
    model.eval()
    by_hand = SegmentationMetrics(3)
    labels = model(data.image).argmax(1)
    by_hand.update(labels, data.mask)
    assert scores == by_hand.compute()
    kept = data.mask != 255
    correct = (labels == data.mask)[kept].double().mean().item()
    assert scores.pixel_accuracy == pytest.approx(correct)
    assert evaluate(model, data, batch_size=50) == scores and not model.training


def test_evaluate_gives_the_mode_back_after_an_error():
    model = tiny().train()
    with pytest.raises(RuntimeError):
        evaluate(model, Items([{"image": torch.rand(5, 8, 8), "mask": torch.zeros(8, 8)}]))
    assert model.training and torch.is_grad_enabled()


def test_evaluate_scores_a_model_without_parameters():
    assert evaluate(nn.Identity(), Scenes()).miou == 1.0  # the images are their own logits


def test_evaluate_refuses_empty_data():
    with pytest.raises(ValueError, match="data: has no items"):
        evaluate(tiny(), Items())


def test_predict_gives_labels_that_can_be_edited():
    model, images = tiny().train(), Scenes().image
    labels = predict(model, images)
    assert model.training
    assert torch.equal(labels, model.eval()(images).argmax(1))
    labels[0] = 255


def test_predicted_logits_are_those_of_the_model_batch_by_batch():
    model, images = tiny().train(), Scenes().image
    logits = predict_logits(model, images, batch_size=3)
    assert model.training
    torch.testing.assert_close(logits, model.eval()(images))
    assert not logits.requires_grad
    assert torch.equal(logits.argmax(1), predict(model, images))


# --- presets --------------------------------------------------------------------------------


def scaled(budget):
    return budget.steps(1000), budget.steps(10), budget.width(8), budget.length(2000)


@pytest.mark.parametrize(
    ("name", "device", "size", "batch_size", "numbers"),
    [
        ("smoke", "cpu", 64, 8, (20, 4, 8, 64)),
        ("cpu", "cpu", 64, 8, (1000, 10, 8, 2000)),
        ("gpu", "cuda", 128, 16, (2000, 20, 32, 8000)),
    ],
)
def test_the_environment_names_the_preset(monkeypatch, name, device, size, batch_size, numbers):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("SEGCOURSE_PRESET", name)
    budget = preset()
    assert (budget.name, budget.device.type) == (name, device)
    assert (budget.size, budget.batch_size) == (size, batch_size)
    assert scaled(budget) == numbers


@pytest.mark.parametrize(("has_gpu", "name"), [(True, "gpu"), (False, "cpu")])
def test_without_the_variable_the_device_decides(monkeypatch, has_gpu, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.delenv("SEGCOURSE_PRESET", raising=False)
    assert preset().name == name


@pytest.mark.parametrize("name", ["GPU", "fast"])
def test_an_unknown_preset_is_named(monkeypatch, name):
    monkeypatch.setenv("SEGCOURSE_PRESET", name)
    with pytest.raises(ValueError, match=f"SEGCOURSE_PRESET: .*found '{name}'"):
        preset()


def test_the_gpu_preset_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SEGCOURSE_PRESET", "gpu")
    with pytest.raises(ValueError, match="finds no GPU"):
        preset()


# --- what is shown --------------------------------------------------------------------------


def test_without_a_bar_one_tidy_line_is_printed_and_nothing_on_stderr(monkeypatch, capfd):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    train(tiny(), label="FCN-8s")
    out, err = capfd.readouterr()
    line = r"FCN-8s: 12 steps of batch 4 in \d+\.\d s, loss \d\.\d\d -> \d\.\d\d\n"
    assert re.fullmatch(line, out)
    assert err == ""


def test_the_line_of_a_resumed_run_says_so(tmp_path, capsys):
    interrupted_then_resumed(tmp_path / "run.pt", after_calls=5)
    out, err = capsys.readouterr()
    assert out.startswith("Sequential: 12 steps of batch 4 (resumed at step 5) in ")
    assert out.count("\n") == 1 and err == ""


@pytest.mark.parametrize(("variable", "shown"), [("", True), ("0", True), ("1", False)])
def test_a_terminal_shows_a_bar_unless_it_is_disabled(monkeypatch, variable, shown):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TQDM_DISABLE", variable)
    train(tiny(), label="U-Net")
    text = terminal.getvalue()
    assert ("12/12" in text) == shown
    assert ("steps of batch" in text) != shown


def test_smoothing_starts_at_the_first_loss_and_keeps_a_constant():
    assert History("m", 8, losses=[2.0] * 50).smoothed() == pytest.approx([2.0] * 50)
    smooth = History("m", 8, losses=[4.0, 0.0]).smoothed()
    assert smooth == pytest.approx([4.0, 4.0 * 0.95 / 1.95])


def test_a_history_draws_its_losses_and_leaves_no_figure_open():
    import matplotlib.pyplot as plt

    history = train(tiny())
    figure = history.plot()
    raw, smooth = (line.get_ydata() for line in figure.axes[0].lines)
    assert list(raw) == history.losses
    assert smooth[-1] == pytest.approx(sum(history.losses[-3:]) / 3)  # a mean of a quarter
    assert plt.get_fignums() == []


def test_settings_from_numpy_resume_too(tmp_path):
    path = tmp_path / "run.pt"
    options = dict(checkpoint=path, lr=np.float64(0.01), ema=np.float32(0.9), seed=np.int64(3))
    first = train(tiny(), **options)
    assert train(tiny(), **options).losses == first.losses


@pytest.mark.parametrize("part", ["run", "history", *training.PARTS])
def test_a_checkpoint_without_a_part_is_refused_and_the_model_stays(tmp_path, part):
    path = tmp_path / "run.pt"
    train(tiny(), checkpoint=path)
    saved = torch.load(path, weights_only=True)
    del saved[part]
    torch.save(saved, path)
    model = tiny(seed=1)
    before = values(model)
    with pytest.raises(ValueError, match=f"run.pt.*lacks {part}"):
        train(model, checkpoint=path)
    assert equal(values(model), before)


def test_half_precision_does_not_skip_steps_for_ever(monkeypatch):
    monkeypatch.setattr(training, "_precision", lambda device: torch.float16)

    def endless(model, batch):
        return (model(batch["image"]).float().sum() * 0).sqrt()

    with pytest.raises(FloatingPointError, match="gradient"):
        train(tiny(), 60, loss=endless)


class Finder(nn.Module):
    """Finds as many objects in an image as its first pixel says."""

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        return [
            {"boxes": torch.zeros(int(image[0, 0, 0]), 4), "segments": [{"batch": len(images)}]}
            for image in images
        ]


def test_detect_gives_what_is_found_in_each_image_batch_by_batch():
    model = Finder().train()
    found = detect(model, torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2), batch_size=2)
    assert [len(image["boxes"]) for image in found] == [0, 1, 2, 3, 4]
    assert [image["segments"][0]["batch"] for image in found] == [2, 2, 2, 2, 1]
    assert model.training
    with pytest.raises(ValueError, match=r"images: expected \[B,3,H,W\] with B >= 1"):
        detect(model, torch.zeros(3, 2, 2))


def test_predict_refuses_a_single_image():
    with pytest.raises(ValueError, match=r"images: expected \[B,3,H,W\].*\[3, 8, 8\]"):
        predict(nn.Conv2d(3, 3, 1), torch.rand(3, 8, 8))
