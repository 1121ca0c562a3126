"""Every loop gives the same bits on any number of threads, and its threads survive a fork and end with the process."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from mwuf_kernels import (
    BatchSide,
    EntityFields,
    FrozenRows,
    PairWeights,
    PartRows,
    TrainedLayer,
    TrainedNorm,
    TrainedRows,
    add_table_rows_,
    meta_networks,
    native,
    set_num_threads,
    table_rows,
)

from tests.waiting import LONGEST_S, wait_until

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C++ compiler")
ROWS, ITEMS, DIM = 3000, 700, 16
Tensors = list[torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread_afterwards() -> Iterator[None]:
    yield
    set_num_threads(1)


def draws(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def places(num: int, of: int) -> torch.Tensor:
    # Squared: a few are named many times, some never.
    return (torch.rand(num, generator=torch.Generator().manual_seed(num)).square() * of).long()


def frozen_rows(has_pairs: bool = False) -> Tensors:
    pairs, kept = (PairWeights(draws(4, 64) / 8, draws(3, 2, 64) / 8), 5 * DIM) if has_pairs else (None, DIM)
    layers = [(draws(64, 64) / 8, draws(64)), (draws(1, 64), draws(1))]
    head = FrozenRows(draws(DIM, 64), layers, draws(DIM), not has_pairs, pairs)
    rows = PartRows(draws(900, 64 + kept + 1) / 4, places(ROWS, 900), places(ROWS + 1, 900)[1:])
    d_items = torch.zeros(2, ITEMS, DIM)
    labels = (draws(ROWS) > 0).float()
    loss = head.loss_and_gradient(rows, draws(2, ITEMS, DIM), places(ROWS, ITEMS), labels, None, 0.1, d_items)
    return [loss, d_items, head.logits(rows)]


def trained_rows(batch_norm: bool, hidden: tuple[int, ...] = (64, 32), num_pairs: int = 0) -> Tensors:
    layers, width, moments = [], 5 * DIM + num_pairs, []
    for out in hidden:
        norm = TrainedNorm(draws(out), draws(out), torch.zeros(out), torch.ones(out), 0.1, 1e-5) if batch_norm else None
        moments += [norm.running_mean, norm.running_var] if norm else []
        noise = (draws(ROWS, out) > -1).float()
        layers.append(TrainedLayer(draws(out, width) / width**0.5, None if norm else draws(out), norm, noise))
        width = out
    sides = [
        BatchSide(draws(ITEMS, 3 * DIM), places(ROWS, ITEMS), 0),
        BatchSide(draws(ROWS, DIM), None, 3 * DIM),
        BatchSide(draws(90, DIM), places(ROWS, 90), 4 * DIM),
    ]
    out = (draws(width), draws(1)) if hidden else None
    linear = None if num_pairs else (draws(5 * DIM), draws(1))
    rows = TrainedRows(sides, layers, linear, out, DIM, not num_pairs, num_pairs)
    logit = rows.forward()
    found = rows.backward(logit.sin())
    per_layer = [gradient for layer in found.layers for gradient in vars(layer).values() if gradient is not None]
    others = [gradient for gradient in (found.linear, found.bias, found.out) if gradient is not None]
    return [logit, *moments, *found.sides, *per_layer, *others]


def fields_of_entities() -> Tensors:
    lengths = torch.randint(4, (ITEMS, 3), generator=torch.Generator().manual_seed(0))
    ends = lengths.sum(1).cumsum(0)
    fields = EntityFields(places(int(ends[-1]), 200), lengths, ends - lengths.sum(1), 3, True)
    entities, gradient = places(ROWS, ITEMS), draws(200, DIM)
    found = table_rows(draws(200, DIM), fields, entities)
    add_table_rows_(gradient, fields, entities, found.sin())
    return [found, gradient]


def networks() -> Tensors:
    h, g = [(draws(32, width), draws(32), draws(DIM, 32), draws(DIM)) for width in (80, DIM)]
    weights = [weight.requires_grad_() for weight in (*h, *g)]
    scale, shift = meta_networks(draws(ROWS, 80), draws(ROWS, DIM), h, g, residual=True)
    slopes = [scale.detach().sin(), shift.detach().sin()]
    return [scale.detach(), shift.detach(), *torch.autograd.grad([scale, shift], weights, slopes)]


OPS: dict[str, Callable[[], Tensors]] = {
    "frozen rows": frozen_rows,
    "frozen rows with pairs": lambda: frozen_rows(has_pairs=True),
    "trained rows": lambda: trained_rows(False),
    "trained rows with BatchNorm": lambda: trained_rows(True),
    "trained rows without layers": lambda: trained_rows(False, ()),
    "trained rows with pairs": lambda: trained_rows(False, num_pairs=10),
    "trained rows with pairs and BatchNorm": lambda: trained_rows(True, num_pairs=10),
    "fields of entities": fields_of_entities,
    "networks": networks,
}


@pytest.mark.parametrize("op", OPS)
def test_the_bits_do_not_depend_on_the_number_of_threads(op: str) -> None:
    set_num_threads(1)
    expected = OPS[op]()
    for num_threads in (2, 3, 8, 2):
        set_num_threads(num_threads)
        for found, value in zip(OPS[op](), expected, strict=True):
            assert torch.equal(found, value) and value.isfinite().all()


def holds_in_a_child(check: Callable[[], bool]) -> bool:
    """Whether something holds in a child of this process, which has one thread whatever this process has."""
    child = os.fork()
    if child == 0:
        holds = False
        try:
            holds = check()
        finally:
            os._exit(0 if holds else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def num_threads_of_process() -> int:
    return len(os.listdir("/proc/self/task"))


def test_as_many_threads_work_as_are_wanted_and_leave_when_they_are_not() -> None:
    def check() -> bool:
        for num_threads in (2, 6, 3):
            set_num_threads(num_threads)
            frozen_rows()
            wait_until(lambda wanted=num_threads: num_threads_of_process() <= wanted)  # some are on their way out
            if num_threads_of_process() != num_threads:
                return False
        return True

    assert holds_in_a_child(check)


def test_calls_from_several_threads_at_once_do_not_meet() -> None:
    set_num_threads(3)
    expected, found = trained_rows(True), {}
    workers = [threading.Thread(target=lambda k=k: found.update({k: trained_rows(True)})) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    for one in found.values():
        assert all(torch.equal(a, b) for a, b in zip(one, expected, strict=True))


def test_a_forked_child_has_threads_of_its_own() -> None:
    set_num_threads(3)
    expected = frozen_rows()

    def check() -> bool:
        same = all(torch.equal(a, b) for a, b in zip(frozen_rows(), expected, strict=True))
        return same and num_threads_of_process() == 3

    assert holds_in_a_child(check)


def test_a_process_ends_while_its_threads_sleep_or_work() -> None:
    """Also while another thread of Python's is in the middle of a loop.

    That thread calls the library alone: Python ends daemon threads where they next want the interpreter's lock, and in
    the middle of an operator of torch this aborts the process, whatever else it does.
    """
    script = (
        "import sys, threading; from mwuf_kernels import native\n"
        "from tests.kernels.test_threads import fields_of_entities, set_num_threads\n"
        "module = sys.modules['mwuf_kernels.table_rows']; calls, call = [], module.call\n"
        "module.call = lambda name, *given: (calls.append((name, given)), call(name, *given))\n"
        "set_num_threads(4); fields_of_entities()\n"
        "name, given = calls[-1]; loop = native._function(name, tuple(map(type, given)))\n"
        "given = [one if isinstance(one, (int, float)) else native.address(one) for one in given]\n"
        "def work():\n  while True: loop(*given)\n"
        "threading.Thread(target=work, daemon=True).start(); fields_of_entities()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_structure_of_another_size_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    found = native.library()
    assert found is not None
    native._check_structures(found)
    size = ctypes.sizeof(native._structures["head"])
    wrong = type("_Head", (ctypes.Structure,), {"_fields_": [("dim", ctypes.c_long), ("widths", ctypes.c_void_p)]})
    monkeypatch.setitem(native._structures, "head", wrong)
    with pytest.raises(AssertionError, match=f"structure head has 16 bytes here and {size} in the library"):
        native._check_structures(found)


def in_tasks(num_tasks: int, body: Callable[[int], None]) -> None:
    """Runs body(0), ..., body(num_tasks - 1) as tasks of a loop."""
    found = native.library()
    assert found is not None
    task = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_long)(lambda _, k: body(k))
    found["_Z9run_taskslPFvPvlES_"](ctypes.c_long(num_tasks), task, None)


def with_a_helper(body: Callable[[], Any], is_awaited: bool = False) -> tuple[int | None, Any]:
    """The caller's core, None where the system has moved it meanwhile, and what `body` returns in another thread.

    Meanwhile the caller is at a task of its own; if it `is_awaited`, the caller has done that and waits: then a thread
    that does not get to run, be it because of other programs, is moved.
    """
    sched_getcpu, has_come, found = ctypes.CDLL(None).sched_getcpu, threading.Event(), {}

    def task(k: int) -> None:
        if k == 0:
            found[k] = sched_getcpu(), has_come.wait(60)
            return
        if is_awaited:
            has_come.set()
        found[k] = body()
        has_come.set()

    set_num_threads(2)
    core = sched_getcpu()
    in_tasks(2, task)
    return core if found[0] == (core, True) else None, found[1]


@pytest.mark.parametrize("num_threads", [2, 5])
def test_each_task_is_done_once_the_callers_from_the_front_the_others_from_the_back(num_threads: int) -> None:
    done, caller, is_helped = [], threading.get_native_id(), threading.Event()

    def task(k: int) -> None:
        done.append((threading.get_native_id(), k))
        if done[-1][0] == caller:
            is_helped.wait(60)
        else:
            is_helped.set()

    set_num_threads(num_threads)
    in_tasks(100, task)
    mine = [k for thread, k in done if thread == caller]
    assert mine == list(range(len(mine))) and 0 < len(mine) < 100
    for other in {thread for thread, _ in done} - {caller}:
        of_other = [k for thread, k in done if thread == other]
        assert of_other == sorted(of_other, reverse=True)
    assert sorted(k for _, k in done) == list(range(100))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_a_thread_keeps_off_the_core_of_the_caller() -> None:
    cores = os.sched_getaffinity(0)
    for _ in range(100):
        core, _ = with_a_helper(lambda: os.sched_setaffinity(0, cores))
        if core is None:
            continue
        with_a_helper(lambda core=core: os.sched_setaffinity(0, {core}))
        now, of_helper = with_a_helper(lambda: os.sched_getaffinity(0))
        if now == core:
            assert of_helper == cores - {core}
            return
    pytest.fail("the system has moved this thread all the time")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_a_thread_that_does_not_run_gets_the_core_of_the_caller_while_that_waits() -> None:
    """One that sleeps in a task, which none of the loops does, stands for one that has lost its core."""
    cores = os.sched_getaffinity(0)

    def given() -> set[int]:
        os.sched_setaffinity(0, cores)
        end = time.monotonic() + 60
        while os.sched_getaffinity(0) == cores and time.monotonic() < end:
            time.sleep(0.05)
        return os.sched_getaffinity(0)

    for _ in range(100):
        core, of_helper = with_a_helper(given, is_awaited=True)
        assert len(of_helper) == 1
        now, of_helper = with_a_helper(lambda: os.sched_getaffinity(0))
        if core is not None and now is not None:
            assert of_helper == cores - {now}  # in the next loop it has left again
            return
    pytest.fail("the system has moved this thread all the time")
