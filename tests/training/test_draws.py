"""What training draws is a function of (seed, step, place in the global batch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mwuf_kernels import set_num_threads, without_library

from mwuf_dist.config import Config
from mwuf_dist.data.batches.loader import Batch, Loader
from mwuf_dist.data.batches.user_batches import UserLoader
from mwuf_dist.data.shards import Prepared
from mwuf_dist.runtime import draws, start
from mwuf_dist.training.run import _prepare
from tests.tiny import tiny

ROWS, WIDTH = 97, 13  # nothing that a draw of four units divides
CPU = torch.device("cpu")
BY_ROW: dict[str, Callable[[int], torch.Tensor]] = {
    "noise": lambda rows: draws.row_noise(torch.empty(rows, WIDTH), 0.3),
    "noise of three axes": lambda rows: draws.row_noise(torch.empty(rows, WIDTH, 3), 0.3),
    "uniform": lambda rows: draws.row_uniform(rows, WIDTH, CPU),
}


@pytest.mark.parametrize("name", BY_ROW)
def test_parts_of_a_batch_draw_what_the_whole_draws(name: str) -> None:
    draws.begin(3, 2, 0, 7, first_row=0)
    whole = [BY_ROW[name](ROWS) for _ in range(3)]
    assert not torch.equal(whole[0], whole[1])
    for first, last in ((0, 33), (33, 66), (66, ROWS)):
        draws.begin(3, 2, 0, 7, first_row=first)
        for drawn in whole:
            assert torch.equal(BY_ROW[name](last - first), drawn[first:last])


@pytest.mark.parametrize("key", [(4, 2, 0, 7), (3, 3, 0, 7), (3, 2, 1, 7), (3, 2, 0, 8)])
def test_another_seed_stage_epoch_or_step_draws_others(key: tuple[int, ...]) -> None:
    def drawn(key: tuple[int, ...]) -> list[torch.Tensor]:
        draws.begin(*key, first_row=0)
        return [*(draw(ROWS) for draw in BY_ROW.values()), draws.id_uniform(torch.arange(ROWS), WIDTH)]

    for a, b in zip(drawn(key), drawn((3, 2, 0, 7)), strict=True):
        assert (a != b).float().mean() > 0.3


def test_an_id_draws_the_same_wherever_it_stands() -> None:
    ids = torch.randint(1 << 40, (500,))
    draws.begin(1, first_row=0)
    found = draws.id_uniform(ids, 3)
    draws.begin(1, first_row=50)
    assert torch.equal(draws.id_uniform(ids.flip(0), 3), found.flip(0))
    assert len(found.unique()) > 1490


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.9])
def test_the_share_is_dropped_in_every_row_and_column_and_the_mean_is_kept(share: float) -> None:
    draws.begin(1, first_row=5)
    noise = draws.row_noise(torch.empty(1 << 12, 1 << 6), share)
    kept = noise > 0
    assert noise[kept].unique().tolist() == [pytest.approx(1 / (1 - share))]
    for axis in (0, 1):  # 5 deviations of each mean
        deviation = (share * (1 - share) / kept.shape[axis]) ** 0.5
        assert (1 - kept.float().mean(axis) - share).abs().max() < 5 * deviation
    # Neighbours, in a row or in a column, know nothing of each other.
    centred = (kept.double() - (1 - share)) / (share * (1 - share)) ** 0.5
    for a, b in ((centred[1:], centred[:-1]), (centred[:, 1:], centred[:, :-1])):
        assert abs((a * b).mean()) < 5 / kept.numel() ** 0.5


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (4, 3), (0, 5), (2000, 64)])
def test_the_loop_draws_the_noise_that_numpy_draws_on_any_number_of_threads(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)

    def drawn(threads: int, first_row: int) -> list[torch.Tensor]:
        set_num_threads(threads)
        draws.begin(1, 2, first_row=first_row)
        return [draws.row_noise(x, share) for share in (0.3, 0.0, 1e-6, 0.999999, 1.0)]

    try:
        for first_row in (0, 3, 1 << 40):
            with without_library():
                expected = drawn(1, first_row)
            for threads in (1, 2, 3, 8):
                for found, one in zip(drawn(threads, first_row), expected, strict=True):
                    assert torch.equal(found, one)
    finally:
        set_num_threads(1)


def test_uniform_numbers_are_uniform() -> None:
    draws.begin(1, first_row=0)
    for numbers in (draws.row_uniform(1 << 15, 3, CPU), draws.id_uniform(torch.arange(1 << 15), 3)):
        assert numbers.dtype == torch.float32 and numbers.min() >= 0 and numbers.max() < 1
        counts = torch.histc(numbers, 64, 0, 1).double()
        expected = numbers.numel() / 64
        assert ((counts - expected).square().sum() / expected).item() < 120  # chi square of 63: mean 63, deviation 11


def test_dropping_everything_leaves_zeros_and_no_nan() -> None:
    assert not draws.row_noise(torch.empty(3, 4), 1.0).any()


@pytest.fixture(scope="module")
def prepared() -> Iterator[Prepared]:
    with start(Config()) as runtime:
        yield _prepare(tiny(), runtime)


def _shuffled(prepared: Prepared, runtime: Any) -> Loader:
    return Loader(prepared, ["pretrain"], 192, 3, runtime)


def _in_time(prepared: Prepared, runtime: Any) -> Loader:
    return Loader(prepared, ["pretrain"], 192, 3, runtime, order="time")


def _by_user(prepared: Prepared, runtime: Any) -> UserLoader:
    return UserLoader(prepared, 192, 3, runtime)


@pytest.mark.parametrize("make", [_shuffled, _in_time, _by_user])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_a_row_stands_at_the_same_place_of_the_global_batch_on_any_number_of_ranks(
    make: Callable[[Prepared, Any], Any], ranks: int, prepared: Prepared
) -> None:
    """The last batch, which is not full, and lanes that the ranks cannot share evenly too."""

    def steps(rank: int, world_size: int) -> list[Batch]:
        runtime = SimpleNamespace(rank=rank, world_size=world_size, device=CPU, lane_coordinator="", threads=1)
        loader = make(prepared, runtime)
        batches = list(loader.epoch(1, loader.num_steps - 2))
        assert len(batches) == 2
        return batches

    def placed(batches: list[Batch]) -> dict[int, tuple[int, int]]:
        rows: dict[int, tuple[int, int]] = {}
        for batch in batches:
            for index in batch.weight.nonzero().squeeze(1).tolist():
                assert batch.first_row + index not in rows
                rows[batch.first_row + index] = int(batch.user[index]), int(batch.item[index])
        return rows

    whole = steps(0, 1)
    parts = [steps(rank, ranks) for rank in range(ranks)]
    for step in range(2):
        expected = placed([whole[step]])
        assert placed([part[step] for part in parts]) == expected
        assert len(expected) == whole[step].num_rows
