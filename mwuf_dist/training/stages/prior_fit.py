"""Part of stage `meta_train` for a method that `fits_prior`: the clicks of old items as lines in their rows."""

from __future__ import annotations

import numpy as np
import torch

from mwuf_dist.config import Config
from mwuf_dist.data.shards import Prepared
from mwuf_dist.methods import Lines, Method
from mwuf_dist.runtime import generator_seed
from mwuf_dist.training.frozen_model import Frozen
from mwuf_dist.training.stages.item_fit import line_of

# Of more old items this many are drawn, and of an epoch no more rows than this are read: the prior has a few thousand
# numbers, and the cost does not grow with the data.
_MOST_ITEMS = 2_000
_MOST_READ_ROWS = 1 << 19


def fit_prior(config: Config, frozen: Frozen, method: Method, prepared: Prepared) -> int:
    """Fits the method's prior to old items played as new; returns the number of rows that it has seen. A collective.

    A row's history lacks the row, and others of its user's, as in `pretrain`: the loaders are the same.
    """
    model, runtime = frozen.model, frozen.runtime
    drawn = torch.randperm(model.num_old, generator=torch.Generator().manual_seed(generator_seed(config.seed, 8)))
    place = torch.full((model.num_old,), -1)
    chosen = drawn[:_MOST_ITEMS].sort().values
    place[chosen] = torch.arange(len(chosen))
    place = place.to(runtime.device)
    loader = model.pretrain_rows(prepared, config.pretrain.order, config.pretrain.batch_size, config.seed)
    parts: list[list[torch.Tensor]] = []
    num_read = 0
    for batch in loader.epoch(0):
        with torch.no_grad():
            part = frozen.part(batch.user, batch.item, batch.history, batch.row_values)
        item = place[batch.item]
        kept = (item >= 0) & (batch.weight > 0)
        offset, slope = line_of(frozen.logit, part[kept], model.dim)
        own = [] if batch.row_weight is None else [batch.row_weight[kept].cpu()]
        parts.append([batch.label[kept].cpu(), item[kept].cpu(), offset.cpu(), slope.cpu(), *own])
        num_read += batch.num_rows
        # Every rank sees the same number of rows of the global batch, so that all stop together.
        if num_read >= _MOST_READ_ROWS:
            break
    # Every rank has the rows of its part of each batch: all of them get all, in the order of the ranks.
    own = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    columns = [torch.from_numpy(np.concatenate(column)) for column in zip(*runtime.gather(own), strict=True)]
    label, *lines = (column.to(runtime.device) for column in columns)
    clicks = Lines(*lines)
    item, order = clicks.item, torch.argsort(clicks.item, stable=True)
    first = torch.searchsorted(item[order], torch.arange(len(chosen), device=item.device))
    rank = torch.arange(len(order), device=item.device) - first[item[order]]
    order = order[rank < method.prior_rows]
    with torch.no_grad():
        context = model.item_fields(chosen.to(runtime.device))
    method.fit_prior(context, clicks.taken(order), label[order])
    return len(order)
