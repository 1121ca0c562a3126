"""Rows that are alike stay alike, however many are computed at once."""

from __future__ import annotations

import torch

from mwuf_dist.embeddings.tiles import in_whole_tiles


def test_rows_that_are_alike_have_the_same_bits_however_many_there_are() -> None:
    """A product with a vector takes rows by fours on a processor with AVX-512, and what is left over in another way."""
    generator = torch.Generator().manual_seed(0)
    row, weight = torch.randn(1, 8, generator=generator), torch.randn(8, generator=generator)
    compute = in_whole_tiles(lambda rows: row.expand(len(rows), -1).contiguous() @ weight)
    expected = compute(torch.arange(1))
    for num_rows in range(1, 131):
        found = compute(torch.arange(num_rows))
        assert len(found) == num_rows and bool((found == expected).all()), num_rows


def test_a_tile_is_filled_with_rows_that_were_asked_for() -> None:
    asked: list[torch.Tensor] = []

    def compute(rows: torch.Tensor) -> torch.Tensor:
        asked.append(rows)
        return rows[:, None].double()

    assert in_whole_tiles(compute)(torch.arange(70, 75)).squeeze(1).tolist() == [70, 71, 72, 73, 74]
    assert in_whole_tiles(compute)(torch.empty(0, dtype=torch.int64)).shape == (0, 1)
    assert set(asked[0].tolist()) <= {70, 71, 72, 73, 74}
