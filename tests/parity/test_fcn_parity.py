"""FCN against the published layer list, written out with literal constants.

The reference below follows the network definitions that the authors released and their well-known
PyTorch port (wkentaro/pytorch-fcn): numbers instead of coordinates, and full transposed kernels of
shape [classes, classes, k, k] instead of grouped ones.
"""

import pytest
import torch
import torch.nn.functional as F

from segcourse.models.fcn import FCN8s, FCN16s, FCN32s

CLASSES = 4
STAGES = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))


def reference(network, w, image):
    """Logits of `network` ("32s", "16s" or "8s") with the weights `w`, a dict by layer name."""

    def conv(name, x, padding=0):
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    def deconv(name, x, stride):
        return F.conv_transpose2d(x, w[f"{name}.weight"], stride=stride)

    pools = {}
    h = image
    for stage, depth in STAGES:
        for i in range(1, depth + 1):
            h = F.relu(conv(f"conv{stage}_{i}", h, padding=100 if stage == i == 1 else 1))
        h = F.max_pool2d(h, 2, stride=2, ceil_mode=True)
        pools[stage] = h
    h = F.dropout(F.relu(conv("fc6", h)), 0.5)
    h = F.dropout(F.relu(conv("fc7", h)), 0.5)
    h = conv("score_fr", h)
    rows, columns = image.shape[2], image.shape[3]
    if network == "32s":
        h = deconv("upscore32", h, 32)
        return h[:, :, 19 : 19 + rows, 19 : 19 + columns]
    h = deconv("upscore2", h, 2)
    skip = conv("score_pool4", pools[4])
    h = h + skip[:, :, 5 : 5 + h.shape[2], 5 : 5 + h.shape[3]]
    if network == "16s":
        h = deconv("upscore16", h, 16)
        return h[:, :, 27 : 27 + rows, 27 : 27 + columns]
    h = deconv("upscore_pool4", h, 2)
    skip = conv("score_pool3", pools[3])
    h = h + skip[:, :, 9 : 9 + h.shape[2], 9 : 9 + h.shape[3]]
    h = deconv("upscore8", h, 8)
    return h[:, :, 31 : 31 + rows, 31 : 31 + columns]


def ungrouped(weight):
    """[C, 1, k, k] as the full kernel [C, C, k, k] that has it on the diagonal."""
    full = torch.zeros(CLASSES, CLASSES, *weight.shape[2:], dtype=weight.dtype)
    full[range(CLASSES), range(CLASSES)] = weight[:, 0]
    return full


@pytest.mark.parametrize("size", ((32, 32), (65, 97), (48, 120)))
@pytest.mark.parametrize("network", (FCN32s, FCN16s, FCN8s))
def test_logits_and_gradients_equal_the_published_network(network, size):
    torch.manual_seed(0)
    model = network(CLASSES, width=2).double().train()
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.05 * torch.randn_like(weight)  # no layer left at zero or bilinear
    weights = {}
    for name, weight in model.named_parameters():
        value = ungrouped(weight.data) if name.startswith("upscore") else weight.data.clone()
        weights[".".join(name.split(".")[-2:])] = value.requires_grad_()
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    images = image.clone().requires_grad_(), image.clone().requires_grad_()

    torch.manual_seed(1)  # the same dropout on both sides
    ours = model(images[0])
    torch.manual_seed(1)
    theirs = reference(network.__name__[3:], weights, images[1])
    direction = torch.randn_like(theirs)
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()

    def equal(a, b):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)

    equal(ours, theirs)
    equal(images[0].grad, images[1].grad)
    for name, weight in model.named_parameters():
        expected = weights[".".join(name.split(".")[-2:])].grad
        if name.startswith("upscore"):
            expected = expected[range(CLASSES), range(CLASSES)].unsqueeze(1)
        if weight.requires_grad:
            equal(weight.grad, expected)


def test_fc6_is_a_fully_connected_layer_applied_to_every_window():
    vgg = FCN32s(CLASSES, width=2).vgg.double()
    fully_connected = torch.nn.Linear(7 * 7 * 16, 128).double()
    fully_connected.weight.data = vgg.fc6.weight.flatten(1)
    fully_connected.bias.data = vgg.fc6.bias
    pool5 = torch.randn(2, 16, 9, 12, dtype=torch.float64)
    windows = pool5.unfold(2, 7, 1).unfold(3, 7, 1)  # [B, C, 3, 6, 7, 7]
    by_window = fully_connected(windows.permute(0, 2, 3, 1, 4, 5).flatten(3))
    torch.testing.assert_close(vgg.fc6(pool5), by_window.permute(0, 3, 1, 2))
