"""What a model costs and what it sees, measured on the model itself.

Parameters, multiply-adds, seconds, the activations that training keeps, the receptive field, and
a table of layers. No function changes what it measures: weights, buffers, gradients, train or
eval mode, hooks and the random state are afterwards what they were.

All but `seconds`, `peak_memory_bytes` and `receptive_field` also work on the "meta" device, which
knows shapes and holds no numbers. So a model can be measured that is too large for the machine.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training with Adam needs. `total` is their sum."""

    activations: int
    weights: int
    gradients: int
    adam_moments: int

    @property
    def total(self) -> int:
        return self.activations + self.weights + self.gradients + self.adam_moments


@dataclass(frozen=True)
class ReceptiveField:
    """What one output pixel, the central one, sees of the input.

    theoretical: height and width, in input pixels, of the area that can influence it.
    effective: side of the smallest square, centred on that area, that holds 90 % of the gradient.
    gradient: |d output / d input|, summed over channels, float64 [H, W].
    clipped: True if the area reaches a border of the input; a larger input may show a larger one.
    """

    theoretical: tuple[int, int]
    effective: int
    gradient: Tensor
    clipped: bool


@dataclass(frozen=True)
class LayerRow:
    """A row of `layer_table`: `name` is as in `named_modules`, `kind` is the layer's class."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def parameters(model: nn.Module) -> int:
    """Number of weights, frozen ones included; a shared one counts once."""
    return sum(p.numel() for p in model.parameters())


@contextmanager
def _mode(model: nn.Module, x: Tensor, *, training: bool) -> Iterator[None]:
    """Train or eval mode for a while, then every module as it was; the random state likewise."""
    before = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
            model.train(training)
            yield
    finally:
        for module, was_training in before:
            module.training = was_training


def _attention_flops(q: tuple, k: tuple, v: tuple, *_: object, **__: object) -> int:
    """Floating-point operations of attention by the shapes of queries, keys and values."""
    return sdpa_flop_count(q, k, v)


def _flop_counter() -> FlopCounterMode:
    """torch's counter, which by itself knows attention on a GPU but not on a CPU."""
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: _attention_flops})


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Multiplications with an addition in one forward pass over the whole batch `x`, in eval mode.

    Counted are convolutions, matrix products and attention, where almost all of the work is; not
    biases, pooling, normalisation and other work per element. One multiply-add is two
    floating-point operations (FLOPs).
    """
    counter = _flop_counter()
    with _mode(model, x, training=False), torch.no_grad(), counter:
        model(x)
    return counter.get_total_flops() // 2


def saved_activation_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps of `model(x)` for the backward pass, in train mode.

    A tensor that several layers keep counts once. Left out are weights and buffers, which exist
    anyway, the input `x`, which the caller holds, what a loss will keep, and the working memory of
    single operations.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = x.detach()
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage  # held, so that no later storage can have its address
        return tensor

    with _mode(model, x, training=True), torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # BatchNorm updates these copies of its running statistics, not the model's own.
            functional_call(model, buffers, (x,))
    for tensor in (x, *model.parameters(), *buffers.values()):
        saved.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in saved.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def training_memory(model: nn.Module, x: Tensor) -> TrainingMemory:
    """What training `model` with Adam on batches like `x` keeps in memory, part by part, in bytes.

    Frozen weights have neither gradient nor moments; buffers count as weights. On a GPU
    `peak_memory_bytes` measures the whole, with the working memory of the operations.
    """
    trainable = _bytes(p for p in model.parameters() if p.requires_grad)
    return TrainingMemory(
        activations=saved_activation_bytes(model, x),
        weights=_bytes(model.parameters()) + _bytes(model.buffers()),
        gradients=trainable,
        adam_moments=2 * trainable,
    )


def peak_memory_bytes(model: nn.Module, x: Tensor) -> int:
    """The most bytes that a training step with Adam holds on the GPU at once, `x` left out.

    The step runs on a copy of the model. The output must be a tensor. Raises ValueError if `x` is
    not on a GPU.
    """
    if not x.is_cuda:
        raise ValueError(
            f"x: peak memory is measured on a CUDA device; got a tensor on {x.device}"
        )
    with _mode(model, x, training=True):
        before = torch.cuda.memory_allocated(x.device)
        twin = copy.deepcopy(model).to(x.device).train()
        optimizer = torch.optim.Adam(p for p in twin.parameters() if p.requires_grad)
        for _ in range(2):  # Adam makes its moments at the end of the first step
            torch.cuda.reset_peak_memory_stats(x.device)
            optimizer.zero_grad()
            twin(x).float().mean().backward()
            optimizer.step()
        return torch.cuda.max_memory_allocated(x.device) - before


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Wall-clock seconds of one call: the median of `repeats`, after one that is not counted.

    A GPU works on by itself, so its work is waited for.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1; got {repeats}")
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = []
    for _ in range(repeats + 1):
        wait()
        began = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _gradient(model: nn.Module, x: Tensor) -> Tensor:
    """|d central output pixel / d first image of `x`|, summed over channels: [H, W]."""
    x = x[:1].detach().requires_grad_()
    output = model(x)
    if not isinstance(output, Tensor) or output.ndim != 4:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model: its output must be a map [B, C, H, W]; got {found}")
    height, width = output.shape[2:]
    if output.requires_grad:
        centre = output[:, :, height // 2, width // 2].sum()
        (gradient,) = torch.autograd.grad(centre, x, allow_unused=True)
        if gradient is not None:
            return gradient[0].abs().sum(dim=0)
    raise ValueError("model: its output does not depend on the input")


def _open_all_paths(model: nn.Module, generator: torch.Generator) -> None:
    """Give positive weights, and averages in place of maxima, so that no path is blocked.

    With the real weights a closed ReLU hides what lies behind it, and max pooling lets the
    gradient through to one pixel of each window only.
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MaxPool2d):
                average = nn.AvgPool2d(
                    child.kernel_size, child.stride, child.padding, child.ceil_mode
                )
                setattr(parent, name, average)
            if isinstance(child, nn.BatchNorm2d):
                child.reset_running_stats()
    for name, weight in model.named_parameters():
        weight.uniform_(0.5, 1.5, generator=generator)
        if weight.ndim > 1:  # about an average over the inputs, so that depth changes no scale
            weight /= weight[0].numel()
        if name.endswith("bias"):
            weight.zero_()


