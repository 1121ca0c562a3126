"""What `mwuf adopt` is given: weights of a model that was trained elsewhere, and the code that makes it from them."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mwuf_dist.config import UserError
from mwuf_dist.config.registry import own_module
from mwuf_dist.training.checkpoint.files import INDEX, stored_tensors


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Returns tensors of a `torch.distributed.checkpoint` folder or of a state dict file, by name.

    A folder may also be one of TorchEasyRec: `model.ckpt-STEP`, which has the weights in `model/`, or the folder of
    several, of which the last counts.

    Raises:
        UserError: it is neither.
    """
    try:
        if path.is_dir():
            return without_wrappers(stored_tensors(_weights_folder(path)))
        # Tensors and plain containers only, as there: a pickle could run anything.
        return without_wrappers(_flat(_weights_in(torch.load(path, map_location="cpu", weights_only=True))))
    except FileNotFoundError:
        raise UserError(
            f"WEIGHTS = '{path}': there is no {path}; name a state dict file or a checkpoint folder"
        ) from None
    except Exception as error:
        # Of an unsafe pickle torch says first how to load it all the same; what a checkpoint's index says is our own.
        is_of_torch = path.is_file() and isinstance(error, pickle.UnpicklingError)
        why = "more than tensors is in it" if is_of_torch else str(error)[:200]
        raise UserError(
            f"{path}: neither a folder of torch.distributed.checkpoint nor a state dict file of tensors alone ({why}); "
            "write one with torch.save(model.state_dict(), FILE)"
        ) from None


def _weights_folder(path: Path) -> Path:
    """Finds the folder with the index of a checkpoint in what TorchEasyRec writes, or gives back what it got."""
    steps = {one: int(number) for one in path.glob("model.ckpt-*") if (number := one.name.rpartition("-")[2]).isdigit()}
    for folder in (path, *sorted(steps, key=steps.__getitem__, reverse=True)):
        for one in (folder, folder / "model"):
            if (one / INDEX).exists():
                return one
    return path


# Parts of names that wrappers of a model add: torch.compile, FSDP and TorchRec's DistributedModelParallel anywhere, DDP
# (and DataParallel) in front, where a model's own module may have that name too.
_ANYWHERE = {"_orig_mod", "_fsdp_wrapped_module", "_dmp_wrapped_module", "_checkpoint_wrapped_module"}
_IN_FRONT = ("module", "state_dict", "model_state_dict")
_CONTAINERS = ("state_dict", "model_state_dict", "model")


def without_wrappers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names that the model itself gives them, whatever it was wrapped in when they were saved."""
    names = {name: [part for part in name.split(".") if part not in _ANYWHERE] for name in weights}
    while names and all(len(parts) > 1 for parts in names.values()):
        first = {parts[0] for parts in names.values()}
        if len(first) > 1 or not first & set(_IN_FRONT):
            break
        names = {name: parts[1:] for name, parts in names.items()}
    out = {".".join(parts): weights[name] for name, parts in names.items()}
    return out if len(out) == len(weights) else weights


def _weights_in(values: object) -> dict[str, Any]:
    """Returns the weights within what training scripts save beside them: an epoch, the state of an optimizer."""
    if not isinstance(values, dict):
        raise TypeError(f"it holds a {type(values).__name__}")
    inner = [values[name] for name in _CONTAINERS if isinstance(values.get(name), dict)]
    is_plain = any(isinstance(value, torch.Tensor) for value in values.values())
    return inner[0] if len(inner) == 1 and not is_plain else values


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            out[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
    return out


def find_table(weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """Returns the table [I, D] whose key is `name`, or the only one that has it as a part.

    Raises:
        UserError: there is none, or there are several.
    """
    matrices = {key: value for key, value in weights.items() if value.dim() == 2}
    found = [name] if name in matrices else [key for key in matrices if name in key.split(".")]
    if len(found) != 1:
        if not matrices:
            raise UserError(f"--item-table {name!r}: none of the {len(weights)} weights is a table (a matrix)")
        near = found or difflib.get_close_matches(name, matrices, n=3, cutoff=0.0)
        raise UserError(
            f"--item-table {name!r}: {'several tables have' if found else 'no table has'} this name; did you mean "
            f"{' or '.join(repr(one) for one in near)}?"
        )
    table = matrices[found[0]].float()
    bad = (~table.isfinite()).any(dim=1).nonzero()
    if len(bad):
        raise UserError(
            f"--item-table {found[0]!r}: row {int(bad[0])} (counted from 0) and {len(bad) - 1} others of {len(table)} "
            "hold NaN or infinity: the training has gone wrong there; take an earlier checkpoint"
        )
    return table


def has_remapped_ids(weights: dict[str, torch.Tensor], name: str) -> bool:
    """Says by its name whether a table's rows are given out to IDs as they come (zero collision hashing)."""
    of_table = [key.split(".") for key in weights if key == name or name in key.split(".")]
    return any(part.startswith(("mc_ebc", "mc_ec")) for parts in of_table for part in parts)


def import_factory(path: str) -> Callable[[dict[str, torch.Tensor]], nn.Module]:
    """Gives the callable that `package.module:factory` names.

    The folder in which the command is called is looked in too.

    Raises:
        UserError: there is none.
    """
    module_name, _, name = path.partition(":")
    found = getattr(own_module("--model", path), name, None)
    if not callable(found):
        raise UserError(f"--model {path!r}: {module_name} has no function {name!r} that makes the model")
    factory: Any = found
    return factory
