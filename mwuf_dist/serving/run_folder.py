"""Keeps the name under which scripts written for earlier versions open a run; see `finished_run.py`."""

from mwuf_dist.serving.finished_run import FinishedRun, load_run, open_run
from mwuf_dist.serving.run_files import read_run

__all__ = ["FinishedRun", "load_run", "open_run", "read_run"]
