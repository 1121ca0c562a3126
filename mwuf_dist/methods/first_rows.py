"""What a new key of a growing table starts from: functions of raw IDs [n] for `mwuf_dist/embeddings/growing.py`.

A table of one's own loop has no split into old and new items, so each takes what it learns from as it is given: rows of
IDs that have had many clicks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mwuf_dist.methods.meta_warm_up import MetaWarmUp

Rows = Callable[[torch.Tensor], torch.Tensor]


def common_rows(known: torch.Tensor) -> Rows:
    """Gives every ID the mean of known rows [m, D]: the common initialisation."""
    mean = known.detach().float().mean(dim=0)
    return lambda raw_ids: mean.expand(len(raw_ids), -1)


def content_rows(known: torch.Tensor, known_fields: torch.Tensor, fields_of: Rows, ridge: float = 1.0) -> Rows:
    """Gives an ID the row that a ridge regression on its fields predicts.

    Args:
        known: rows [m, D].
        known_fields: fields of the same IDs [m, C].
        fields_of: raw IDs [n] -> their fields [n, C].
        ridge: strength; a constant column, which it leaves alone, is added.
    """
    fields, rows = known_fields.detach().double(), known.detach().double()
    mean_fields, mean_row = fields.mean(dim=0), rows.mean(dim=0)
    centred = fields - mean_fields
    gram = centred.T @ centred + ridge * torch.eye(fields.shape[1], dtype=torch.float64, device=fields.device)
    weight = torch.linalg.solve(gram, centred.T @ (rows - mean_row))

    def predicted(raw_ids: torch.Tensor) -> torch.Tensor:
        return (mean_row + (fields_of(raw_ids).double() - mean_fields) @ weight).float()

    return predicted


def mwuf_rows(warm_up: MetaWarmUp, start: Rows, fields_of: Rows, user_of: Rows) -> Rows:
    """Gives an ID the warm embedding that MWUF makes of a first row, v * scale + shift (SIGIR 2021, equation 5).

    Args:
        warm_up: the trained networks.
        start: raw IDs [n] -> rows that are warmed up [n, D], the common ones, say.
        fields_of: raw IDs [n] -> embeddings of the items' own fields [n, item_width].
        user_of: raw IDs [n] -> mean embedding of the users that each has had; the mean user where it has had none
            [n, user_width].
    """

    @torch.no_grad()
    def warmed(raw_ids: torch.Tensor) -> torch.Tensor:
        return warm_up(start(raw_ids), fields_of(raw_ids), user_of(raw_ids))[1]

    return warmed
