"""What does a step cost on two hosts, over a real network's bandwidth and delay, and does `mwuf plan` say so?

    python -m benchmarks.network configs/movielens-1m.toml      # as root
    python -m benchmarks.network configs/movielens-1m.toml --gbit-per-s 1 --delay-ms 0.1 1 [--section.key VALUE ...]

Two network namespaces of this machine play the hosts (`benchmarks.shaped_link`), one rank of one thread on each,
started by `torchrun` as on two hosts: the shared memory of one host is not used. Links take turns, among them one that
is as fast as this machine can pass packets ("free"); on each, steps exchange through sockets, as a run does
(`mwuf_dist/runtime/many_hosts.py`), and by gloo.

Beside the step of `pretrain` stands the estimate of `mwuf plan --ranks-per-host 1` for that network, made before and
after, with the bandwidth and the delay that were measured on it. The other stages `mwuf plan` does not know: beside
them stands their step on the free link, and on top what the plan's model of exchanges says of the difference. Both
hosts share this machine's memory and cores, so the estimate counts how much two ranks slow each other down here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks import shaped_link
from benchmarks.contest import Ours, full_batches
from benchmarks.ranks import as_shipped, take_turns
from benchmarks.record import Figure, Record, Row, command_line, read, table
from benchmarks.shaped_link import Link
from benchmarks.train_step import start_command
from mwuf_dist.config import Config, UserError
from mwuf_dist.data.batches.loader import Loader
from mwuf_dist.planning.devices import Device, Network, this_cpu
from mwuf_dist.planning.estimate import estimate, seconds_of_exchanges
from mwuf_dist.planning.report import counted
from mwuf_dist.runtime import Runtime, collectives, start
from mwuf_dist.runtime.many_hosts import ManyHosts
from mwuf_dist.training.run import Run, _prepare

STAGES = ("pretrain", "meta_train", "warm_up")
GOAL = 1.5  # times the estimate, or its inverse
_FREE = Link(1e12, 0.0)
_LARGE_BYTES = 4_000_000  # of the exchange by which a link's bandwidth is measured
_PORT = 29_500  # in a network of its own


def measure(config: Config, num_links: int, num_steps: int, rounds: int) -> list[Row]:
    """A row for each stage and link, on the ranks that `torchrun` has started: milliseconds of a step."""
    with tempfile.TemporaryDirectory() as folder, start(config) as runtime:
        direct = collectives._way.direct
        assert isinstance(direct, ManyHosts), "the ranks share memory, or have only gloo"
        ways: dict[str, Any] = {"sockets": direct, "gloo": _ByGloo()}
        job = Run(config, Path(folder), runtime, _prepare(config, runtime))
        batches = full_batches(Loader(job.prepared, ["pretrain"], config.pretrain.batch_size, config.seed, runtime))
        ours = Ours(job, lambda: next(batches))
        links = _links(direct, num_links, rounds, runtime)
        rows = []
        for stage in STAGES:
            step: Callable[[], object] = getattr(ours, stage)()
            step()
            with _counted(direct) as sent:
                step()
            about = {"exchanges": len(sent), "bytes_sent": sum(sent)}
            names = [f"{place} {way}" for place in range(num_links) for way in ways]
            steps = dict.fromkeys(names, step)

            def begins(name: str) -> None:
                place, way = name.split()
                collectives._way.direct = ways[way]
                _choose(int(place), runtime)

            seconds = take_turns(steps, num_steps, rounds, runtime, begins)
            collectives._way.direct = direct
            for place in range(num_links):
                found, by_gloo = (Figure.of("measured", [1e3 * s for s in seconds[f"{place} {way}"]]) for way in ways)
                more = about | {"gloo_ms": by_gloo.p50} | _measured(links[place])
                rows.append(Row(stage, "ms", False, found, config={"link": place}, more=more))
        job.session.recorder.close()
        runtime.barrier()
    return rows


def _choose(place: int, runtime: Runtime) -> None:
    if runtime.is_main:
        shaped_link.choose(place)


def _links(direct: ManyHosts, num_links: int, rounds: int, runtime: Runtime) -> list[Link]:
    """Returns what each link does, as one measures a network: a small exchange's time, and the rate of a large one.

    It is less than what the link was made for: Python passes the packets on, on the cores that the hosts compute on.
    """
    sent = {str(num): torch.zeros(num, dtype=torch.uint8) for num in (1, _LARGE_BYTES)}

    def exchange(size: str) -> Callable[[], None]:
        return lambda: direct.gather(torch.empty(2, int(size), dtype=torch.uint8), sent[size])

    steps: dict[str, Callable[[], object]] = {f"{p} {size}": exchange(size) for p in range(num_links) for size in sent}
    seconds = take_turns(steps, 3, rounds, runtime, lambda name: _choose(int(name.split()[0]), runtime))
    small, large = ([statistics.median(seconds[f"{p} {size}"]) for p in range(num_links)] for size in sent)
    return [Link(8 * _LARGE_BYTES / max(1e-9, more - less), less) for less, more in zip(small, large, strict=True)]


def _measured(link: Link) -> dict[str, float]:
    return {"link_bits_per_s": link.bits_per_s, "link_delay_s": link.delay_s}


def _measured_link(row: Row) -> Link:
    return Link(row.more["link_bits_per_s"], row.more["link_delay_s"])


class _ByGloo:
    """What `ManyHosts` does, by the operators of torch.distributed that it stands in for."""

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor)
        return tensor

    def sum_parts(self, out: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
        dist.reduce_scatter(out.view(-1), [part.reshape(-1) for part in parts])

    def gather(self, out: torch.Tensor, tensor: torch.Tensor) -> None:
        dist.all_gather_into_tensor(out.view(-1), tensor.view(-1))

    def exchange(self, out: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> None:
        flat = torch.empty_like(torch.cat(list(out)))
        dist.all_to_all_single(flat, torch.cat(list(parts)), [len(one) for one in out], [len(one) for one in parts])
        for one, found in zip(out, flat.split([len(one) for one in out]), strict=True):
            one.copy_(found)

    def give(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        lengths = torch.empty(len(parts), dtype=torch.int64)
        dist.all_to_all_single(lengths, torch.tensor([len(one) for one in parts]))
        out = [part.new_empty(length) for part, length in zip(parts, lengths.tolist(), strict=True)]
        self.exchange(out, parts)
        return out


@contextmanager
def _counted(direct: ManyHosts) -> Iterator[list[int]]:
    """Notes the bytes that this rank sends in every exchange with another one."""
    sent, real = [], direct._swap

    def noted(parts: dict[int, torch.Tensor], *theirs: Any) -> None:
        sent.append(sum(part.nbytes for part in parts.values()))
        real(parts, *theirs)

    with mock.patch.object(direct, "_swap", noted):
        yield sent


class Plan:
    """What `mwuf plan` says of two hosts that a link joins.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._counts, self._size = counted(config, 2)
        crowding = this_cpu(2).crowding  # the hosts share this machine
        self._here = replace(this_cpu(2, ranks_per_host=1), crowding=crowding)

    def _device(self, link: Link) -> Device:
        return self._here.joined_by(Network(link.bits_per_s / 8, link.delay_s, ranks_per_host=1))

    def step_ms(self, link: Link) -> float:
        """Of `pretrain`."""
        return 1e3 * estimate(self._config, self._counts, self._size, self._device(link)).step_s

    def link_ms(self, link: Link, num_bytes: float, num_exchanges: int) -> float:
        """What a link adds to a step: its bits and its delay, without the work of sending."""
        seconds = seconds_of_exchanges(num_bytes, num_exchanges, replace(self._device(link), latency_s=0.0), 2)
        return 1e3 * sum(seconds.values())


