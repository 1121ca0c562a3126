"""Factorization machine (Rendle, ICDM 2010): first order and all pairs of fields."""

from __future__ import annotations

from mwuf_dist.backbones.linear import LinearFirstLayer
from mwuf_dist.config import BackboneConfig


class Fm(LinearFirstLayer):
    """Factorization machine (Rendle, ICDM 2010): first order and all pairs of fields.

    Deviation: the first order is w . e over the embeddings, not a weight of its own for each value of a feature.
    """

    Config = BackboneConfig
    config: BackboneConfig
    uses_interactions = True
    uses_mlp = False
    linear_in_item = True
    linear_in_user = True
