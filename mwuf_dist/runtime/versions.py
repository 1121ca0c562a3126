"""Which torch, torchrec and fbgemm go together, read from package metadata alone: a wrong pair fails at import.

fbgemm is bound to one minor version of torch by its ABI (fbgemm 1.X goes with torch 2.(X+5)), and none of the wheels
says so. The wrong pair ends in `OSError: Could not load this library`, which names neither.
"""

from __future__ import annotations

import importlib.metadata
import re

FBGEMM_DISTRIBUTIONS = ("fbgemm-gpu-cpu", "fbgemm-gpu")
# fbgemm 1.X is built against torch 2.(X + this).
MINORS_APART = 5
# Sets that the tests have passed with, newest first: torch -> (torchrec and fbgemm, triton). tools/setup_env.py reads
# this line, and installs one of them.
TESTED = {"2.14.1": ("1.9.0", "3.8.0"), "2.13.0": ("1.8.0", "3.7.1")}
REINSTALL = (
    "run `make clean-venv setup`; with pip, in an empty environment, `pip install 'mwuf-dist[cpu]'` and then "
    "`pip install --no-deps torchrec==1.9.0`, or with a GPU `pip install 'mwuf-dist[cuda]'`"
)


def installed(distribution: str) -> str | None:
    """Returns the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_problem() -> str | None:
    """Says what is wrong with the installed torch, torchrec and fbgemm, and how to mend it; None where nothing is."""
    torch, torchrec = installed("torch"), installed("torchrec")
    fbgemms = {name: version for name in FBGEMM_DISTRIBUTIONS if (version := installed(name)) is not None}
    missing = [name for name, version in (("torch", torch), ("torchrec", torchrec)) if version is None]
    if not fbgemms:
        missing.append(" or ".join(FBGEMM_DISTRIBUTIONS))
    if torch is None or torchrec is None or not fbgemms:
        return f"{', '.join(missing)} not installed: {REINSTALL}"
    if len(fbgemms) > 1:
        return (
            f"{' and '.join(fbgemms)} are both installed and overwrite each other's files: {REINSTALL} "
            "(plain `pip install torchrec` brings the second one)"
        )
    fbgemm_name, fbgemm = next(iter(fbgemms.items()))
    if _minor(fbgemm, 1) + MINORS_APART != _minor(torch, 2):
        return f"{fbgemm_name} {fbgemm} does not go with torch {torch}: {_right_pair(torch, fbgemm_name)}; {REINSTALL}"
    if _minor(torchrec, 1) != _minor(fbgemm, 1):
        return f"torchrec {torchrec} does not go with {fbgemm_name} {fbgemm}: {_right_pair(torch, fbgemm_name)}"
    return None


def untested() -> str | None:
    """Says which sets are tested, where the installed one goes together and is none of them; None where it is one."""
    torch = installed("torch") or ""
    if torch.split(".")[:2] in [tested.split(".")[:2] for tested in TESTED]:
        return None  # another patch release
    sets = " and ".join(f"torch {torch} with torchrec and fbgemm {others}" for torch, (others, _) in TESTED.items())
    return f"not tested with this torch; tested are {sets}"


def other_version(saved: dict[str, str]) -> str | None:
    """Says why a checkpoint that was saved with these versions is not loaded; None where it is.

    A patch release keeps formats and names, and is accepted. Another minor version of torch may write tensors, of
    torchrec name tables, and of this package name and lay out anything in another way, and none of them says so.
    """
    for distribution, name in (("torch", "torch"), ("torchrec", "torchrec"), ("mwuf-dist", "mwuf_dist")):
        ours, theirs = installed(distribution), saved.get(name)
        if ours is not None and theirs is not None and ours.split(".")[:2] != theirs.split(".")[:2]:
            return f"saved with {distribution} {theirs}, this is {ours}: install {theirs} to go on from it"
    return None


def check_versions() -> None:
    """Refuses a trio of torch, torchrec and fbgemm that cannot work; takes milliseconds and imports none of them.

    Raises:
        UserError: one is missing, or they do not go together; it names the right versions.
    """
    from mwuf_dist.config import UserError  # late: `mwuf doctor` must run where pydantic is missing too

    problem = version_problem()
    if problem is not None:
        raise UserError(problem)


def _minor(version: str, major: int) -> int:
    """Returns the minor version; -1 where the major version is another one."""
    match = re.match(rf"{major}\.(\d+)", version)
    return int(match.group(1)) if match else -1


def _right_pair(torch: str, fbgemm_name: str) -> str:
    minor = _minor(torch, 2) - MINORS_APART
    if minor < 0:
        return f"no {fbgemm_name} 1.X goes with it"
    return f"torch 2.{_minor(torch, 2)} needs {fbgemm_name} 1.{minor} and torchrec 1.{minor}"
