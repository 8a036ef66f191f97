"""Profiling against sums done by hand, and its promise to leave the model as it was."""

import copy
import time

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from segcourse.models.fcn import FCN8s, FCN32s
from segcourse.models.layers import Attention
from segcourse.profiling import (
    layer_table,
    multiply_adds,
    parameters,
    peak_memory_bytes,
    receptive_field,
    saved_activation_bytes,
    seconds,
    training_memory,
)


def conv(channels, kernel=3, dilation=1):
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation)


def vgg_until(vgg, last):
    """The layers of `vgg` in a row, up to the one named `last`."""
    names = [name for name, _ in vgg.named_children()]
    return nn.Sequential(*(getattr(vgg, name) for name in names[: names.index(last) + 1]))


class TwoConvolutions(nn.Module):
    """A model with everything that profiling must not touch."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(4, 2, 1)
        self.fails = False

    def forward(self, x):
        y = self.drop(self.norm(self.first(x)))
        if self.fails:
            raise RuntimeError("a layer fails")
        return self.last(y)


def test_parameters_counts_frozen_weights_and_shared_ones_once():
    shared = nn.Linear(5, 5)
    model = nn.Sequential(shared, nn.Linear(5, 2).requires_grad_(False), shared)
    assert parameters(model) == 30 + 12


def test_the_papers_fcn_32s_has_134_million_weights():
    with torch.device("meta"):
        assert round(parameters(FCN32s(21)) / 1e6) == 134


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(4, 12), st.integers(4, 12)
)
def test_multiply_adds_of_a_convolution_follow_the_formula(batch, groups, factor, height, width):
    layer = nn.Conv2d(2 * groups, factor * groups, 3, stride=2, groups=groups)
    x = torch.rand(batch, 2 * groups, height, width)
    places = layer(x)[:, 0].numel()
    assert multiply_adds(layer, x) == places * factor * groups * 2 * 3 * 3


def test_multiply_adds_of_a_transposed_convolution_count_input_places():
    layer = nn.ConvTranspose2d(6, 6, 4, stride=2, groups=6)
    assert multiply_adds(layer, torch.rand(2, 6, 5, 7)) == 2 * 5 * 7 * 6 * 4 * 4


@pytest.mark.parametrize("device", ("cpu", "meta"))
@pytest.mark.parametrize(("tokens", "source", "heads"), ((7, 5, 1), (64, 16, 3)))
def test_multiply_adds_of_attention_count_both_of_its_products(device, tokens, source, heads):
    layer = Attention(24, heads).to(device)
    x = torch.rand(2, tokens, 24, device=device)
    model = nn.Sequential()
    model.forward = lambda x: layer(x, x[:, :source])
    maps = 2 * 24 * tokens * source  # q with k, and the weights with v, over all heads
    linear = 24 * 24 * (2 * tokens + 2 * source)
    assert multiply_adds(model, x) == 2 * (maps + linear)


def test_the_classifier_vgg_16_takes_its_published_15_5_billion_multiply_adds():
    with torch.device("meta"):
        vgg = FCN32s(21, pad_image=False).vgg
        vgg.fc6.padding = (0, 0)
        classifier = nn.Sequential(vgg_until(vgg, "drop7"), nn.Conv2d(4096, 1000, 1))
        count = multiply_adds(classifier, torch.rand(1, 3, 224, 224))
        assert round(count / 1e9, 1) == 15.5
        assert parameters(classifier) == 138_357_544


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(4, 12), st.integers(4, 12), st.booleans())
def test_a_convolution_and_a_relu_keep_one_map_in_place_or_not(batch, height, width, inplace):
    """The next convolution and the ReLU keep the same tensor; the input counts as the caller's."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(8, 2, 1))
    saved = saved_activation_bytes(model, torch.rand(batch, 3, height, width))
    assert saved == 4 * batch * 8 * height * width


def test_batch_norm_dropout_and_pooling_keep_what_their_backward_pass_needs():
    x = torch.rand(2, 4, 6, 6)
    one_map = x.numel() * 4
    first = nn.Conv2d(4, 4, 1)  # keeps its input alone, which does not count
    assert saved_activation_bytes(first, x) == 0
    norm = nn.Sequential(first, nn.BatchNorm2d(4))
    assert saved_activation_bytes(norm, x) == one_map + 2 * 4 * 4  # its input, mean, deviation
    dropout = nn.Sequential(first, nn.Dropout(0.5))
    assert (
        saved_activation_bytes(dropout, x) == one_map
    )  # on a CPU the mask is as large as the map
    pool = nn.Sequential(first, nn.MaxPool2d(2))
    assert saved_activation_bytes(pool, x) == one_map + 2 * one_map / 4  # input, int64 indices


