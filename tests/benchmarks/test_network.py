"""benchmarks/network: what a link of given bandwidth and delay does to packets, and which estimate stands beside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import network, shaped_link
from benchmarks.record import Figure, Row
from benchmarks.shaped_link import Link, Way
from mwuf_dist.config import UserError, to_toml
from tests.tiny import tiny
from tests.waiting import LONGEST_S

needs_hosts = pytest.mark.skipif(shaped_link.missing() is not None, reason=f"{shaped_link.missing()}")


def test_packets_take_their_bits_and_the_delay_and_wait_for_those_before_them() -> None:
    way = Way(Link(bits_per_s=8e3, delay_s=2.0))  # a thousand bytes take a second
    way.put(b"a" * 500, 10.0)
    way.put(b"b" * 1000, 10.1)
    assert way.next_s == pytest.approx(12.5)
    assert not list(way.arrived(12.4))
    assert list(way.arrived(12.6)) == [b"a" * 500]
    assert way.next_s == pytest.approx(13.5)
    way.link = Link(bits_per_s=8e6, delay_s=0.0)
    way.put(b"c", 12.6)
    assert list(way.arrived(13.6)) == [b"b" * 1000, b"c"], "nothing overtakes"
    assert way.next_s is None


def test_the_estimate_of_a_stage_is_the_plans_or_its_free_step_and_the_links_part() -> None:
    class Plan:
        def step_ms(self, link: Link) -> float:
            return 90.0 + 1e3 * link.delay_s

        def link_ms(self, link: Link, num_bytes: float, num_exchanges: int) -> float:
            return num_bytes * 8e9 / link.bits_per_s + num_exchanges * 1e3 * link.delay_s

    about = {"exchanges": 2, "bytes_sent": 30}
    measured = [{"link_bits_per_s": 4e9, "link_delay_s": 1e-3}, {"link_bits_per_s": 1e9, "link_delay_s": 4e-3}]
    rows = [
        Row(name, "ms", False, Figure.of("measured", [value]), config={"link": link}, more=about | measured[link])
        for name, link, value in (
            ("pretrain", 0, 90.0),
            ("pretrain", 1, 110.0),
            ("warm_up", 0, 8.0),
            ("warm_up", 1, 50.0),
        )
    ]
    found = network.rows_of(rows, [Link(1e12, 0.0), Link(1e9, 1e-3)], [Plan(), Plan()])
    assert [(row.name, row.config["gbit_per_s"]) for row in found] == [
        ("pretrain", "free"),
        ("pretrain", 1),
        ("warm_up", 1),
    ]
    assert [row.ours and row.ours.p50 for row in found] == [91.0, 94.0, 8.0 + (30 * 8 - 30 * 2) + 2 * (4 - 1)]
    assert [row.alternative and row.alternative.p50 for row in found] == [90.0, 110.0, 50.0]


def test_without_rights_the_command_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(to_toml(tiny()))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("sys.argv", ["network", str(tmp_path / "tiny.toml")])
    with pytest.raises(UserError, match="need root"):
        network.main()


_ASK = """
import socket, sys, time
from benchmarks.shaped_link import choose
if sys.argv[1] == "0":
    server = socket.create_server(("10.77.0.1", 5000))
    talk, _ = server.accept()
    while byte := talk.recv(1):
        talk.sendall(byte)
else:
    deadline = time.monotonic() + 200
    while True:
        try:
            talk = socket.create_connection(("10.77.0.1", 5000))
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
    for link in (0, 1):
        choose(link)
        begin = time.perf_counter()
        talk.sendall(b"x")
        assert talk.recv(1) == b"x"
        print(time.perf_counter() - begin, file=open(sys.argv[2], "a"))
"""


@needs_hosts
def test_two_hosts_talk_with_the_delay_of_the_link_that_one_chooses(tmp_path: Path) -> None:
    said = tmp_path / "said"
    commands = [[sys.executable, "-c", _ASK, str(place), str(said)] for place in (0, 1)]
    shaped_link.run_hosts(commands, [Link(1e9, 0.02), Link(1e9, 0.06)], dict(os.environ))
    short_s, long_s = map(float, said.read_text().split())
    assert short_s >= 0.04 and long_s >= 0.12


@needs_hosts
def test_nothing_is_left_of_the_hosts_when_the_command_is_killed() -> None:
    code = "import os; from benchmarks.shaped_link import *; "
    code += "run_hosts([['sh', '-c', 'echo up; sleep 600 & sleep 600']] * 2, [Link(1e9, 0.0)], dict(os.environ))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        assert [command.stdout.readline() for _ in range(2)] == ["up\n"] * 2
        command.send_signal(signal.SIGKILL)
        # Its end comes when the last process that could write has gone.
        assert command.communicate(timeout=LONGEST_S)[0] == ""
