"""What servers get beside Parquet, each read by a reader of its own: compiled, Triton, Faiss, Redis, TorchEasyRec."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mwuf_dist import cli
from mwuf_dist.config import UserError
from mwuf_dist.serving.check import check as check_module
from mwuf_dist.serving.check.check import serve_check
from mwuf_dist.serving.check.rehearsal import made_up_deltas
from mwuf_dist.serving.deltas.apply import apply
from mwuf_dist.serving.deltas.files import delta_files
from mwuf_dist.serving.deltas.reader import ItemTable, read_delta, values_of
from mwuf_dist.serving.export.export import export
from mwuf_dist.serving.finished_run import FinishedRun
from mwuf_dist.serving.writers import compiled, writer_of
from mwuf_dist.serving.writers.faiss import RECALL, build_index, unit_rows
from mwuf_dist.serving.writers.torcheasyrec import as_text


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "export.json").read_text())


@pytest.fixture(scope="module")
def compiled_export(opened: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export whose model is compiled, which takes the C++ compiler half a minute; all tests here share it."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("compiled") / "export"
    return export(opened, "torchscript-free", folder, old_items=True, context=True)


@pytest.fixture(scope="module")
def plain_export(opened: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(opened, "parquet", tmp_path_factory.mktemp("plain") / "export", old_items=True, context=True)


@pytest.fixture(scope="module")
def deltas(plain_export: Path) -> list[Path]:
    return made_up_deltas(plain_export, about(plain_export), plain_export.parent / "deltas")


def test_the_compiled_model_scores_as_the_run_does_at_any_batch_size(
    compiled_export: Path, opened: FinishedRun
) -> None:
    model = torch._inductor.aoti_load_package(str(compiled_export / about(compiled_export)["package"]))
    for num in (1, 2, 9, 700):
        users, items = torch.randint(opened.prepared.num_users, (num,)), torch.randint(opened.num_items, (num,))
        expected = opened.scores(users, items)
        found = model(opened.embeddings(items), opened.context(users, items))
        assert found.dtype == torch.float32
        scale = max(1.0, float(expected.abs().max()))
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=compiled.MOST_DIFFERENCE * scale)
    assert about(compiled_export)["package_difference"] <= compiled.MOST_DIFFERENCE
    assert (compiled_export / "model.pt2").exists()


def test_a_compiled_model_that_scores_otherwise_is_refused(
    compiled_export: Path, opened: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        compiled, "compile_program", lambda run, path: shutil.copy(compiled_export / "model-aoti.pt2", path)
    )
    compiled.write_package(opened, tmp_path / "model.pt2")
    right = opened.scores
    monkeypatch.setattr(FinishedRun, "scores", lambda self, users, items: right(users, items) + 1e-3)
    with pytest.raises(UserError, match=r"differs from the run"):
        compiled.write_package(opened, tmp_path / "model.pt2")


def test_the_triton_repository_is_one_by_the_schema_of_the_server(
    compiled_export: Path, opened: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="no tritonclient")
    from google.protobuf import text_format

    monkeypatch.setattr(
        compiled, "compile_program", lambda run, path: shutil.copy(compiled_export / "model-aoti.pt2", path)
    )
    folder = export(opened, "triton", tmp_path / "export", context=True)
    repository = folder / "triton" / "mwuf"
    config = text_format.Parse((repository / "config.pbtxt").read_text(), model_config.ModelConfig())
    assert config.name == repository.name and (config.backend, config.platform) == ("pytorch", "torch_aoti")
    assert sorted(path.name for path in repository.iterdir()) == ["1", "config.pbtxt"]
    # A batch of what the config says goes through the model that the server would load.
    model = torch._inductor.aoti_load_package(str(repository / "1" / config.default_model_filename))
    assert [one.data_type for one in (*config.input, *config.output)] == [model_config.TYPE_FP32] * 3
    given = [torch.zeros(5, *one.dims) for one in config.input]
    assert config.max_batch_size >= 5 and [list(one.reshape.shape) for one in config.output] == [[]]
    assert model(*given).shape == (5,)
    # The server takes an output of another rank as its `dims` say only where it is reshaped to them.
    assert config.output[0].HasField("reshape") and list(config.output[0].dims) == [1]
    assert about(folder)["package"] == "triton/mwuf/1/model.pt2"


def test_an_exact_index_finds_what_a_search_by_hand_finds(opened: FinishedRun, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="no faiss-cpu")
    folder = export(opened, "faiss", tmp_path / "export", old_items=True)
    index = faiss.read_index(str(folder / "items.faiss"))
    items = pq.read_table(folder / "items.parquet")
    vectors = unit_rows(values_of(items["embedding"]))
    cosines, labels = index.search(vectors[:20], 10)
    expected = vectors[:20].astype(np.float64) @ vectors.astype(np.float64).T
    np.testing.assert_allclose(cosines, -np.sort(-expected, axis=1)[:, :10], rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected, labels, axis=1), cosines, rtol=0, atol=1e-6)
    assert about(folder)["index"]["recall_at_100"] == 1.0


def test_the_recall_of_an_index_with_lists_is_what_it_says() -> None:
    pytest.importorskip("faiss", reason="no faiss-cpu")
    random = np.random.default_rng(3)
    centres = random.normal(size=(50, 16))
    vectors = unit_rows((centres[random.integers(50, size=6000)] + 0.3 * random.normal(size=(6000, 16))).astype("f4"))
    index, said = build_index(vectors, exact_up_to=1000)
    assert said["kind"] == "lists" and said["searched_lists"] < said["lists"]
    queries = vectors[random.choice(6000, 500, replace=False)]
    nearest = np.argsort(-(queries.astype(np.float64) @ vectors.astype(np.float64).T), axis=1)[:, :100]
    labels = index.search(queries, 100)[1]
    recall = np.mean([len(set(a) & set(b)) / 100 for a, b in zip(labels.tolist(), nearest.tolist(), strict=True)])
    assert said["recall_at_100"] >= RECALL
    assert abs(recall - said["recall_at_100"]) < 0.01  # other queries of the same vectors
    index.nprobe = 1
    assert np.mean([len(set(a) & set(b)) for a, b in zip(index.search(queries, 100)[1], nearest, strict=True)]) < 99


def test_the_table_of_torcheasyrec_is_an_id_and_a_vector_as_text(opened: FinishedRun, tmp_path: Path) -> None:
    folder = export(opened, "torcheasyrec", tmp_path / "export", old_items=True)
    table, items = (pq.read_table(folder / name) for name in ("init_table/part-0.parquet", "items.parquet"))
    assert table.column_names == ["item_id", "embedding"] and table["item_id"].equals(items["item_id"])
    read = np.array([[np.float32(one) for one in text.split(",")] for text in table["embedding"].to_pylist()])
    np.testing.assert_array_equal(read, values_of(items["embedding"]))
    odd = np.array([[1e-30, -3.4028235e38], [0.1, -0.0]], np.float32)
    texts = as_text(pa.FixedSizeListArray.from_arrays(pa.array(odd.reshape(-1)), 2)).to_pylist()
    np.testing.assert_array_equal(np.array([text.split(",") for text in texts]).astype(np.float32), odd)


@pytest.mark.parametrize("kind", ["faiss", "torcheasyrec"])
def test_deltas_go_into_what_is_made_of_the_items_too(
    kind: Any, opened: FinishedRun, deltas: list[Path], tmp_path: Path
) -> None:
    if kind == "faiss":
        pytest.importorskip("faiss", reason="no faiss-cpu")
    folder = export(opened, kind, tmp_path / "export", old_items=True, context=True)
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    apply(folder, deltas)
    items = pq.read_table(folder / "items.parquet")
    if kind == "faiss":
        import faiss

        index = faiss.read_index(str(folder / "items.faiss"))
        np.testing.assert_array_equal(index.reconstruct_n(0, index.ntotal), unit_rows(values_of(items["embedding"])))
    else:
        table = pq.read_table(folder / "init_table")
        assert table["item_id"].equals(items["item_id"]) and table["embedding"].equals(
            pa.chunked_array([as_text(items["embedding"])])
        )
    assert (folder / "model.pt2").read_bytes() == before["model.pt2"]
    assert (folder / "users.parquet").read_bytes() == before["users.parquet"]


def test_what_a_format_needs_is_said_before_anything_is_written(
    opened: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="--to"):
        export(opened, "redis", tmp_path / "export")
    with pytest.raises(UserError, match="only a format that fills a server"):
        export(opened, "parquet", tmp_path / "export", to="redis://127.0.0.1:1/0")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="no C\\+\\+ compiler"):
        export(opened, "triton", tmp_path / "export")
    for missing, kind in (("faiss", "faiss"), ("redis", "redis")):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(UserError, match=r"mwuf-dist\[" + missing):
            export(opened, kind, tmp_path / "export", to="redis://127.0.0.1:1/0" if kind == "redis" else "")
    assert not (tmp_path / "export").exists()
    with pytest.raises(UserError, match="no format 'onnx'"):
        writer_of("onnx")


# ---- Redis


def _redis_server(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """(a Redis server that listens, its port): another one where a program has taken the first meanwhile."""
    while True:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if "eady to accept connections" in line:
                return server, port
        server.wait()
        assert any("already in use" in line for line in said), said


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis server of its own, on a free port of this machine."""
    pytest.importorskip("redis", reason="no redis client")
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server: install the Debian package redis-server (make test-packages)")
    folder = tmp_path_factory.mktemp("redis")
    server, port = _redis_server(folder)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


