"""The initial rows of a TorchEasyRec dynamic embedding: its `init_table`, Parquet of an ID and a vector.

TorchEasyRec's `create_dynamicemb_init_ckpt` reads the ID from the first column and the vector from the second, as text
with a comma between two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mwuf_dist.serving.deltas.reader import Delta
from mwuf_dist.serving.writers.parquet import ITEMS, ParquetWriter

INIT_TABLE = "init_table"


class TorchEasyRecWriter(ParquetWriter):
    """Writes what Parquet has, and `init_table/part-0.parquet`: `item_id` and `embedding`, as text."""

    def files(self, folder: Path, entity: str) -> set[str]:
        """See `Writer.files`."""
        return super().files(folder, entity) | ({INIT_TABLE} if entity == "item" else set())

    def finish(self, folder: Path, about: dict[str, Any], deltas: Sequence[Delta] = ()) -> dict[str, Any]:
        """See `Writer.finish`."""
        (folder / INIT_TABLE).mkdir()
        items = pq.ParquetFile(folder / ITEMS)
        id_type = items.schema_arrow.field("item_id").type
        schema = pa.schema({"item_id": id_type, "embedding": pa.string()})
        with pq.ParquetWriter(folder / INIT_TABLE / "part-0.parquet", schema, compression="zstd") as writer:
            for group in range(items.num_row_groups):
                table = items.read_row_group(group, ["item_id", "embedding"])
                vectors = as_text(table["embedding"].combine_chunks())
                writer.write_table(pa.table({"item_id": table["item_id"], "embedding": vectors}, schema=schema))
        return {"init_table": f"{INIT_TABLE}/*.parquet"}


def as_text(vectors: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns vectors [n, D] as text, in the fewest digits that tell one float32 from its neighbours."""
    array = vectors.combine_chunks() if isinstance(vectors, pa.ChunkedArray) else vectors
    numbers = pc.cast(array.flatten(), pa.string())
    width = array.type.list_size
    offsets = pa.array(range(0, len(numbers) + 1, width), pa.int32())
    return pc.call_function("binary_join", [pa.ListArray.from_arrays(offsets, numbers), pa.scalar(",")])