def receptive_field(model: nn.Module, x: Tensor) -> ReceptiveField:
    """What the central output pixel of `model` sees of an image `x`, measured by its gradient.

    The theoretical field is the bounding box of the non-zero gradient of a copy with positive
    weights and with average pooling in place of each `nn.MaxPool2d`. The effective field (Luo et
    al., 2016) is that of the real weights at the image `x`, in eval mode. It is 0 where the whole
    gradient is 0, as behind a layer of zero weights. Both are computed in float64.

    Only the first image of `x` [B, C, H, W] is used. Choose it larger than the field; `clipped`
    tells if it is not. Raises ValueError if `x` or the output is not of the form [B, C, H, W].
    """
    if x.ndim != 4 or x.shape[0] == 0:
        raise ValueError(f"x: expected shape [B, C, H, W] with B >= 1; got {list(x.shape)}")
    twin = nn.Sequential(copy.deepcopy(model)).double().eval().requires_grad_(False)
    gradient = _gradient(twin, x.double())

    generator = torch.Generator(x.device).manual_seed(0)
    _open_all_paths(twin, generator)
    positive = torch.empty_like(x, dtype=torch.float64).uniform_(0.5, 1.5, generator=generator)
    seen = _gradient(twin, positive) != 0
    rows, columns = (seen.any(dim=dim).nonzero().flatten().tolist() for dim in (1, 0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]

    from_middle = [
        (torch.arange(side, device=x.device) - (first + last) / 2).abs()
        for side, first, last in zip(seen.shape, (top, left), (bottom, right), strict=True)
    ]
    distance = torch.maximum(from_middle[0][:, None], from_middle[1]).flatten()
    order = distance.argsort()
    within = gradient.flatten()[order].cumsum(dim=0)
    radius = distance[order][(within < 0.9 * within[-1]).sum()].item()
    return ReceptiveField(
        theoretical=(bottom - top + 1, right - left + 1),
        effective=int(2 * radius + 1) if within[-1] > 0 else 0,
        gradient=gradient,
        clipped=0 in (top, left) or bottom + 1 == seen.shape[0] or right + 1 == seen.shape[1],
    )


def layer_table(model: nn.Module, x: Tensor) -> list[LayerRow]:
    """One row per layer of `model(x)`, in the order in which the layers run, in eval mode.

    A layer is a module without children; what a model computes outside of them has no row. A layer
    that runs twice has two rows, and its weights count in the first, so that the column sums to
    the weights in use. If a layer has several outputs, the first one gives the shape.
    """
    rows: list[LayerRow] = []
    counted: set[Tensor] = set()
    counter = _flop_counter()
    flops_before = 0

    def start(layer: nn.Module, inputs: tuple) -> None:
        nonlocal flops_before
        flops_before = counter.get_total_flops()

    def finish(layer: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
        new = set(layer.parameters()) - counted
        counted.update(new)
        first = output if isinstance(output, Tensor) else output[0]
        rows.append(
            LayerRow(
                name=names[layer],
                kind=type(layer).__name__,
                output_shape=tuple(first.shape),
                parameters=sum(p.numel() for p in new),
                multiply_adds=(counter.get_total_flops() - flops_before) // 2,
            )
        )

    names = {module: name for name, module in model.named_modules()}
    with _mode(model, x, training=False), torch.no_grad(), counter, ExitStack() as hooks:
        for module in names:
            if not list(module.children()):
                hooks.enter_context(module.register_forward_pre_hook(start))
                hooks.enter_context(module.register_forward_hook(finish))
        model(x)
    return rows
