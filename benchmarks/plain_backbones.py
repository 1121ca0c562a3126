"""The plain program's backbones: what one writes from the papers with torch alone.

Words as in `plain_torch`: B rows, D embedding width, F fields, the item ID among them. x `[B, F * D]` is the fields'
embeddings side by side with the item ID first; past is what a backbone made of the rows' histories, or None.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 1e-4  # AFN: |e| is not taken to be smaller, so that its logarithm stays finite
UNITS = 36  # DIN: hidden units of the activation unit
HEADS, INTERCEPT = 4, 0.775  # encoder: attention heads; the constant column of a user's vector


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


class Encoder(nn.Module):
    """The backbone `encoder` (its docstring has the model): what a user liked, attended to by the item's own fields.

    All old items are encoded once per batch, and attention is over all of them, with a bias of log(times liked):
    where they are a few thousand, two matrix products are less than a gather of every event.
    """

    def __init__(self, num_item_fields: int, num_fields: int, dim: int, hidden: Sequence[int], *rest) -> None:
        super().__init__()
        width, content, others = hidden[0], num_item_fields * dim, (num_fields - 2 - num_item_fields) * dim
        self.dim = dim

        def mlp_of(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))

        self.query = mlp_of(content, width)
        self.event_fields = nn.Linear(content, width)
        self.event_id = nn.Linear(dim, width, bias=False)
        self.event_label = nn.Embedding(2, width)
        self.event_out = nn.Linear(width, width)
        self.user = mlp_of(width + others + 1, width)
        self.attention_query = nn.Linear(width, width)
        self.attention_key = nn.Linear(width, width)
        self.attention_value = nn.Linear(width, width)
        self.cold = mlp_of(4 * width, 1)
        self.cold_user = nn.Linear(width, 1)
        self.taste = nn.Linear(width, dim - 1)

    def past(self, old: tuple[Tensor, Tensor], liked: Tensor, items: Tensor, users: Tensor) -> Tensor:
        """The logit without the item's ID and the user's taste `[B, 1 + D]`.

        Args:
            old: ID and field embeddings of every old item, `[N, D]` and `[N, F_i * D]`.
            liked: how often each row's user liked them, the row itself left out `[B, N]`.
            items: the rows' item fields `[B, F_i * D]`.
            users: the rows' user fields `[B, F_u * D]`, the ID first.
        """
        query = self.query(items)
        events = torch.relu(self.event_fields(old[1]) + self.event_id(old[0]) + self.event_label.weight[1])
        events = torch.relu(self.event_out(events))  # [N, W]
        number = liked.sum(1, keepdim=True)
        mean = liked @ events / number.clamp(min=1)
        user = self.user(torch.cat([mean, number.log1p() / 5, users[:, self.dim :]], 1))
        has_any = number > 0
        # A row without events attends to all, and what it finds is taken away. The logarithm of 0 is slow.
        bias = liked.clamp(min=1).log().masked_fill((liked == 0) & has_any, -torch.inf)
        q, k, v = (
            rows.unflatten(1, (HEADS, -1)).transpose(0, 1)
            for rows in (self.attention_query(query), self.attention_key(events), self.attention_value(events))
        )
        found = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias)[0]
        found = found.transpose(0, 1).flatten(1) * has_any
        cold = self.cold(torch.cat([user, found, query, user * query], 1)) + self.cold_user(user)
        taste = self.taste(torch.relu(user)) + users[:, : self.dim - 1]
        return torch.cat([cold, taste, taste.new_full((len(taste), 1), INTERCEPT)], 1)

    def forward(self, x: Tensor, past: Tensor | None) -> Tensor:
        """Logits `[B, 1]`."""
        assert past is not None
        return past[:, :1] + (x[:, : self.dim] * past[:, 1:]).sum(1, keepdim=True)


BACKBONES = ("wide_deep", "deepfm", "pnn", "afn", "din", "gru4rec", "encoder")
WITH_HISTORY = ("din", "gru4rec", "encoder")


def build(name: str, num_item_fields: int, num_fields: int, dim: int, log_neurons: int, *rest) -> nn.Module:
    """A backbone by its name; `rest` is hidden widths, whether BatchNorm, and dropout of its MLP."""
    if name == "encoder":
        return Encoder(num_item_fields, num_fields, dim, *rest)
    if name in ("wide_deep", "deepfm"):
        return LinearAndMlp(num_fields, dim, name == "deepfm", *rest)
    if name == "afn":
        return LogarithmicNeurons(num_fields, dim, log_neurons, *rest)
    return {"pnn": InnerProducts, "din": Interest, "gru4rec": Recurrent}[name](num_fields, dim, *rest)
