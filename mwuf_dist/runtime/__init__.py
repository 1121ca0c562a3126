"""Ranks, device and seeds (`runtime`), signs of life among ranks (`heartbeat`), how a run ends early (`shutdown`)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mwuf_dist.runtime.runtime import Runtime, generator_seed, start

__all__ = ["Runtime", "generator_seed", "start"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the command line needs `shutdown` and `versions` without waiting for torch.
    if name in __all__:
        from mwuf_dist.runtime import runtime

        return getattr(runtime, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
