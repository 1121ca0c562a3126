"""A run on a Ray cluster of several nodes with token authentication, all on this host: each node has one CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Any

import pytest
import tomli_w

from mwuf_dist.config import Config, merge, to_toml
from mwuf_dist.launch import local
from tests.bounds import SAME_AUC
from tests.cli.command import SHORT
from tests.faults.paced import paced
from tests.tiny import tiny
from tests.waiting import LONGEST_S, wait_until

# In processes of their own, because a process keeps the authentication of the first cluster that it has met.
pytestmark = [pytest.mark.ray, pytest.mark.dist, pytest.mark.slow]

SMALL: dict[str, dict[str, Any]] = {"backbone": {"hidden": [8]}, "pretrain": {"epochs": 3, "learning_rate": 5e-3}}
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}


class Nodes:
    """Two nodes, to lose and to add to."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.launch.nodes", "2"]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | TOKEN
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.address = self._read("address ").split()[1]

    def tell(self, word: str) -> None:
        """`lose` or `add`; returns when it is done."""
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)
        self._read("done")

    def _read(self, start: str) -> str:
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if line.startswith(start):
                return line
        raise AssertionError("".join(lines))

    def end(self) -> None:
        """Ends the nodes."""
        self._process.communicate(timeout=60)


@pytest.fixture
def nodes() -> Generator[Nodes]:
    cluster = Nodes()
    yield cluster
    cluster.end()


def start_run(config: Config, folder: Path, address: str, output: IO[str], **changed: str) -> subprocess.Popen[str]:
    """`mwuf run --launcher ray` with two ranks; the address in the environment, as in a job of `ray job submit`."""
    path = folder.with_suffix(".toml")
    path.write_text(to_toml(config))
    command = [sys.executable, "-m", "mwuf_dist", "run", str(path), "--output", str(folder)]
    command += ["--launcher", "ray", "--num-workers", "2"]
    environment = os.environ | TOKEN | {"RAY_ADDRESS": address} | changed
    return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True)


def check_equal(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    for phase, metrics in expected["phases"].items():
        assert found["phases"][phase]["auc_test"] == pytest.approx(metrics["auc_test"], abs=tolerance), phase


def test_two_ranks_on_two_nodes_give_the_result_of_one_process_and_a_wrong_token_is_refused(
    nodes: Nodes, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as output:
        assert start_run(tiny(**SMALL), tmp_path / "ray", nodes.address, output).wait(240) == 0, log.read_text()
        wrong = start_run(tiny(**SMALL), tmp_path / "no", nodes.address, output, RAY_AUTH_TOKEN="f" * 32)
        assert wrong.wait(120) == 2
    assert "no Ray cluster can be reached" in log.read_text() and not (tmp_path / "no").exists()
    found = json.loads((tmp_path / "ray" / "results.json").read_text())
    assert found["world_size"] == 2  # a node has room for one
    check_equal(found, local.train(tiny(**SMALL), tmp_path / "alone"), SAME_AUC)


@pytest.mark.timeout(600)
def test_a_run_goes_on_with_fewer_ranks_when_a_node_is_lost_and_with_more_when_one_comes(
    nodes: Nodes, tmp_path: Path
) -> None:
    # Three thousand steps, each of which takes a second until all of this has come to pass.
    go_on = tmp_path / "go-on"
    sections = {"pretrain": {"epochs": 60, "learning_rate": 1e-4}, "checkpoint": {"every_s": 0.5}}
    sections = merge(merge(SMALL, paced(go_on)), sections)
    config, folder, log = tiny(**sections), tmp_path / "ray", tmp_path / "log"
    pointer = folder / "checkpoints" / "LATEST"
    with log.open("w") as output:
        run = start_run(config, folder, nodes.address, output, PYTHONUNBUFFERED="1")

        def comes(condition: Callable[[], bool]) -> None:
            wait_until(lambda: condition() or run.poll() is not None, log.read_text)
            assert run.poll() is None, f"the run is over too early: {log.read_text()[-3000:]}"

        comes(pointer.exists)
        nodes.tell("lose")
        comes(lambda: "a rank was lost" in log.read_text())
        saved = pointer.read_text()
        comes(lambda: pointer.read_text() != saved)  # one rank goes on
        nodes.tell("add")
        comes(lambda: "more can go on" in log.read_text())
        go_on.touch()
        assert run.wait(LONGEST_S) == 0, log.read_text()[-3000:]
    found = json.loads((folder / "results.json").read_text())
    assert found["world_size"] == 2
    # Steps that were rolled back are not counted: every row once in each epoch.
    assert found["stages"]["pretrain"]["samples"] == 60 * found["split"]["pretrain"]
    undisturbed = tiny(**merge(sections, {"checkpoint": {"every_s": 0.0}}))
    check_equal(found, local.train(undisturbed, tmp_path / "alone"), SAME_AUC)


def test_a_comparison_spreads_its_runs_over_the_nodes_and_finds_what_one_process_finds(
    nodes: Nodes, tmp_path: Path
) -> None:
    config = tmp_path / "study.toml"
    runs = [{"method": {"name": name}} for name in ("base", "mwuf")]
    config.write_text(tomli_w.dumps(SHORT | {"study": {"seeds": 2, "runs": runs}}))

    def compare(output: str, *options: str, **changed: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mwuf_dist", "compare", str(config), "--output", str(tmp_path / output)]
        environment = os.environ | TOKEN | changed
        return subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, timeout=280, check=False
        )

    refused = compare("no", "--ray-address", nodes.address, RAY_AUTH_TOKEN="f" * 32)
    assert refused.returncode == 2 and "no Ray cluster can be reached" in refused.stderr
    spread, alone = compare("spread", "--ray-address", nodes.address), compare("alone", "--parallel", "1")
    assert spread.returncode == alone.returncode == 0, spread.stderr[-3000:] + alone.stderr[-3000:]
    found, expected = (
        json.loads((tmp_path / output / "comparison.json").read_text())["rows"] for output in ("spread", "alone")
    )
    assert len(found) == 2 and [row["phases"] for row in found] == [row["phases"] for row in expected]
