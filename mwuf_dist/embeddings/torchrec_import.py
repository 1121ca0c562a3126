"""TorchRec without what a run never uses of it: what a restart costs is imports for the most part.

Of the 6.7 CPU seconds that `import torchrec` takes beyond torch, 4.4 go to two modules that it touches in passing:
tensordict (for an `isinstance` of an input that no lookup has), which brings torch's compiler, and torch's symbolic
shapes (for guards on sizes that only a compiler leaves open), which bring sympy. While TorchRec is imported, something
else stands for them: functions that go to the real module when they are called, and classes of which nothing
is an instance. Afterwards they are gone, and whoever imports these modules gets the real ones.

Only a process that is a rank does this. A program that imports `mwuf_dist` gets TorchRec as it is.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from mwuf_dist.runtime.versions import installed

_PASSED_BY = ("tensordict", "torch.fx.experimental.symbolic_shapes")
# Others may use more of these modules.
_KNOWN_TORCHREC = ("1.8.", "1.9.")


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            return type(name, (Exception,), {"__module__": self.__name__})  # some are named in an `except`
        module = self.__name__

        def forward(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(module), name)(*args, **kwargs)

        return forward


def import_torchrec() -> None:
    """Imports TorchRec without the modules that a run passes by; an ordinary import where it is of another version."""
    stand_ins = []
    if "torchrec" not in sys.modules and (installed("torchrec") or "").startswith(_KNOWN_TORCHREC):
        import torch  # noqa: F401  with what it needs itself

        stand_ins = [name for name in _PASSED_BY if name not in sys.modules]
    for name in stand_ins:
        sys.modules[name] = _StandIn(name)
    try:
        import torchrec.distributed  # noqa: F401
    finally:
        for name in stand_ins:
            del sys.modules[name]
