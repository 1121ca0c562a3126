"""One two-layer network over rows, forward and back: the CPU's way through `networks.cpp`."""

import torch

from mwuf_kernels.native import call

Network = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""``(w1 [H, C], b1 [H], w2 [D, H], b2 [D])`` of one two-layer network."""


def network_forward(x: torch.Tensor, network: Network, plus: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (output plus a number, hidden layer) of one network, by `networks.cpp`."""
    x, w1, b1, w2, b2 = (tensor.contiguous() for tensor in (x, *network))
    hidden, out = x.new_empty(len(x), len(w1)), x.new_empty(len(x), len(w2))
    call("mwuf_network", len(x), x.shape[1], len(w1), len(w2), x, w1, b1, w2, b2, plus, hidden, out)
    return out, hidden


def network_back(
    d_out: torch.Tensor, x: torch.Tensor, network: Network, hidden: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Returns (gradient of the first layer's product, gradients of the weights) of one network, likewise."""
    x, w1, b1, w2, b2 = (tensor.contiguous() for tensor in (x, *network))
    d_hidden, d_weights = torch.empty_like(hidden), [torch.empty_like(weight) for weight in (w1, b1, w2, b2)]
    sizes = (len(x), x.shape[1], len(w1), len(w2))
    call("mwuf_network_back", *sizes, x, w2, hidden, d_out, d_hidden, *d_weights)
    return d_hidden, d_weights
