__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mwuf_dist.methods.meta_warm_up import MetaWarmUp

__all__ = ["MetaWarmUp"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the command line answers without waiting for torch.
    if name == "MetaWarmUp":
        from mwuf_dist.methods.meta_warm_up import MetaWarmUp

        return MetaWarmUp
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
