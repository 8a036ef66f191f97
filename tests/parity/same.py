"""What the parity tests of models share: two models with equal weights do the same."""

import torch


def copy_in_order(theirs, ours):
    """Load the weights of `theirs` into `ours`, which lists the same layers in the same order.

    Returns our name of each of their tensors.
    """
    pairs = dict(zip(theirs.state_dict(), ours.state_dict(), strict=True))
    ours.load_state_dict({our: theirs.state_dict()[their] for their, our in pairs.items()})
    return pairs


def equal(ours, theirs, tolerance=1e-10):
    """The same numbers in float64, relative to the largest of them."""
    largest = theirs.abs().max().item()
    assert largest > 1e-6
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * largest)


def same_outputs_and_gradients(ours, theirs, pairs, size, training):
    """The same output for two images, the same gradients and running statistics.

    `pairs` gives our name of each of their weights.
    """
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    images = image.clone().requires_grad_(), image.clone().requires_grad_()
    our, their = ours.train(training)(images[0]), theirs.train(training)(images[1])
    direction = torch.randn_like(their)
    (our * direction).sum().backward()
    (their * direction).sum().backward()

    equal(our, their)
    equal(images[0].grad, images[1].grad)
    weights = dict(ours.named_parameters())
    for name, weight in theirs.named_parameters():
        equal(weights.pop(pairs[name]).grad, weight.grad)
    assert not weights
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            equal(ours.state_dict()[pairs[name]], value)
