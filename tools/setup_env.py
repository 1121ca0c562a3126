"""Creates or updates `.venv` with everything that this project needs; the standard library is all it uses itself.

Called by `make setup`. Safe to call again: when neither pyproject.toml, the Python nor the hardware has changed it
returns at once. It runs on any Python from 3.8 on and looks for one from 3.11 to 3.13 to build the environment with.

CUDA builds are installed only where an NVIDIA GPU is seen (`--extra cpu|cuda` or MWUF_EXTRA decides otherwise). Without
one, torch is constrained to its `+cpu` build, so that a machine that cannot get it fails instead of downloading CUDA.
"""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ROOT / "mwuf_dist" / "runtime" / "versions.py"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "mwuf-setup.stamp"
UV = "uv>=0.8"
SUPPORTED = ((3, 13), (3, 12), (3, 11))
VERIFY = """
import torch, fbgemm_gpu, torchrec
import mwuf_dist.cli, mwuf_dist.training, mwuf_dist.serving, mwuf_kernels
import hypothesis, matplotlib.pyplot, pytest, ray, scipy.stats, sklearn.metrics, torch._dynamo
print(f"torch {torch.__version__}, torchrec {torchrec.__version__}, fbgemm {fbgemm_gpu.__version__}")
if torch.version.cuda and not torch.cuda.is_available():
    raise SystemExit(f"torch is built for CUDA {torch.version.cuda} but sees no usable GPU: is the driver too old?")
"""


def main() -> None:
    """Parses the command line, and builds the environment unless it is up to date."""
    parser = argparse.ArgumentParser(description="Create or update .venv for mwuf-dist.")
    parser.add_argument("--extra", choices=["cpu", "cuda"], default=os.environ.get("MWUF_EXTRA"))
    parser.add_argument("--python", help="the Python to build the environment with (default: look for 3.11 to 3.13)")
    args = parser.parse_args()
    if args.extra not in (None, "cpu", "cuda"):
        fail(f"MWUF_EXTRA={args.extra!r}: must be cpu or cuda")
    extra = args.extra or ("cuda" if gpu_seen() else "cpu")

    # Held until the process ends: two `make` runs at once must not build the same folder.
    lock = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Without --python whatever Python built .venv is fine, so a new system Python does not rebuild it.
    if args.python is None and PYTHON.exists() and STAMP.exists() and STAMP.read_text() == stamp(extra):
        return
    started = time.monotonic()
    refuse_other_platforms()
    STAMP.unlink(missing_ok=True)
    create_venv(args.python)
    install(extra)
    verify(extra)
    STAMP.write_text(stamp(extra))
    say(f"ready in {time.monotonic() - started:.0f} s: {VENV}")


def stamp(extra: str) -> str:
    """What the environment was built from: the pins, its Python, its place and the hardware's choice."""
    files = (ROOT / "pyproject.toml", VERSIONS, Path(__file__))
    pins = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    python = re.search(r"^version\s*=\s*(\S+)", (VENV / "pyvenv.cfg").read_text(), re.MULTILINE)
    return f"{pins} python-{python.group(1) if python else 'unknown'} {extra} {ROOT}\n"


def gpu_seen() -> bool:
    """Whether the NVIDIA driver lists a GPU (asked of nvidia-smi, or of /proc where that is not installed)."""
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        return listed.returncode == 0 and b"GPU" in listed.stdout
    gpus = Path("/proc/driver/nvidia/gpus")
    return gpus.is_dir() and any(gpus.iterdir())