def rows_in_redis(url: str, prefix: str, ids: list[Any]) -> tuple[dict[str, Any], dict[Any, dict[str, np.ndarray]]]:
    """(state, columns by ID) that one command reads, as docs/serving.md has it."""
    import redis

    client = redis.from_url(url)
    columns = json.loads(client.get(f"{prefix}:about"))["redis"]["columns"]
    layout = np.dtype([(name, kind, (width,) if width else ()) for name, kind, width in columns])
    state, *rows = client.hmget(f"{prefix}:items", ["state", *(f"id:{one}" for one in ids)])
    found = {one: np.frombuffer(row, layout)[0] for one, row in zip(ids, rows, strict=True) if row is not None}
    return json.loads(state), found


def test_redis_serves_the_export_and_then_each_delta(
    opened: FinishedRun, deltas: list[Path], redis_url: str, tmp_path: Path
) -> None:
    import redis

    to = f"{redis_url}#shop"
    folder = export(opened, "redis", tmp_path / "export", old_items=True, context=True, to=to)
    client = redis.from_url(redis_url)
    assert not client.keys("*unfinished*") and client.ttl("shop:items") == -1
    apply(folder, deltas[:2])
    apply(folder, deltas[2:])
    table = ItemTable.of_export(folder)
    ids, columns = table.items()
    state, rows = rows_in_redis(redis_url, "shop", ids)
    assert state == about(folder)["state"] and state["number"] == len(deltas) and len(rows) == len(ids)
    assert client.hlen("shop:items") == len(ids) + 1  # nothing of those that are gone
    phases = about(folder)["phases"]
    for place, one in enumerate(ids):
        row = rows[one]
        for name in ("embedding", "item_context", "interactions"):
            np.testing.assert_array_equal(row[name], columns[name][place])
        assert phases[row["phase"]] == columns["phase"][place]
    gone = read_delta(deltas[-1]).parts["retired"]["item_id"].to_pylist()
    assert not rows_in_redis(redis_url, "shop", gone)[1]
    users = client.hmget("shop:users", [f"id:{one}" for one in opened.user_ids.to_pylist()])
    expected = opened.user_context(torch.arange(len(users))).numpy()
    np.testing.assert_array_equal(np.array([np.frombuffer(one, "<f4") for one in users]), expected)


