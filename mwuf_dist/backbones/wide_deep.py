"""Wide & Deep (Cheng et al., DLRS 2016): a linear part beside an MLP, both over all field embeddings."""

from __future__ import annotations

from mwuf_dist.backbones.base import LinearFirstLayer


class WideDeep(LinearFirstLayer):
    """Wide & Deep (Cheng et al., DLRS 2016): a linear part beside an MLP, both over all field embeddings."""

    uses_interactions = False
    uses_mlp = True
