"""The plain program's backbones: what one writes from the papers with torch alone.

Words as in `plain_torch`: B rows, D embedding width, F fields, the item ID among them. x `[B, F * D]` is the fields'
embeddings side by side with the item ID first; past is what a backbone made of the rows' histories, or None.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMALLEST = 1e-4  # AFN: |e| is not taken to be smaller, so that its logarithm stays finite
UNITS = 36  # DIN: hidden units of the activation unit


def mlp(width: int, hidden: Sequence[int], batch_norm: bool, dropout: float) -> nn.Sequential:
    """Hidden layers of [Linear, BatchNorm, ReLU, Dropout] and a linear output of width 1."""
    layers: list[nn.Module] = []
    for units in hidden:
        layers.append(nn.Linear(width, units))
        if batch_norm:
            layers.append(nn.BatchNorm1d(units))
        layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 1))


class LinearAndMlp(nn.Module):
    """Wide & Deep: Linear(x) + MLP(x); DeepFM adds the second-order factorisation machine over the F embeddings."""

    def __init__(self, num_fields: int, dim: int, interactions: bool, hidden: Sequence[int], *rest) -> None:
        super().__init__()
        self.dim, self.interactions = dim, interactions
        self.linear = nn.Linear(num_fields * dim, 1)
        self.mlp = mlp(num_fields * dim, hidden, *rest)

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        """Logits `[B, 1]`."""
        logit = self.linear(x) + self.mlp(x)
        if self.interactions:
            fields = x.view(len(x), -1, self.dim)
            logit = logit + 0.5 * (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True)
        return logit


class InnerProducts(nn.Module):
    """PNN with inner products (Qu et al. 2016): an MLP over the fields and the dot product of every pair of them."""

    def __init__(self, num_fields: int, dim: int, hidden: Sequence[int], *rest) -> None:
        super().__init__()
        self.dim = dim
        first, second = torch.triu_indices(num_fields, num_fields, offset=1)
        self.register_buffer("pairs", first * num_fields + second)
        self.mlp = mlp(num_fields * dim + len(first), hidden, *rest)

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        """Logits `[B, 1]`."""
        fields = x.view(len(x), -1, self.dim)
        products = torch.bmm(fields, fields.mT).flatten(1).index_select(1, self.get_buffer("pairs"))
        return self.mlp(torch.cat([x, products], 1))


class LogarithmicNeurons(nn.Module):
    """AFN (Cheng et al. 2020): an MLP over products of powers of the fields; BatchNorm after both transformations."""

    def __init__(self, num_fields: int, dim: int, neurons: int, hidden: Sequence[int], *rest) -> None:
        super().__init__()
        self.dim = dim
        self.log_norm = nn.BatchNorm1d(num_fields)
        self.powers = nn.Linear(num_fields, neurons)
        nn.init.normal_(self.powers.weight, std=0.1)
        nn.init.zeros_(self.powers.bias)
        self.exp_norm = nn.BatchNorm1d(neurons)
        self.mlp = mlp(neurons * dim, hidden, *rest)

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        """Logits `[B, 1]`."""
        logs = x.abs().clamp(min=SMALLEST).log().view(len(x), -1, self.dim).mT.flatten(0, 1)  # [B*D, F]
        products = self.powers(self.log_norm(logs)).exp()
        return self.mlp(self.exp_norm(products).view(len(x), -1))


class Interest(nn.Module):
    """DIN (Zhou et al. 2018): past events `[B, L, D]`, zeros behind the last, weighted by relevance to the item."""

    def __init__(self, num_fields: int, dim: int, hidden: Sequence[int], *rest) -> None:
        super().__init__()
        self.dim = dim
        self.unit = nn.Linear(3 * dim, UNITS)
        self.activation = nn.PReLU()
        self.relevance = nn.Linear(UNITS, 1)
        self.mlp = mlp((num_fields + 1) * dim, hidden, *rest)

    def past(self, events: Tensor, lengths: Tensor) -> Tensor:
        """The embeddings of the events as they are."""
        return events

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        """Logits `[B, 1]`."""
        assert past is not None
        item = x[:, None, : self.dim].expand_as(past)
        weight = self.relevance(self.activation(self.unit(torch.cat([past, past * item, item], 2))))
        return self.mlp(torch.cat([x, (weight * past).sum(1)], 1))


class Recurrent(nn.Module):
    """GRU4Rec (Hidasi et al. 2016): the last state of a GRU over the past events beside the fields, under an MLP."""

    def __init__(self, num_fields: int, dim: int, hidden: Sequence[int], *rest) -> None:
        super().__init__()
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.mlp = mlp((num_fields + 1) * dim, hidden, *rest)

    def past(self, events: Tensor, lengths: Tensor) -> Tensor:
        """The last state `[B, D]`, zero for a row without events."""
        states, _ = self.gru(events)
        rows = torch.arange(len(events), device=events.device)
        return states[rows, lengths.clamp(min=1) - 1] * (lengths > 0).unsqueeze(1)

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        """Logits `[B, 1]`."""
        assert past is not None
        return self.mlp(torch.cat([x, past], 1))


BACKBONES = ("wide_deep", "deepfm", "pnn", "afn", "din", "gru4rec")
WITH_HISTORY = ("din", "gru4rec")


def build(name: str, num_fields: int, dim: int, log_neurons: int, *rest) -> nn.Module:
    """A backbone by its name; `rest` is hidden widths, whether BatchNorm, and dropout of its MLP."""
    if name in ("wide_deep", "deepfm"):
        return LinearAndMlp(num_fields, dim, name == "deepfm", *rest)
    if name == "afn":
        return LogarithmicNeurons(num_fields, dim, log_neurons, *rest)
    return {"pnn": InnerProducts, "din": Interest, "gru4rec": Recurrent}[name](num_fields, dim, *rest)