def test_saved_activations_are_linear_in_the_number_of_pixels():
    model = FCN8s(4, width=2, pad_image=False)
    saved = {size: saved_activation_bytes(model, torch.rand(size)) for size in
             ((1, 3, 64, 64), (2, 3, 64, 64), (1, 3, 128, 64), (1, 3, 128, 128))}  # fmt: skip
    one = saved[1, 3, 64, 64]
    assert saved[2, 3, 64, 64] == saved[1, 3, 128, 64] == 2 * one
    assert saved[1, 3, 128, 128] == 4 * one


def test_checkpointing_keeps_less():
    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    layers = [layer for _ in range(4) for layer in (conv(3), nn.ReLU())]
    x = torch.rand(1, 3, 16, 16)
    assert saved_activation_bytes(nn.Sequential(*layers), x) == 4 * x.numel() * 4
    assert saved_activation_bytes(Checkpointed(*layers), x) == 0


def test_the_meta_device_gives_the_same_numbers_without_computing():
    model = FCN8s(4, width=2, pad_image=False, batch_norm=True)
    twin = copy.deepcopy(model).to("meta")
    x = torch.rand(2, 3, 64, 96)
    assert training_memory(model, x) == training_memory(twin, x.to("meta"))
    assert layer_table(model, x) == layer_table(twin, x.to("meta"))


def test_training_memory_counts_four_copies_of_a_trained_weight_and_one_of_a_frozen_one():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 3, bias=False))
    model[0].requires_grad_(False)
    memory = training_memory(model, torch.rand(7, 10))
    assert memory.weights == 4 * 130
    assert memory.gradients == 4 * 30
    assert memory.adam_moments == 8 * 30
    assert memory.activations == 4 * 70
    assert memory.total == 4 * (130 + 3 * 30 + 70)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5))
def test_n_convolutions_of_3x3_see_2n_plus_1_pixels(n):
    model = nn.Sequential(*(conv(2) for _ in range(n)))
    field = receptive_field(model, torch.rand(1, 2, 15, 17))
    assert field.theoretical == (2 * n + 1, 2 * n + 1)
    assert 1 <= field.effective <= 2 * n + 1
    assert not field.clipped


@pytest.mark.parametrize(
    ("dilations", "extent"), [((1,), 3), ((2,), 5), ((2, 2), 9), ((1, 2), 7), ((1, 2, 4), 15)]
)
def test_dilated_convolutions_see_the_sum_of_their_dilations(dilations, extent):
    model = nn.Sequential(*(conv(1, dilation=dilation) for dilation in dilations))
    assert receptive_field(model, torch.rand(1, 1, 21, 21)).theoretical == (extent, extent)


@pytest.mark.parametrize(("last", "extent"), [("pool3", 44), ("pool5", 212), ("fc7", 404)])
def test_the_receptive_fields_of_vgg_16_are_those_of_the_arithmetic(last, extent):
    """Each layer adds (kernel - 1) times the distance between its input's pixels."""
    sees, step = 1, 1
    kernels = {"conv1": [3, 3, "pool"], "conv2": [3, 3, "pool"], "conv3": [3, 3, 3, "pool"]}
    if last != "pool3":
        kernels |= {"conv4": [3, 3, 3, "pool"], "conv5": [3, 3, 3, "pool"]}
    if last == "fc7":
        kernels |= {"fc": [7, 1]}
    for kernel in sum(kernels.values(), []):
        sees += (2 - 1 if kernel == "pool" else kernel - 1) * step
        step *= 2 if kernel == "pool" else 1
    assert sees == extent
    vgg = vgg_until(FCN32s(2, width=1, pad_image=False).vgg, last)
    field = receptive_field(vgg, torch.rand(1, 3, 480, 480))
    assert field.theoretical == (extent, extent)
    assert not field.clipped


def test_the_effective_field_holds_nine_tenths_of_the_gradient_and_no_less():
    model = nn.Conv2d(1, 1, 5, padding=2, bias=False)
    model.weight.data.fill_(0.1)
    model.weight.data[0, 0, 1:4, 1:4] = 1.0
    x = torch.rand(1, 1, 11, 11)
    assert receptive_field(model, x).effective == 5  # the inner 3x3 holds 9 of 10.6
    model.weight.data[0, 0, 2, 2] = 10.0
    field = receptive_field(model, x)
    assert field.effective == 3  # now 18 of 19.6
    torch.testing.assert_close(field.gradient[3:8, 3:8], model.weight[0, 0].detach().double())


def test_max_pooling_and_closed_relus_do_not_hide_a_path():
    model = nn.Sequential(conv(1), nn.ReLU(), nn.MaxPool2d(2), conv(1), nn.ReLU())
    for layer in (model[0], model[3]):
        nn.init.constant_(layer.weight, -1.0)
        nn.init.constant_(layer.bias, -1.0)
    field = receptive_field(model, torch.rand(1, 1, 24, 24))
    assert field.theoretical == (8, 8)
    assert field.effective == 0 and field.gradient.sum() == 0


