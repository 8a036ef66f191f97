"""Train a model for a number of steps and score it. `fit` is the training loop of the course.

Read `fit` first: the loop in its middle is one screenful, and each idea in it is a line or a
small function of this file. What a step does depends on `(seed, step)` alone, never on what ran
before it, so a run that stopped goes on from its checkpoint to the same numbers.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import itertools
import math
import os
import signal
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from segcourse.metrics import Scores, SegmentationMetrics, check_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VOID = 255
CHECKPOINT_EVERY = 100  # steps
MOST_SKIPPED = 20  # steps in a row that half precision may skip
CHECKPOINT_FORMAT = "segcourse.training.fit/1"
PARTS = ("model", "average", "optimizer", "scaler")  # whose state a checkpoint holds
ONE_ROW_PER_OBJECT = ("boxes", "labels", "masks")

Batch = dict[str, Any]
Loss = Callable[[nn.Module, Batch], Tensor]


@dataclass(frozen=True)
class Preset:
    """A budget: where to run, how large the images are (px), and how far a recipe is scaled.

    Notebooks state their numbers for the `cpu` preset; `steps`, `width` and `length` scale them.
    """

    name: str
    device: torch.device
    size: int
    batch_size: int

    def steps(self, n: int) -> int:
        """Training steps: `smoke` takes 2 % of them (at least 4), `gpu` twice as many."""
        return {"smoke": max(4, n // 50), "cpu": n, "gpu": 2 * n}[self.name]

    def width(self, n: int) -> int:
        """Channels of a model: `gpu` takes four times as many."""
        return 4 * n if self.name == "gpu" else n

    def length(self, n: int) -> int:
        """Images of a data set: `smoke` takes at most 64, `gpu` four times as many."""
        return {"smoke": min(n, 64), "cpu": n, "gpu": 4 * n}[self.name]


def preset() -> Preset:
    """The budget named by the environment variable SEGCOURSE_PRESET: smoke, cpu or gpu.

    Without the variable it is `gpu` where CUDA finds a GPU and `cpu` elsewhere. ValueError for
    another name, and for `gpu` on a machine without one.
    """
    has_gpu = torch.cuda.is_available()
    name = os.environ.get("SEGCOURSE_PRESET") or ("gpu" if has_gpu else "cpu")
    if name not in ("smoke", "cpu", "gpu"):
        raise ValueError(f"SEGCOURSE_PRESET: must be smoke, cpu or gpu; found {name!r}")
    if name == "gpu" and not has_gpu:
        raise ValueError("SEGCOURSE_PRESET: gpu was asked for, but CUDA finds no GPU here")
    if name == "gpu":
        return Preset(name, torch.device("cuda"), size=128, batch_size=16)
    return Preset(name, torch.device("cpu"), size=64, batch_size=8)


def fit(
    model: nn.Module,
    data: Any,
    loss: Loss,
    steps: int,
    *,
    batch_size: int = 8,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    warmup: int = 20,
    clip: float = 5.0,
    ema: float = 0.98,
    seed: int = 0,
    device: torch.device | str | None = None,
    checkpoint: str | os.PathLike | None = None,
    label: str | None = None,
) -> History:
    """Train `model` in place with AdamW for `steps` steps and return the history.

    `data` has `len()` and either `batch(indices)`, which returns a dict of tensors with a batch
    axis, or `[i]`, which returns the dict of one item. `loss(model, batch)` returns a 0-d tensor.
    The learning rate rises linearly over `warmup` steps to `lr` and falls to about 0 on a cosine.
    The gradient's norm is held to at most `clip`. On a GPU the forward pass runs in half
    precision. `device` None means `preset().device`; `label` names the run in its progress.

    However `fit` ends, the model is in eval mode and holds the moving average of its weights
    (see `update_average`), which is smoother and nearly always better than the last step.

    The order of the items and torch's random numbers in a step follow from `seed` alone, and the
    caller's random state is left as it was. With a `checkpoint` path the state is written every
    100 steps, at the end, and on Ctrl-C; a call that finds the file goes on from there. Two runs,
    or a run in two parts, agree to the byte on a CPU with one number of threads; on a GPU they
    agree as far as its kernels add up in a fixed order.

    ValueError for bad settings, data or loss, and for a checkpoint that is damaged or belongs to
    another model or other settings; model and file are then as they were. FloatingPointError for
    a loss or gradient that is not finite; the last good checkpoint stays.

    AdamW: Loshchilov and Hutter, 2019. Cosine schedule: Loshchilov and Hutter, 2017.
    """
    _check_counts(steps=steps, batch_size=batch_size)
    _check_not_empty(data)
    if batch_size > len(data):
        raise ValueError(f"batch_size: {batch_size} is more than the {len(data)} items of data")
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights:
        raise ValueError("model: has no parameters to train")
    if not (lr > 0 and clip > 0 and warmup >= 0 and weight_decay >= 0 and 0 <= ema < 1):
        raise ValueError(
            "lr and clip must be above 0, warmup and weight_decay at least 0, ema in [0, 1); "
            f"found {lr=}, {clip=}, {warmup=}, {weight_decay=}, {ema=}"
        )
    device = preset().device if device is None else torch.device(device)
    precision = _precision(device)
    # A checkpoint holds plain Python numbers only, and a sweep may come from numpy.
    lr, weight_decay, clip, ema = (float(x) for x in (lr, weight_decay, clip, ema))
    seed = int(seed)
    run = dict(steps=steps, batch_size=batch_size, lr=lr, weight_decay=weight_decay, warmup=warmup)
    run |= dict(clip=clip, ema=ema, seed=seed, items=len(data), precision=str(precision))
    run |= {name: list(value.shape) for name, value in model.state_dict().items()}
    run["frozen"] = [name for name, p in model.named_parameters() if not p.requires_grad]
    path = None if checkpoint is None else Path(checkpoint)
    saved = _read_checkpoint(path, run) if path and path.exists() else None

    model.to(device)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(weights, lr, weight_decay=weight_decay, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    parts = dict(zip(PARTS, (model, average, optimizer, scaler), strict=True))
    history = History(label or type(model).__name__, batch_size)
    if saved:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        history = History(**saved["history"] | {"label": history.label})
    start, skipped = len(history.losses), 0
    shown = _shows_bar()
    # Not tqdm.auto, which warns where ipywidgets is missing; not stderr, which notebooks tint.
    bar = tqdm(desc=history.label, total=steps, initial=start, file=sys.stdout, disable=not shown)

    model.train()
    try:
        with _own_random_state(), _held_interrupt() as interrupted, bar:
            for step in range(start, steps):
                began = time.perf_counter()
                torch.manual_seed(_stream(seed, "step", step))
                rate = learning_rate(step, steps, lr, warmup)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                batch = _fetch(data, batch_indices(seed, step, batch_size, len(data)), device)

                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    value = loss(model, batch)
                _check_loss(value, step, rate)

                optimizer.zero_grad()
                scaler.scale(value).backward()
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(weights, clip)
                # A GradScaler skips a step that overflows and lowers its scale, but not for ever.
                skipped = skipped + 1 if scaler.is_enabled() and not norm.isfinite() else 0
                if not scaler.is_enabled() or skipped > MOST_SKIPPED:
                    _check_finite("gradient", norm.item(), step, rate)
                scaler.step(optimizer)
                scaler.update()
                update_average(average, model, ema, step)

                history.losses.append(value.item())
                history.learning_rates.append(rate)
                history.seconds += time.perf_counter() - began
                bar.set_postfix_str(f"loss {history.losses[-1]:.3f}", refresh=False)
                bar.update()
                stop = interrupted.is_set() or step + 1 == steps
                if path and (stop or (step + 1) % CHECKPOINT_EVERY == 0):
                    _write_checkpoint(path, run, parts, history)
                if stop:
                    break  # after Ctrl-C, _held_interrupt now raises KeyboardInterrupt
    finally:
        model.load_state_dict(average.state_dict())
        model.eval()
    if not shown:
        print(history.summary(resumed_at=start))
    return history


def batch_indices(seed: int, step: int, batch_size: int, length: int) -> Tensor:
    """The items of one step, int64 [batch_size]: a pure function of its arguments.

    Every epoch shuffles all `length` items anew. The epochs stand one after the other and are
    cut into batches, so a batch may end one epoch and begin the next, and no item is left out.
    """
    begin = step * batch_size
    epochs = range(begin // length, (begin + batch_size - 1) // length + 1)
    generator = torch.Generator()
    orders = [
        torch.randperm(length, generator=generator.manual_seed(_stream(seed, "epoch", epoch)))
        for epoch in epochs
    ]
    return torch.cat(orders)[begin % length :][:batch_size]


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up to `peak` in step `warmup - 1`, then half a cosine down to about 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, ema: float, step: int) -> None:
    """Move the exponential moving average of weights and buffers towards the model, in place.

    The decay is min(ema, (1 + step) / (10 + step)): early on the average forgets faster, else a
    short run would still hold its random start. BatchNorm's running statistics are averaged with
    the same decay, so they describe the same steps as the averaged weights do; they are close to
    the statistics of the averaged model, not equal. Integer buffers are copied.
    """
    decay = min(ema, (1 + step) / (10 + step))
    means = itertools.chain(average.parameters(), average.buffers())  # shared tensors come once
    for mean, value in zip(
        means, itertools.chain(model.parameters(), model.buffers()), strict=True
    ):
        if value.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _precision(device: torch.device) -> torch.dtype:
    """The dtype of autocast; GPUs before Ampere only emulate bfloat16, slowly."""
    if device.type != "cuda":
        return torch.float32
    ampere = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if ampere else torch.float16


def _stream(seed: int, purpose: str, index: int) -> int:
    """A seed for one purpose. 32 bits, because torch's CPU generator drops the bits above."""
    return zlib.crc32(f"{seed}/{purpose}/{index}".encode())


