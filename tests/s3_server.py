"""A server that speaks S3 and that fails as servers do, as the fixture `s3` of every test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BUCKET = "shop"


class Faulty:
    """The S3 server behind a list of faults: each hits the next request of its method whose path holds its word."""

    def __init__(self, app: Any) -> None:
        self.app, self.faults, self.seen = app, [], []

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.seen.append((method, path))
        for fault in self.faults:
            kind, of, word = fault
            if of == method and word in path:
                self.faults.remove(fault)
                return getattr(self, kind)(environ, start)
        return self.app(environ, start)

    def error(self, environ: dict[str, Any], start: Any) -> Any:
        start("500 Internal Server Error", [("Content-Length", "0")])
        return [b""]

    def refuse(self, environ: dict[str, Any], start: Any) -> Any:
        """An error that Arrow passes on at once: an `error` or a `cut` it tries again for six seconds."""
        start("501 Not Implemented", [("Content-Length", "0")])
        return [b""]

    def slow(self, environ: dict[str, Any], start: Any) -> Any:
        threading.Event().wait(1.0)
        return self.app(environ, start)

    def cut(self, environ: dict[str, Any], start: Any) -> Any:
        """Half of the body, then nothing more."""
        content = b"".join(self.app(environ, start))

        def half() -> Iterator[bytes]:
            yield content[: len(content) // 2]
            raise ConnectionResetError

        return half()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[tuple[Faulty, str]]:
    moto_server = pytest.importorskip("moto.server", reason="no moto[s3], flask and flask-cors")
    from werkzeug.serving import make_server

    faulty = Faulty(moto_server.DomainDispatcherApplication(moto_server.create_backend_app))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        listening = make_server("127.0.0.1", 0, faulty, threaded=True)
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        query = f"endpoint_override=127.0.0.1:{listening.port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        from pyarrow import fs

        system, _ = fs.FileSystem.from_uri(f"s3://{BUCKET}/x?{query}")
        system.create_dir(BUCKET)
        yield faulty, query
        listening.shutdown()
        thread.join()


@pytest.fixture
def s3(s3_server: tuple[Faulty, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Faulty, Any]]:
    """(the server without faults, URI of a name in a folder of this test's own), and an empty cache."""
    monkeypatch.setenv("MWUF_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("mwuf_dist.data.remote._WAITS_S", (0.0, 0.0))
    faulty, query = s3_server
    faulty.faults.clear()
    faulty.seen.clear()
    yield faulty, lambda name: f"s3://{BUCKET}/{tmp_path.name}/{name}?{query}"
    faulty.faults.clear()
