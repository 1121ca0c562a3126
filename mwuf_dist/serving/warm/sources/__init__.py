"""Where `mwuf warm --follow` takes interactions from: one file each, behind the interface of `interface.py`."""

from __future__ import annotations

from pathlib import Path

from mwuf_dist.config.logs import LogsConfig
from mwuf_dist.serving.warm.sources.folder import FolderSource
from mwuf_dist.serving.warm.sources.interface import Source, Taken

__all__ = ["FolderSource", "Source", "Taken", "source_of"]


def source_of(named: Path | str, options: LogsConfig, settings: Path | None = None, skip_lost: bool = False) -> Source:
    """Returns the source that an option names: a topic (`kafka://HOST:PORT/TOPIC`), or else a folder.

    Args:
        named: folder or URI; a `Path` has lost a slash of it.
        options: names of the columns, see `log_options`.
        settings: file of further settings of the client of Kafka.
        skip_lost: go on where messages are gone that had not been taken.

    Raises:
        UserError: it is not there, or its library is missing.
    """
    if not str(named).startswith("kafka:/"):
        return FolderSource(Path(named))
    from mwuf_dist.serving.warm.sources.kafka import KafkaSource

    return KafkaSource.named(str(named), options, settings, skip_lost)
