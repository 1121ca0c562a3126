"""DeepFM (Guo et al., IJCAI 2017): a factorization machine beside an MLP, over the same embeddings."""

from __future__ import annotations

from mwuf_dist.backbones.linear import LinearFirstLayer


class DeepFM(LinearFirstLayer):
    """DeepFM (Guo et al., IJCAI 2017): a factorization machine beside an MLP, over the same embeddings."""

    uses_interactions = True
    uses_mlp = True