def test_a_delta_that_redis_has_already_is_passed_over_and_one_of_another_state_refused(
    opened: FinishedRun, deltas: list[Path], redis_url: str, tmp_path: Path
) -> None:
    to = f"{redis_url}#again"
    folder = export(opened, "redis", tmp_path / "export", old_items=True, context=True, to=to)
    shutil.copytree(folder, tmp_path / "killed")
    apply(folder, deltas[:3])
    # Killed before its folder appeared, but behind the server: the same command goes on.
    apply(tmp_path / "killed", deltas[:3])
    assert rows_in_redis(redis_url, "again", [])[0] == about(tmp_path / "killed")["state"]
    export(opened, "redis", tmp_path / "export", old_items=True, context=True, to=to)  # back to the first state
    with pytest.raises(UserError, match="does not go on from there"):
        apply(tmp_path / "killed", deltas[3:])
    assert rows_in_redis(redis_url, "again", [])[0]["number"] == 0


def test_a_redis_that_does_not_answer_is_a_message_and_no_export(opened: FinishedRun, tmp_path: Path) -> None:
    pytest.importorskip("redis", reason="no redis client")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(UserError, match="run the same command again"):
            export(opened, "redis", tmp_path / "export", to=f"redis://:secret@127.0.0.1:{port}/0")
    with pytest.raises(UserError, match="no URL of Redis"):
        export(opened, "redis", tmp_path / "export", to="http://127.0.0.1/0")
    assert not (tmp_path / "export").exists()