def rows_of(measured: list[Row], links: list[Link], plans: list[Any]) -> list[Row]:
    """Puts the estimate beside every measured step; link 0 is the free one."""
    free = {row.name: row for row in measured if row.config["link"] == 0}
    rows = []
    for row in measured:
        sent = (row.more["bytes_sent"], row.more["exchanges"])
        as_measured, on_free = (_measured_link(one) for one in (row, free[row.name]))
        begin = free[row.name].ours
        assert begin is not None
        said = [
            plan.step_ms(as_measured)
            if row.name == "pretrain"
            else begin.p50 + plan.link_ms(as_measured, *sent) - plan.link_ms(on_free, *sent)
            for plan in plans
        ]
        link = links[row.config["link"]]
        is_free = row.config["link"] == 0
        about = {"gbit_per_s": "free" if is_free else link.bits_per_s / 1e9, "delay_ms": 1e3 * link.delay_s}
        rows.append(replace(row, ours=Figure.of("estimated", said), alternative=row.ours, config=about))
    return [row for row in rows if row.name == "pretrain" or row.config["gbit_per_s"] != "free"]


def main() -> None:
    """Estimates, starts the hosts, estimates again, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/demo.toml")
    parser.add_argument("--gbit-per-s", type=float, nargs="+", default=[1, 10])
    parser.add_argument("--delay-ms", type=float, nargs="+", default=[0.1, 1], help="one way")
    parser.add_argument("--batch-size", type=int, default=8192, help="of the global batch")
    parser.add_argument("--steps", type=int, default=6, help="steps of one turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each link; the median counts")
    parser.add_argument("--output", type=Path, help="JSON file of the record")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)  # one of the ranks: where its rows go
    options, keys = parser.parse_known_args()
    warnings.filterwarnings("ignore")
    config = as_shipped([options.config, *keys], options.batch_size)
    links = [_FREE, *(Link(rate * 1e9, delay / 1e3) for rate in options.gbit_per_s for delay in options.delay_ms)]
    about = {"data": config.data.name, "backbone": config.backbone.name, "batch_size": options.batch_size}
    question = f"Two hosts and a link, mwuf plan's estimate (ours) and the measured step, {config.data.name}"
    if options.rank:
        rows = measure(config, len(links), options.steps, options.rounds)
        if os.environ["RANK"] == "0":
            Record(question, "", about, rows, 1).write(options.rank)
        return
    if (lacks := shaped_link.missing()) is not None:
        raise UserError(lacks)
    plans = [Plan(config)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        _start(path, links)
        measured = read(path).rows
    plans.append(Plan(config))
    record = Record(question, command_line("network", sys.argv[1:]), about, rows_of(measured, links, plans), threads=1)
    print(table([record]))
    print(f"goal: within {GOAL} times of the estimate")
    if options.output:
        record.write(options.output)


def _start(rows: Path, links: list[Link]) -> None:
    """Runs a rank on each of the hosts, with this command's own arguments."""
    host = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    host += [f"--master-addr={shaped_link.ADDRESSES[0]}", f"--master-port={_PORT}"]
    rank = ["-m", "benchmarks.network", *sys.argv[1:], "--rank", str(rows)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": shaped_link.DEVICE}
    shaped_link.run_hosts([[*host, f"--node-rank={place}", *rank] for place in range(2)], links, environment)


if __name__ == "__main__":
    start_command("network", main)