def _own_random_state() -> contextlib.AbstractContextManager[None]:
    """Give the caller's random state back at the end; manual_seed touches every GPU."""
    return torch.random.fork_rng(devices=range(torch.cuda.device_count()))


@contextlib.contextmanager
def _held_interrupt() -> Iterator[threading.Event]:
    """Hold Ctrl-C back, and raise KeyboardInterrupt at the end; a second Ctrl-C acts at once.

    In the middle of a step some weights are new and some old, which no checkpoint may hold.
    """
    pressed = threading.Event()
    usual = signal.default_int_handler

    def hold(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, usual)
        pressed.set()

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not usual:
        yield pressed  # Ctrl-C does not arrive here, or the caller has a handler for it
        return
    signal.signal(signal.SIGINT, hold)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed.is_set():
        raise KeyboardInterrupt


def _shows_bar() -> bool:
    """Whether output goes to a terminal or notebook, not to a file or, TQDM_DISABLE=1, a page."""
    interactive = sys.stdout.isatty() or hasattr(builtins, "__IPYTHON__")
    return interactive and os.environ.get("TQDM_DISABLE", "0") in ("", "0")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}: must be a whole number of at least 1; found {count!r}")


def _check_not_empty(data: Any) -> None:
    if len(data) == 0:
        raise ValueError("data: has no items")