def refuse_other_platforms() -> None:
    """Fbgemm publishes wheels for Linux on x86-64 and ARM only."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        fail(
            f"{platform.system()} on {platform.machine()} is not supported: fbgemm has no build for it. "
            "Use Linux on x86-64 or ARM64, a container of it for example."
        )


def python_version(command: str) -> tuple[int, int] | None:
    """(major, minor) of an interpreter, or None where it does not run (a pyenv shim without a version, for example)."""
    try:
        out = subprocess.run(
            [command, "-c", "import sys; print(*sys.version_info[:2])"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = out.split()
    return int(major), int(minor)


def find_python() -> str:
    """A Python from 3.11 to 3.13: the running one where it fits, else the newest on PATH."""
    # The base interpreter, so that an activated .venv can be rebuilt from within.
    running = getattr(sys, "_base_executable", None) or sys.executable
    for command in [running, *(f"python{major}.{minor}" for major, minor in SUPPORTED), "python3", "python"]:
        if python_version(command) in SUPPORTED:
            return command
    fail(
        f"No Python from 3.11 to 3.13 found (this is {platform.python_version()}). Install one, for example\n"
        "    Debian, Ubuntu:  apt install python3.12 python3.12-venv\n"
        "    Fedora:          dnf install python3.12\n"
        "or give its path: make PYTHON=/path/to/python3.12 ..."
    )


def create_venv(requested: str | None) -> None:
    """Makes .venv and puts uv into it; keeps a .venv whose Python runs and fits."""
    if requested is not None and python_version(requested) not in SUPPORTED:
        fail(f"{requested} is not a Python from 3.11 to 3.13 that runs")
    version = python_version(str(PYTHON))
    if version not in SUPPORTED or (requested is not None and version != python_version(requested)):
        base = requested or find_python()
        if VENV.exists():
            if not (VENV / "pyvenv.cfg").exists():
                fail(f"{VENV} is not a virtual environment: move it away and run this again")
            say("replacing .venv, whose Python is gone or another one is wanted")
            shutil.rmtree(VENV)
        say(f"creating .venv with {base}")
        made = subprocess.run([base, "-m", "venv", str(VENV)], check=False)
        if made.returncode != 0:
            shutil.rmtree(VENV, ignore_errors=True)
            major, minor = python_version(base) or (3, 12)
            fail(
                f"{base} cannot create a virtual environment (see above). On Debian and Ubuntu: "
                f"apt install python{major}.{minor}-venv"
            )
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "install", "--quiet", UV], "pip could not install uv: is a package index reachable?")


def pip_settings() -> dict[str, str]:
    """The settings of pip itself from its environment variables and files, the stronger ones last."""
    listed = subprocess.run(
        [str(PYTHON), "-m", "pip", "config", "list"], stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in found:
            found[section][key] = str(ast.literal_eval(value))
    return {**found["global"], **found["install"], **found[":env:"]}


def uv_environment(pip: dict[str, str]) -> dict[str, str]:
    """The environment for uv, which does not read pip's settings: says them in its words, unless the user has."""
    words: dict[str, str] = {}
    if "find-links" in pip:
        words["UV_FIND_LINKS"] = ",".join(os.path.expanduser(place) for place in pip["find-links"].split())
    if "index-url" in pip:
        words["UV_DEFAULT_INDEX"] = pip["index-url"]
    if "extra-index-url" in pip:
        words["UV_INDEX"] = " ".join(pip["extra-index-url"].split())
        # As pip does: the best version of all indexes, not the first index that has the name.
        words["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if "trusted-host" in pip:
        words["UV_INSECURE_HOST"] = " ".join(pip["trusted-host"].split())
    if "cert" in pip:
        words["SSL_CERT_FILE"] = os.path.expanduser(pip["cert"])
    if "proxy" in pip:
        words["ALL_PROXY"] = pip["proxy"]
    timeout = pip.get("timeout", pip.get("default-timeout"))
    if timeout is not None:
        words["UV_HTTP_TIMEOUT"] = timeout
    return {**words, **os.environ}


def tested_sets() -> dict[str, tuple[str, str]]:
    """The sets that the tests have passed with, newest first: torch -> (torchrec and fbgemm, triton)."""
    table = re.search(r"^TESTED = (\{.*\})$", VERSIONS.read_text(), re.MULTILINE)
    assert table, f"{VERSIONS} has a line TESTED = {{...}}"
    return ast.literal_eval(table.group(1))


def local_torch(find_links: str, extra: str) -> str | None:
    """Full version of the newest torch wheel in the local folders that is of a tested set and fits Python and build."""
    major, minor = python_version(str(PYTHON)) or SUPPORTED[0]
    folders = [
        Path(place[len("file://") :] if place.startswith("file://") else place) for place in find_links.split(",")
    ]
    names = [file.name for folder in folders if folder.is_dir() for file in folder.iterdir()]
    for torch in tested_sets():
        wheel = re.compile(
            rf"torch-({re.escape(torch)}(?:(?:\+|%2B)\w+)?)-cp{major}{minor}-cp{major}{minor}-"
            rf"[\w.]*{re.escape(platform.machine())}\.whl"
        )
        found = sorted(fits.group(1).replace("%2B", "+") for name in names if (fits := wheel.fullmatch(name)))
        found = [version for version in found if version.endswith("+cpu") == (extra == "cpu")]
        if found:
            return found[0]
    return None


def rest_of_the_set(torch: str, extra: str) -> str:
    """Constraints that hold what shares an ABI with this torch, itself too, to one set."""
    others, triton = tested_sets()[torch.partition("+")[0]]
    fbgemm = "fbgemm-gpu-cpu" if extra == "cpu" else "fbgemm-gpu"
    return f"torch=={torch}\n{fbgemm}=={others}\ntorchrec=={others}\ntriton=={triton}\n"


def installed_torch() -> str:
    """Full version of the torch in .venv."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.run([str(PYTHON), "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()


def install(extra: str) -> None:
    """Installs the project, editable, with torch for this hardware."""
    pip = pip_settings()
    environment = uv_environment(pip)
    no_index = ["--no-index"] if pip.get("no-index", "").lower() in ("1", "true", "yes", "on") else []
    local = local_torch(environment.get("UV_FIND_LINKS", ""), extra)
    constraint = VENV / "mwuf-torch-set.txt"
    newest = next(iter(tested_sets()))

    def uv(*arguments: str) -> bool:
        # uv reads what torchrec really needs from this folder's pyproject.toml, so it must run here.
        command = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON), *no_index, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0

    where = "a local folder" if local else "PyTorch's package index"
    say(f"installing mwuf-dist[{extra},dev], torch from {where}")
    # torch alone and first: for the other packages that PyTorch's index holds, uv would not look elsewhere, and the
    # version found decides on theirs.
    if local is not None:
        done = uv(f"torch=={local}")
    elif extra == "cpu":
        done = uv("--torch-backend=cpu", f"torch=={newest}+cpu")
    else:
        # As a local version "cpu" sorts after "cu130": without this a folder with a CPU wheel would win.
        torch = f"torch=={newest},!={newest}+cpu"
        # The general index has builds for the newest CUDA only: for those who cannot reach PyTorch's own.
        done = uv("--torch-backend=auto", torch) or uv(torch)
    if done:
        constraint.write_text(rest_of_the_set(installed_torch(), extra))
        done = uv("--constraint", str(constraint), "--editable", f".[{extra},dev]")
    if done:
        return
    fail(
        f"The installation failed (see above). Where {where} cannot be reached, put a torch {newest} wheel "
        f"({'+cpu' if extra == 'cpu' else 'CUDA'} build, for this Python) into a folder and run again with "
        "PIP_FIND_LINKS=/that/folder"
    )


def verify(extra: str) -> None:
    """Imports what is ABI-locked: no resolver sees a wrong pair of torch and fbgemm.

    And all else that takes long to import, so that its bytecode is written now: where PYTHONDONTWRITEBYTECODE is set,
    as in many containers, no later process would write it, and each would compile for 10 s what it imports.
    """
    say("verifying")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    run([str(PYTHON), "-W", "ignore", "-c", VERIFY], f"The {extra} environment does not work (see above)", environment)


def run(command: list[str], failure: str, environment: dict[str, str] | None = None) -> None:
    """Runs a command of the environment in the project's folder; explains a failure."""
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0:
        fail(failure)


def say(message: str) -> None:
    """One line of progress."""
    print(f"setup: {message}", file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """Ends the setup with a message and without a traceback."""
    sys.exit(f"setup: {message}")


if __name__ == "__main__":
    main()
