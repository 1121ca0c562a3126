"""Stage `prepare`: raw data to shards, in steps that any number of workers share. Callers need `prepare` alone."""

from mwuf_dist.data.prepare.prepare import prepare

__all__ = ["prepare"]
