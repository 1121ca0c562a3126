"""The setup's choices, without installing anything: which torch wheel of a local folder fits, and what uv is told."""

from __future__ import annotations

import ast
import importlib.util
import platform
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from mwuf_dist.runtime import versions

ROOT = Path(__file__).resolve().parent.parent
PYTHON = f"cp{sys.version_info[0]}{sys.version_info[1]}"
MACHINE = platform.machine()


@pytest.fixture
def setup_env(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / "tools" / "setup_env.py"
    spec = importlib.util.spec_from_file_location("setup_env", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PYTHON", Path(sys.executable))
    return module


def split(version: str) -> list[str]:
    return version.split(".")


def wheel(version: str, python: str = PYTHON, machine: str = MACHINE) -> str:
    return f"torch-{version}-{python}-{python}-manylinux_2_28_{machine}.whl"


def test_the_sets_are_read_from_the_package_and_lie_within_what_it_requires(setup_env: ModuleType):
    assert setup_env.tested_sets() == versions.TESTED
    newest = next(iter(versions.TESTED))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for extra in ("cpu", "cuda", "triton", "dev") for line in project["optional-dependencies"][extra]]
    required = {one.name: one.specifier for one in map(Requirement, [*project["dependencies"], *extras])}
    for torch, (others, triton) in versions.TESTED.items():
        pins = {"torch": torch, "torchrec": others, "fbgemm-gpu-cpu": others, "fbgemm-gpu": others, "triton": triton}
        assert all(pin in required[name] for name, pin in pins.items())
        next_torch, next_others = (f"{major}.{int(minor) + 1}.0" for major, minor, _ in map(split, (torch, others)))
        assert (next_torch in required["torch"]) == (next_others in required["torchrec"]) == (torch != newest)


def test_what_shares_an_abi_with_the_torch_found_is_held_to_its_set(setup_env: ModuleType):
    for torch, (others, triton) in versions.TESTED.items():
        lines = setup_env.rest_of_the_set(f"{torch}+cpu", "cpu").splitlines()
        assert lines == [
            f"torch=={torch}+cpu",
            f"fbgemm-gpu-cpu=={others}",
            f"torchrec=={others}",
            f"triton=={triton}",
        ]
        assert f"fbgemm-gpu=={others}" in setup_env.rest_of_the_set(torch, "cuda").splitlines()


@pytest.mark.parametrize(
    ("name", "extra", "found"),
    [
        (wheel("2.13.0+cpu"), "cpu", "2.13.0+cpu"),
        (wheel("2.13.0%2Bcpu"), "cpu", "2.13.0+cpu"),
        (wheel("2.13.0+cpu"), "cuda", None),
        (wheel("2.13.0"), "cpu", None),  # the general index's build, which is CUDA's
        (wheel("2.13.0"), "cuda", "2.13.0"),
        (wheel("2.13.0+cu130"), "cuda", "2.13.0+cu130"),
        (wheel("2.13.0+cu130"), "cpu", None),
        (wheel("2.14.1+cpu"), "cpu", "2.14.1+cpu"),
        (wheel("2.12.0+cpu"), "cpu", None),
        (wheel("2.13.0+cpu", python="cp39"), "cpu", None),
        (wheel("2.13.0+cpu", machine="riscv64"), "cpu", None),
        ("torchvision-2.13.0+cpu-py3-none-any.whl", "cpu", None),
    ],
)
def test_only_a_wheel_that_fits_is_taken_from_a_local_folder(
    setup_env: ModuleType, tmp_path: Path, name: str, extra: str, found: str | None
):
    (tmp_path / name).touch()
    assert setup_env.local_torch(f"{tmp_path / 'absent'},{tmp_path}", extra) == found
    assert setup_env.local_torch(f"file://{tmp_path}", extra) == found


def test_of_two_wheels_that_fit_the_newer_set_is_taken(setup_env: ModuleType, tmp_path: Path):
    for version in ("2.13.0+cpu", "2.14.1+cpu", "2.14.1"):
        (tmp_path / wheel(version)).touch()
    assert setup_env.local_torch(str(tmp_path), "cpu") == "2.14.1+cpu"
    assert setup_env.local_torch(str(tmp_path), "cuda") == "2.14.1"


def test_settings_of_pip_reach_uv_in_its_words(setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch):
    for name in ("UV_FIND_LINKS", "UV_INDEX", "UV_INDEX_STRATEGY", "UV_DEFAULT_INDEX", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    told = setup_env.uv_environment(
        {"find-links": "/a\n/b", "index-url": "https://c", "extra-index-url": "https://d https://e", "cert": "/f.pem"}
    )
    assert told["UV_FIND_LINKS"] == "/a,/b"
    assert told["UV_DEFAULT_INDEX"] == "https://c"
    assert told["UV_INDEX"] == "https://d https://e"
    assert told["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert told["SSL_CERT_FILE"] == "/f.pem"


def test_what_the_user_told_uv_stays(setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UV_FIND_LINKS", "/mine")
    assert setup_env.uv_environment({"find-links": "/of-pip"})["UV_FIND_LINKS"] == "/mine"


def test_the_environment_variable_of_pip_is_stronger_than_its_file(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nfind-links = /of-the-file\n[install]\ntimeout = 7\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_FIND_LINKS", "/of-the-variable")
    found = setup_env.pip_settings()
    assert found["find-links"] == "/of-the-variable"
    assert found["timeout"] == "7"


def test_an_interpreter_that_does_not_run_is_no_python(setup_env: ModuleType, tmp_path: Path):
    broken = tmp_path / "python3.12"
    broken.write_text("#!/bin/sh\nexit 127\n")
    broken.chmod(0o755)
    assert setup_env.python_version(str(broken)) is None
    assert setup_env.python_version(str(tmp_path / "absent")) is None
    assert setup_env.python_version(sys.executable) == sys.version_info[:2]


def test_without_a_driver_there_is_no_gpu(setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert not setup_env.gpu_seen()
    fake.write_text("#!/bin/sh\necho 'GPU 0: a card'\n")
    assert setup_env.gpu_seen()


def test_a_changed_pin_changes_the_stamp(setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12.4\n")
    (tmp_path / "pyproject.toml").write_text('"torch==2.13.0"')
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(setup_env, "VERSIONS", tmp_path / "versions.py")
    (tmp_path / "versions.py").touch()
    monkeypatch.setattr(setup_env, "VENV", tmp_path / ".venv")
    before = setup_env.stamp("cpu")
    assert "python-3.12.4 cpu" in before
    assert setup_env.stamp("cuda") != before
    (tmp_path / "pyproject.toml").write_text('"torch==2.14.0"')
    second = setup_env.stamp("cpu")
    assert second != before
    (tmp_path / "versions.py").write_text("TESTED = {}")
    assert setup_env.stamp("cpu") not in (before, second)


def test_the_setup_needs_the_standard_library_only(setup_env: ModuleType):
    """It makes the environment in which anything else would be."""
    assert setup_env.__file__ is not None
    tree = ast.parse(Path(setup_env.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported and {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)
