"""What a user installs from: the wheel's content, the container and cluster files beside the page about them."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml

from mwuf_dist.runtime import versions

ROOT = Path(__file__).resolve().parent.parent


def test_the_wheel_holds_every_module_and_the_sources_of_the_loops(tmp_path: Path):
    build = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    source = tmp_path / "src"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "mwuf_dist", "kernels"):
        (source / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "mwuf_dist").rglob("*.py")}
    ours |= {
        str(path.relative_to(ROOT / "kernels"))
        for path in (ROOT / "kernels" / "mwuf_kernels").rglob("*")
        if path.suffix in (".py", ".cpp", ".h")
    }
    assert held == ours


def test_the_container_is_built_by_the_commands_of_the_page():
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```\n(pip install uv\n.*?)```", page, re.DOTALL)
    commands = [line for line in block.splitlines() if line != "mwuf doctor"]
    run = re.findall(r"^RUN (.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [line for line in run if line.startswith(("pip ", "uv "))] == commands


def test_page_and_container_install_the_newest_tested_set_and_the_page_names_the_others():
    (torch, (others, _)), *older = versions.TESTED.items()
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    for text in (page, (ROOT / "Dockerfile").read_text(encoding="utf-8")):
        assert f"torch=={torch}\n" in text and f"torchrec=={others}\n" in text
    for torch, (others, _) in older:
        assert f"For torch {torch} " in page and f"torchrec {others}" in page
    newest = next(iter(versions.TESTED.values()))[0]
    assert f"torchrec=={newest}`" in versions.REINSTALL


def test_the_job_for_kuberay_has_what_the_operator_requires():
    """The fields that RayJob v1 requires or knows, and a command that the parser accepts."""
    job: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob") and job["metadata"]["name"]
    spec = job["spec"]
    known = {
        *("submissionMode", "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit"),
        "rayClusterSpec",
    }
    assert spec.keys() == known and spec["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode")
    cluster = spec["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        for container in pod["containers"]:
            assert container["name"] and container["image"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= {one["name"] for one in pod["volumes"]}
            assert all(isinstance(entry["value"], str) for entry in container["env"])
    for group in groups[1:]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert f"--num-workers {sum(group['replicas'] for group in groups[1:])}" in spec["entrypoint"]