# ---- serve-check


def test_a_process_without_this_package_scores_as_the_run_does_while_deltas_come(
    compiled_export: Path, opened: FinishedRun, deltas: list[Path]
) -> None:
    found = serve_check(compiled_export, opened, deltas, num_requests=60, num_rows=32)
    assert found.is_good and found.difference <= check_module.MOST_DIFFERENCE * max(1.0, found.largest)
    # Deltas come when they come: between two of them there may be no answer, but some are of the first and of the last.
    assert found.num_deltas == len(deltas)
    assert {0, len(deltas)} <= set(found.versions) <= set(range(len(deltas) + 1))
    assert found.num_telling > 500 and found.largest > 0.5 and 0 < found.p50_ms <= found.p99_ms
    assert "none" in found.text().splitlines()[4]


def test_the_command_makes_deltas_up_where_none_are_named(plain_export: Path, run_folder: Path) -> None:
    # A process of its own: this one has its process group already.
    command = [sys.executable, "-m", "mwuf_dist", "serve-check", str(plain_export)]
    more = ["--run", str(run_folder), "--requests", "20", "--rows", "16"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 (made up for this check)" in done.stdout and "the one version they name: none" in done.stdout
    with pytest.raises(SystemExit) as end:
        cli.main(["serve-check", str(plain_export)])
    assert end.value.code == 2


# A table that is changed between the two halves of a request: each row is of some version, the answer of two.
TORN = """

class Torn(ItemTable):
    waiting, middle, done = threading.Event(), threading.Event(), threading.Event()

    def apply(self, delta):
        self.waiting.set()
        self.middle.wait()
        super().apply(delta)
        self.waiting.clear()
        self.middle.clear()
        self.done.set()

    def rows(self, item_ids):
        half = len(item_ids) // 2
        _, found, columns = super().rows(item_ids[:half])
        if self.waiting.is_set():
            self.done.clear()
            self.middle.set()
            self.done.wait()
        number, others, more = super().rows(item_ids[half:])
        columns = {name: np.concatenate([columns[name], more[name]]) for name in columns}
        return number, np.concatenate([found, others]), columns


ItemTable = Torn
"""


def test_a_table_that_mixes_two_versions_is_found_out(
    plain_export: Path, opened: FinishedRun, deltas: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reader.py").write_text(check_module.READER.read_text() + TORN)
    monkeypatch.setattr(check_module, "READER", tmp_path / "reader.py")
    found = serve_check(plain_export, opened, deltas, num_requests=60, num_rows=32)
    assert not found.is_good and found.num_mixed == found.num_wrong == len(deltas) and "WRONG" in found.text()


def test_an_export_that_cannot_be_checked_says_why(
    plain_export: Path, opened: FinishedRun, deltas: list[Path], tmp_path: Path
) -> None:
    for kind, context, why in (("npy", True, "reads Parquet"), ("parquet", False, "--context")):
        folder = export(opened, kind, tmp_path / f"{kind}", context=context)
        with pytest.raises(UserError, match=why):
            serve_check(folder, opened)
    apply(plain_export, deltas, tmp_path / "later")
    with pytest.raises(UserError, match="name the run that it was made of"):
        serve_check(tmp_path / "later", opened)
    with pytest.raises(UserError, match="no export is here"):
        serve_check(tmp_path / "nothing", opened)
    assert len(delta_files([deltas[0].parent])) == len(deltas)
