"""Fused operations of MWUF: torch and Triton only, with a CPU path of their own (see kernels/README.md)."""

from mwuf_kernels._autograd import backward_from
from mwuf_kernels.activation_unit import activation_unit
from mwuf_kernels.adam import AdamSettings, adam_step_, adam_step_by_row_
from mwuf_kernels.batch_norm import TrainedNorm
from mwuf_kernels.bulk_warm import bulk_warm, bulk_warm_reference
from mwuf_kernels.dropout_noise import dropout_noise_
from mwuf_kernels.frozen_rows import FrozenRows, PairWeights, PartRows, PowerWeights
from mwuf_kernels.history_attention import history_attention
from mwuf_kernels.history_gru import history_gru
from mwuf_kernels.log_neurons import LogNeurons, log_neurons
from mwuf_kernels.meta_networks import (
    Network,
    meta_networks,
    meta_networks_backward,
    meta_networks_reference,
)
from mwuf_kernels.native import has_library, has_loop, set_num_threads, without_library
from mwuf_kernels.pair_products import pair_products
from mwuf_kernels.segments import segment_sums, segments
from mwuf_kernels.table_rows import EntityFields, add_table_rows_, distinct_ids, table_rows
from mwuf_kernels.trained_rows import BatchSide, TrainedLayer, TrainedRows, sums_bytes
from mwuf_kernels.user_mean import user_mean, user_mean_reference
from mwuf_kernels.warm_embedding import warm_embedding, warm_embedding_backward, warm_embedding_reference

__all__ = [
    "AdamSettings",
    "BatchSide",
    "EntityFields",
    "FrozenRows",
    "LogNeurons",
    "Network",
    "PairWeights",
    "PartRows",
    "PowerWeights",
    "TrainedLayer",
    "TrainedNorm",
    "TrainedRows",
    "activation_unit",
    "adam_step_",
    "adam_step_by_row_",
    "add_table_rows_",
    "backward_from",
    "bulk_warm",
    "bulk_warm_reference",
    "distinct_ids",
    "dropout_noise_",
    "has_library",
    "has_loop",
    "history_attention",
    "history_gru",
    "log_neurons",
    "meta_networks",
    "meta_networks_backward",
    "meta_networks_reference",
    "pair_products",
    "segment_sums",
    "segments",
    "set_num_threads",
    "sums_bytes",
    "table_rows",
    "user_mean",
    "user_mean_reference",
    "warm_embedding",
    "warm_embedding_backward",
    "warm_embedding_reference",
    "without_library",
]
