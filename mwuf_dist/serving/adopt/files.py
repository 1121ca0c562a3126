"""What `mwuf adopt` is given: weights of a model that was trained elsewhere, and the code that makes it from them."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mwuf_dist.config import UserError
from mwuf_dist.training.checkpoint.files import stored_tensors


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `torch.distributed.checkpoint` folder or of a state dict file, by name.

    Raises:
        UserError: it is neither.
    """
    try:
        if path.is_dir():
            return stored_tensors(path)
        # Tensors and plain containers only, as there: a pickle could run anything.
        return _flat(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise UserError(
            f"{path}: neither a folder of torch.distributed.checkpoint nor a state dict file of tensors alone "
            f"({str(error)[:200]}); write one with torch.save(model.state_dict(), FILE)"
        ) from None


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            out[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
    return out


def find_table(weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The table [I, D] whose key is `name`, or the only one that has it as a part.

    Raises:
        UserError: there is none, or there are several.
    """
    matrices = {key: value for key, value in weights.items() if value.dim() == 2}
    found = [name] if name in matrices else [key for key in matrices if name in key.split(".")]
    if len(found) != 1:
        near = found or difflib.get_close_matches(name, matrices, n=3, cutoff=0.0)
        raise UserError(
            f"--item-table {name!r}: {'several tables have' if found else 'no table has'} this name; did you mean "
            f"{' or '.join(repr(one) for one in near)}?"
        )
    return matrices[found[0]].float()


def import_factory(path: str) -> Callable[[dict[str, torch.Tensor]], nn.Module]:
    """The callable that `package.module:factory` names; the folder in which the command is called is looked in too.

    Raises:
        UserError: there is none.
    """
    module_name, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError as error:
        raise UserError(f"--model {path!r}: cannot import {module_name} ({error}); run from its folder") from None
    if not callable(found):
        raise UserError(f"--model {path!r}: {module_name} has no function {name!r} that makes the model")
    factory: Any = found
    return factory
