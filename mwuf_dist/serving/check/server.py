"""Scores rows with an export while deltas are applied to it: what a server does, in a process that has no more.

Needs PyTorch, NumPy, PyArrow and `reader.py` (of `mwuf_dist/serving/deltas`), which stands beside a copy of this file:

    python -I server.py EXPORT WORK

WORK holds `plan.json` (rows of a request, requests, paths of deltas) and `requests.parquet` (user_id, item_id).
One thread answers the requests, from the first on again and again; another applies a delta whenever so many have been
answered. Both end when all deltas are in and every request has been answered since. `answers.npz` has of each answer
the request's number, the version that its rows were of, the logits (NaN for an item that is not there) and seconds.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch


def load_reader(path: Path) -> Any:
    """Returns the module `reader.py`, by its path."""
    spec = importlib.util.spec_from_file_location("reader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reader"] = module
    spec.loader.exec_module(module)
    return module


def load_model(export: Path, about: dict[str, Any]) -> Any:
    """Returns the compiled model of an export that has one, else its `torch.export` program."""
    if "package" in about:
        return torch._inductor.aoti_load_package(str(export / about["package"]))
    return torch.export.load(export / about["model"]).module()


class Server:
    """Answers requests, each with rows of one version.

    Args:
        items: by ID, with the columns of an export.
        users: likewise.
        stranger: context of a user who is not there.
        model: (embeddings, contexts) -> logits.
    """

    def __init__(self, items: Any, users: Any, stranger: list[float], model: Any) -> None:
        self.items, self.users, self.model = items, users, model
        self._stranger = np.array([stranger], dtype=np.float32)

    def apply(self, delta: Any) -> None:
        """Puts a delta in, of users before items; between the two nothing is answered."""
        self.users.apply(delta)
        self.items.apply(delta)

    @torch.no_grad()
    def answer(self, user_ids: list[Any], item_ids: list[Any]) -> tuple[int, np.ndarray]:
        """Returns (version, logits [n])."""
        while True:
            version, found, columns = self.items.rows(item_ids)
            of_users, known, contexts = self.users.rows(user_ids)
            if version == of_users:
                break
        of_strangers = np.repeat(self._stranger, len(user_ids), axis=0)
        users = np.where(known[:, None], contexts["user_context"], of_strangers) if contexts else of_strangers
        context = np.concatenate([columns["item_context"], users], axis=1)
        logits = self.model(torch.from_numpy(columns["embedding"]), torch.from_numpy(context)).numpy().copy()
        logits[~found] = np.nan
        return version, logits


def play(server: Server, reader: Any, work: Path) -> dict[str, np.ndarray]:
    """Answers the requests while another thread applies the deltas; see the head of this file."""
    plan = json.loads((work / "plan.json").read_text())
    rows = pq.read_table(work / "requests.parquet")
    user_ids, item_ids = (rows[name].to_pylist() for name in ("user_id", "item_id"))
    size, num = plan["rows"], plan["requests"]
    server.answer(user_ids[:size], item_ids[:size])  # what is compiled at the first call is not a server's time
    each = max(1, num // (len(plan["deltas"]) + 1))
    more = [threading.Event() for _ in plan["deltas"]]
    failed: list[BaseException] = []

    def put_in() -> None:
        try:
            for event, path in zip(more, plan["deltas"], strict=True):
                event.wait()
                server.apply(reader.read_delta(path))
        except BaseException as error:
            failed.append(error)

    applier = threading.Thread(target=put_in)
    applier.start()
    request, version, logits, seconds = [], [], [], []
    since = 0  # requests that have been answered since the last delta was in
    while since < num:
        if failed:
            raise failed[0]
        over = not applier.is_alive()
        at = len(request) % num
        part = slice(at * size, (at + 1) * size)
        clock = time.perf_counter()
        one, scores = server.answer(user_ids[part], item_ids[part])
        seconds.append(time.perf_counter() - clock)
        request.append(at)
        version.append(one)
        logits.append(scores)
        since += over
        if len(request) % each == 0 and len(request) // each <= len(more):
            more[len(request) // each - 1].set()
    applier.join()
    return {
        "request": np.array(request),
        "version": np.array(version),
        "logits": np.stack(logits),
        "seconds": np.array(seconds),
    }


def main() -> None:
    """Plays what the command line names."""
    torch.set_num_threads(1)
    export, work = Path(sys.argv[1]), Path(sys.argv[2])
    reader = load_reader(Path(__file__).with_name("reader.py"))
    about = json.loads((export / "export.json").read_text())
    tables = reader.ItemTable.of_export(export), reader.UserTable.of_export(export)
    server = Server(*tables, about["unknown_user"], load_model(export, about))
    answers = play(server, reader, work)
    np.savez(work / "answers.npz", **answers)  # pyright: ignore[reportArgumentType]
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    (work / "modules.json").write_text(json.dumps(modules))


if __name__ == "__main__":
    main()