def test_the_running_statistics_of_batch_norm_do_not_hide_a_path():
    norm = nn.BatchNorm2d(2)
    norm.running_mean.fill_(100.0)
    model = nn.Sequential(conv(2), norm, nn.ReLU(), conv(2))
    assert receptive_field(model, torch.rand(1, 2, 16, 16)).theoretical == (5, 5)


def test_a_field_larger_than_the_image_is_reported_as_clipped():
    model = nn.Sequential(conv(1), conv(1), conv(1))
    assert receptive_field(model, torch.rand(1, 1, 20, 5)).clipped
    everywhere = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(1, kernel=1))
    assert receptive_field(everywhere, torch.rand(1, 1, 8, 9)).theoretical == (8, 9)


def test_a_layer_table_lists_layers_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Conv2d(4, 2, 1)
            self.a = nn.Conv2d(3, 4, 3, padding=1)
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(self.b(self.relu(self.a(x))))

    rows = layer_table(Backwards(), torch.rand(2, 3, 8, 6))
    assert [row.name for row in rows] == ["a", "relu", "b", "relu"]
    assert [row.kind for row in rows] == ["Conv2d", "ReLU", "Conv2d", "ReLU"]
    assert [row.output_shape[1] for row in rows] == [4, 4, 2, 2]
    assert all(row.output_shape[2:] == (8, 6) for row in rows)
    assert [row.parameters for row in rows] == [3 * 4 * 9 + 4, 0, 4 * 2 + 2, 0]
    assert [row.multiply_adds for row in rows] == [96 * 108, 0, 96 * 8, 0]


def test_the_columns_of_a_layer_table_sum_to_the_model():
    model, x = FCN8s(4, width=2, pad_image=False), torch.rand(2, 3, 64, 64)
    rows = layer_table(model, x)
    assert sum(row.parameters for row in rows) == parameters(model)
    assert sum(row.multiply_adds for row in rows) == multiply_adds(model, x)
    assert rows[-1].name == "upscore8" and rows[-1].output_shape == (2, 4, 72, 72)


def test_a_layer_that_runs_twice_has_its_weights_in_the_first_row():
    layer = nn.Linear(4, 4)
    rows = layer_table(nn.Sequential(layer, nn.ReLU(), layer), torch.rand(3, 4))
    assert [row.parameters for row in rows] == [20, 0, 0]
    assert [row.multiply_adds for row in rows] == [48, 0, 48]


def state_of(model):
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "gradients": {k: p.grad.clone() for k, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "frozen": [p.requires_grad for p in model.parameters()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
            for m in model.modules()
        ],
        "random": torch.get_rng_state(),
    }


MEASURES = (multiply_adds, saved_activation_bytes, training_memory, receptive_field, layer_table)


@pytest.mark.parametrize("fails", (False, True))
@pytest.mark.parametrize("measure", MEASURES)
def test_measuring_leaves_the_model_and_the_random_state_alone(measure, fails):
    model, x = TwoConvolutions(), torch.rand(2, 3, 8, 8)
    F.mse_loss(model(x), torch.rand(2, 2, 8, 8)).backward()
    model.norm.eval()  # a mixture of modes, as with a frozen BatchNorm
    model.fails = fails
    before = state_of(model)
    if fails:
        with pytest.raises(RuntimeError, match="a layer fails"):
            measure(model, x)
    else:
        measure(model, x)
    torch.testing.assert_close(state_of(model), before, rtol=0, atol=0)
    assert x.grad is None and not x.requires_grad


def test_peak_memory_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="x: .*CUDA.*cpu"):
        peak_memory_bytes(nn.Linear(2, 2), torch.rand(1, 2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_on_a_gpu_is_at_least_the_sum_of_its_parts():
    model = FCN8s(10, width=16, pad_image=False, batch_norm=True).cuda()
    x = torch.rand(8, 3, 128, 128, device="cuda")
    before = copy.deepcopy(model.state_dict())
    total = training_memory(model, x).total
    assert 0.8 * total < peak_memory_bytes(model, x) < 4 * total
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_receptive_field_needs_images_and_a_map():
    with pytest.raises(ValueError, match=r"x: .*\[3, 8, 8\]"):
        receptive_field(conv(3), torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"model: .*\[1, 192\]"):
        receptive_field(nn.Flatten(), torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="model: .*tuple"):
        receptive_field(FCN8s(2, width=1).vgg, torch.rand(1, 3, 32, 32))


def test_seconds_are_those_of_the_call():
    assert 0.05 <= seconds(lambda: time.sleep(0.05)) < 1
