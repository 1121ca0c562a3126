"""Wide & Deep (Cheng et al., DLRS 2016): a linear part beside an MLP, both over all field embeddings."""

from __future__ import annotations

from mwuf_dist.backbones.linear import LinearFirstLayer


class WideDeep(LinearFirstLayer):
    """Wide & Deep (Cheng et al., DLRS 2016): a linear part beside an MLP, both over all field embeddings.

    Deviation: the wide part is w . e over the embeddings, not a weight of its own for each value and crossed pair.
    """

    uses_interactions = False
    uses_mlp = True
