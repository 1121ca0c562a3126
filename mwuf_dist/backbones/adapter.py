"""A user's own `torch.nn.Module` as a backbone."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from mwuf_dist.backbones.base import Backbone, Shape
from mwuf_dist.backbones.layers import RowDropout
from mwuf_dist.config import BackboneConfig, UserError


def as_backbone(cls: type[nn.Module], config: BackboneConfig, shape: Shape) -> Backbone:
    """Builds `cls(config, shape)` and puts `AdaptedModule` around a module that is no `Backbone`.

    Raises:
        UserError: a `Backbone` whose forward does not take what every backbone's takes.
    """
    module = cls(config, shape)
    _drop_by_place(module)
    parameters = inspect.signature(module.forward).parameters
    if isinstance(module, Backbone):
        if "row_weight" not in parameters:
            raise UserError(
                f"backbone.name = {config.name!r}: a subclass of Backbone needs a forward(self, item, context, "
                "row_weight=None); a plain torch.nn.Module may leave row_weight out"
            )
        return module
    return AdaptedModule(module, "row_weight" in parameters, config, shape)


def _drop_by_place(module: nn.Module) -> None:
    """Puts `RowDropout` instead of each `torch.nn.Dropout`, whose masks would change with the number of ranks."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, RowDropout(child.p))


class AdaptedModule(Backbone):
    """Calls a module whose forward is (item, context) or (item, context, row_weight), and checks what it returns.

    Args:
        module: the user's. It sees padding (rows of weight 0 at the end of an epoch) like any other row; only moments
            over the batch can tell, and `layers.GlobalBatchNorm` takes them without it and over all ranks.
        takes_row_weight: whether its forward has the third argument.
        config: section `backbone`.
        shape: the fields.
    """

    def __init__(self, module: nn.Module, takes_row_weight: bool, config: BackboneConfig, shape: Shape) -> None:
        super().__init__(config, shape)
        self.module = module
        self._takes_row_weight = takes_row_weight

    def forward(
        self, item: torch.Tensor, context: torch.Tensor, row_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """See `Backbone.forward`.

        Raises:
            UserError: the module does not return one logit per row.
        """
        logit = self.module(item, context, row_weight) if self._takes_row_weight else self.module(item, context)
        if logit.shape != item.shape[:1]:
            raise UserError(
                f"backbone.name = {self.config.name!r}: its forward returned {tuple(logit.shape)} for {len(item)} rows,"
                f" it must return logits of shape ({len(item)},)"
            )
        return logit
