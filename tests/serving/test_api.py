"""Whatever the Python API of a finished run is asked, it answers or says what is wrong; it never reads elsewhere."""

from __future__ import annotations

import datetime
import decimal
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mwuf_dist.config import UserError
from mwuf_dist.serving.finished_run import FinishedRun

NUM_CALLS = 10_000
TYPES = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64, torch.bool)
FAR = (-(2**63), -(2**31), -1, 2**31, 2**40, 2**63 - 1)


def arguments(random: np.random.Generator, num: int) -> Any:
    """Indices below `num`, most of them right, in one of many forms; some wrong in value, type or shape."""
    size = int(random.integers(4))
    values = random.integers(num, size=size)
    if size and random.random() < 0.3:
        place = random.integers(size)
        values[place] = random.choice([*FAR, num, num + 1, num + 10**6]) if random.random() < 0.9 else values[place]
    form = random.integers(8)
    if form == 0:
        return values.tolist()
    if form == 1:
        return values.astype(random.choice(["int32", "uint32", "int64", "uint64", "float32", "int16", "object"]))
    tensor = torch.from_numpy(values)
    if form == 2:
        return tensor.to(TYPES[random.integers(len(TYPES))])
    if form == 3:
        return tensor[None] if random.random() < 0.5 else torch.tensor(int(values[0]) if size else 0)
    if form == 4:
        return tensor.repeat_interleave(2)[::2]  # not contiguous
    return tensor.to(torch.int32) if form == 5 else tensor


def raw_ids(random: np.random.Generator, known: list[Any]) -> Any:
    odd = (None, True, b"x", "", "1.0", 1.5, float("nan"), float("inf"), 10**30, -1, [1], {"a": 1}, object(), "\ud800")
    odd += (datetime.date(2020, 1, 1), decimal.Decimal("1"), np.int32(1), np.float64(2), "9" * 5000, "\x00", ())
    return known[random.integers(len(known))] if random.random() < 0.5 else odd[random.integers(len(odd))]


def test_ten_thousand_calls_with_anything_answer_or_name_the_fault(run: FinishedRun) -> None:
    random = np.random.default_rng(0)
    users, items = run.prepared.num_users, run.num_items
    ids = {"item": run.item_ids.to_pylist(), "user": run.user_ids.to_pylist()}
    calls: list[Callable[[], Any]] = [
        lambda: run.scores(arguments(random, users), arguments(random, items)),
        lambda: run.context(arguments(random, users), arguments(random, items)),
        lambda: run.embeddings(arguments(random, items)),
        lambda: run.warm_embeddings(arguments(random, items)),
        lambda: run.meta_inputs(arguments(random, items)),
        lambda: run.item_context(arguments(random, items)),
        lambda: run.user_context(arguments(random, users)),
        lambda: run.phase_codes(arguments(random, items)),
        lambda: run.index_of(raw_ids(random, ids["item"])),
        lambda: run.index_of(raw_ids(random, ids["user"]), "user"),
    ]
    ended = Counter()
    for number in range(NUM_CALLS):
        call = number % len(calls)
        try:
            found = calls[call]()
        except UserError as error:
            ended[call, "refused" if str(error) else "refused without a word"] += 1
            continue
        ended[call, "answered"] += 1
        for one in found if isinstance(found, tuple) else (found,):
            assert not isinstance(one, torch.Tensor) or bool(one.isfinite().all())
    # Both happen to every method, so that neither a method that refuses all nor one that takes all passes.
    assert all(ended[call, how] > 20 for call in range(len(calls)) for how in ("answered", "refused")), ended
    assert not any(how == "refused without a word" for _, how in ended)


@pytest.mark.parametrize("wrong", [-1, None, 2**40], ids=["-1", "the number of them", "far away"])
def test_an_index_that_does_not_exist_is_an_index_error_that_gives_the_range(
    run: FinishedRun, wrong: int | None
) -> None:
    user = run.prepared.num_users if wrong is None else wrong
    item = run.num_items if wrong is None else wrong
    with pytest.raises(IndexError, match=rf"user {user} is out of range: there are {run.prepared.num_users}"):
        run.scores([user], [0])
    with pytest.raises(IndexError, match=rf"item {item} is out of range: there are {run.num_items}"):
        run.context([0], [item])
    with pytest.raises(ValueError, match="2 users and 1 items are no pairs"):
        run.scores([0, 1], [0])
    with pytest.raises(ValueError, match="item 0 is old"):
        run.warm_embeddings([0])


def test_any_integer_type_gives_the_same_scores(run: FinishedRun) -> None:
    users, items = [3, 7, 7, 0], [0, run.num_items - 1, 5, run.num_old_items]
    expected = run.scores(torch.tensor(users), torch.tensor(items))
    for kind in (torch.int16, torch.int32):
        assert torch.equal(run.scores(torch.tensor(users, dtype=kind), torch.tensor(items, dtype=kind)), expected)
    assert torch.equal(run.scores(np.array(users, dtype=np.uint32), items), expected)
    # Views that go backwards or belong to Arrow, which torch cannot share.
    backwards = np.array(users[::-1])[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run.scores(backwards, pa.array(items).to_numpy()), expected)
    assert run.scores([], []).shape == (0,) and run.embeddings([]).shape == (0, run.model.dim)


def test_users_are_found_by_their_raw_ids_and_unknown_ones_are_named(run: FinishedRun) -> None:
    for index in (0, len(run.user_ids) - 1):
        raw = run.user_ids[index].as_py()
        assert run.index_of(raw, "user") == run.index_of(str(raw), "user") == run.index_of(float(raw), "user") == index
    for absent in (10**9, "nobody", None, True, 1.5, 10**40):
        with pytest.raises(UserError, match=r"no user .* are the mean user to it .*; IDs look like"):
            run.index_of(absent, "user")


def test_raw_ids_are_found_in_any_form_that_logs_may_have_and_no_side_is_taken_for_another(run: FinishedRun) -> None:
    raw = run.item_ids[3].as_py()
    for written in (f"{raw}.0", f" {raw} ", f"00{raw}", f"{raw}".encode(), decimal.Decimal(f"{raw}.0"), f"{raw:.9e}"):
        assert run.index_of(written) == 3
    with pytest.raises(UserError, match="side 'users': it is 'item' or 'user'"):
        run.index_of(raw, "users")  # pyright: ignore[reportArgumentType]
    for wrong in (-1, run.num_items):
        with pytest.raises(IndexError, match=f"item {wrong} is out of range"):
            run.ids_of(np.array([wrong]))


def test_a_script_that_catches_nothing_ends_with_its_line_the_message_and_exit_code_2(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    script = f"""
from mwuf_dist.serving.finished_run import open_run
with open_run({str(run_folder)!r}) as run:
    print(len(run.scores([0], [1])))
    run.scores([10**6], [1])
"""
    with pytest.raises(UserError) as error:
        exec(compile(script, "script.py", "exec"), {})
    with pytest.raises(SystemExit) as end:  # as Python does with what a script does not catch
        sys.excepthook(error.type, error.value, error.tb)
    told = capsys.readouterr()
    assert (end.value.code, told.out) == (2, "1\n")
    assert told.err == (
        "mwuf: script.py:5: user 1000000 is out of range: there are 300; `index_of` finds those of raw IDs\n"
    )