def _check_loss(value: Any, step: int, rate: float) -> None:
    if not isinstance(value, Tensor) or value.ndim != 0:
        found = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"loss: must return a 0-d tensor; found {found}")
    _check_finite("loss", value.item(), step, rate)
    if not value.requires_grad:
        raise ValueError("loss: does not depend on a parameter of the model, nothing to train")


def _check_finite(name: str, value: float, step: int, rate: float) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"{name}: {value} in step {step}, so training stopped. Likely causes: a learning rate "
            f"that is too high (here {rate:.2g}); a division by zero, log(0) or sqrt(0) in the "
            "loss; a batch whose pixels are all void; images that are not finite."
        )


def _write_checkpoint(path: Path, run: dict, parts: dict[str, Any], history: History) -> None:
    """Write beside the file and rename, so that the file is whole at every moment."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"format": CHECKPOINT_FORMAT, "run": run, "history": asdict(history)}
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def _read_checkpoint(path: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The state in the file; ValueError if it is not one that this very run wrote.

    `run` holds what must agree: settings by name, and the shape of each of the model's tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not compare checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict) or saved.get("format") != CHECKPOINT_FORMAT:
            raise ValueError("fit did not write it")
        if missing := {"run", "history", *PARTS} - set(saved):
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"checkpoint: {path} is not a checkpoint that fit can read ({reason}). Nothing was "
            "changed; delete the file to start anew."
        ) from error
    before = saved["run"]
    differences = [
        f"{name} was {before.get(name, 'absent')} and is now {run.get(name, 'absent')}"
        for name in sorted(before | run)
        if before.get(name) != run.get(name)
    ]
    if differences:
        raise ValueError(
            f"checkpoint: {path} is of another run: {'; '.join(differences)}. Nothing was "
            "changed; delete the file to start anew, or call fit as that run did."
        )
    return saved


@dataclass
class History:
    """What happened in each step: losses, learning rates, and the seconds of all steps."""

    label: str
    batch_size: int
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def smoothed(self, decay: float = 0.95) -> list[float]:
        """The losses, each averaged with those before it, the nearer the heavier."""
        total, weight, smooth = 0.0, 0.0, []
        for loss in self.losses:
            total = decay * total + (1 - decay) * loss
            weight = decay * weight + (1 - decay)
            smooth.append(total / weight)
        return smooth

    def summary(self, resumed_at: int = 0) -> str:
        """One line: steps, batch size, time, and the smoothed loss at both ends."""
        smooth = self.smoothed()
        resumed = f" (resumed at step {resumed_at})" if resumed_at else ""
        return (
            f"{self.label}: {len(smooth)} steps of batch {self.batch_size}{resumed} in "
            f"{self.seconds:.1f} s, loss {smooth[0]:.2f} -> {smooth[-1]:.2f}"
        )

    def plot(self) -> Figure:
        """Draw the loss of each step as a faint line and a running mean over it."""
        from segcourse.plots import curves  # only a reader of curves waits for matplotlib

        window = max(1, min(25, len(self.losses) // 4))
        return curves({self.label: self.losses}, ylabel="loss", smooth=window)


def _fetch(data: Any, indices: Tensor, device: torch.device) -> Batch:
    """The batch of these items on the device; lists (boxes of each image) stay lists."""
    if hasattr(data, "batch"):
        batch = data.batch(indices)
    else:
        items = [data[i] for i in indices.tolist()]
        batch = {name: _stack(name, [item[name] for item in items]) for name in items[0]}
    return {name: _to(value, device) for name, value in batch.items()}


def _stack(name: str, values: list[Any]) -> Tensor | list[Any]:
    """Tensors gain a batch axis; what has one row for each object stays a list."""
    if name in ONE_ROW_PER_OBJECT or not isinstance(values[0], Tensor):
        return values
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise ValueError(f"data: items differ in the shape of {name!r}: {sorted(shapes)}")
    return torch.stack(values)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return [_to(item, device) for item in value] if isinstance(value, list) else value


def pixel_loss(function: Callable[..., Tensor], **kwargs: Any) -> Loss:
    """Make the `loss(model, batch)` of `fit` from a function of logits and masks.

    `function(logits, mask, **kwargs)` gets float32 logits [B,C,H,W], also where the model ran in
    half precision, and the int64 mask [B,H,W]. Tensors in `kwargs`, such as class weights, are
    moved to the model's device. ValueError for masks of wrong dtype, size or labels.
    """

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits, mask = model(batch["image"]), batch["mask"]
        if logits.ndim != 4 or mask.shape != (len(logits), *logits.shape[2:]):
            raise ValueError(
                "mask: must be [B,H,W] for logits [B,C,H,W]; "
                f"found {list(mask.shape)} for {list(logits.shape)}"
            )
        _check_mask(mask, logits.shape[1])
        options = {name: _to(value, logits.device) for name, value in kwargs.items()}
        return function(logits.float(), mask, **options)

    return loss


def _check_mask(mask: Tensor, num_classes: int) -> None:
    if mask.dtype != torch.int64:
        raise ValueError(f"mask: must be int64; found {mask.dtype}")
    check_labels("mask", mask, num_classes, VOID)


def class_weights(data: Any, num_classes: int, *, batch_size: int = 50) -> Tensor:
    """Weights for a loss, float32 [num_classes]: 1 / sqrt(share of the pixels), with mean 1.

    The inverse itself would let a class with few pixels drown the others; the root is a middle
    way. Void pixels do not count. A class that `data` lacks has no finite weight of its own and
    gets the largest weight of the others, as if it were as rare as the rarest of them.
    """
    _check_counts(num_classes=num_classes, batch_size=batch_size)
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for batch in _batches(data, batch_size, torch.device("cpu")):
        _check_mask(batch["mask"], num_classes)
        mask = batch["mask"]
        counts += torch.bincount(mask[mask != VOID], minlength=num_classes)
    if counts.sum() == 0:
        raise ValueError("data: every pixel of every mask is void")
    rarest = counts[counts > 0].min()
    weights = counts.clamp(min=rarest).double().rsqrt()  # the mean cancels the total
    return (weights / weights.mean()).float()


def evaluate(model: nn.Module, data: Any, *, batch_size: int = 50) -> Scores:
    """Score the model's predictions for all of `data`, in eval mode, in float32.

    The number of classes is that of the logits. The model stays on its device and gets its
    train or eval mode back.
    """
    _check_counts(batch_size=batch_size)
    metrics = None
    with _inference(model) as device:
        for batch in _batches(data, batch_size, device):
            logits = model(batch["image"])
            metrics = metrics or SegmentationMetrics(num_classes=logits.shape[1])
            metrics.update(logits.argmax(dim=1), batch["mask"])
        return metrics.compute()


def predict(model: nn.Module, images: Tensor, *, batch_size: int = 50) -> Tensor:
    """The label of every pixel, int64 [B,H,W], of images [B,3,H,W], on the images' device.

    The model runs in eval mode and gets its mode back.
    """
    return _forward(model, images, batch_size, lambda logits: logits.argmax(dim=1))


def predict_logits(model: nn.Module, images: Tensor, *, batch_size: int = 50) -> Tensor:
    """The logits [B,C,H,W] of images [B,3,H,W]; as `predict`, which needs less memory."""
    return _forward(model, images, batch_size, lambda logits: logits)


def detect(model: nn.Module, images: Tensor, *, batch_size: int = 50) -> list[dict[str, Any]]:
    """What a detector finds in each of the images [B,3,H,W], on the images' device.

    The model runs in eval mode and gets its mode back.
    """
    _check_images(images, batch_size)
    with _inference(model) as device:
        parts = [model(part.to(device)) for part in images.split(batch_size)]
    return [
        {name: _to(value, images.device) for name, value in found.items()}
        for found in itertools.chain(*parts)
    ]


def _forward(
    model: nn.Module, images: Tensor, batch_size: int, keep: Callable[[Tensor], Tensor]
) -> Tensor:
    _check_images(images, batch_size)
    with _inference(model) as device:
        kept = [keep(model(part.to(device))) for part in images.split(batch_size)]
    return torch.cat(kept).to(images.device)


def _check_images(images: Tensor, batch_size: int) -> None:
    _check_counts(batch_size=batch_size)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images: expected [B,3,H,W] with B >= 1; found {list(images.shape)}")


def _batches(data: Any, batch_size: int, device: torch.device) -> Iterator[Batch]:
    _check_not_empty(data)
    for indices in torch.arange(len(data)).split(batch_size):
        yield _fetch(data, indices, device)


@contextlib.contextmanager
def _inference(model: nn.Module) -> Iterator[torch.device]:
    """Eval mode without gradients, then the model's own mode again; yields its device."""
    training = model.training
    tensor = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0))
    model.eval()
    try:
        with torch.inference_mode():
            yield tensor.device
    finally:
        model.train(training)
