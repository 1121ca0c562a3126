"""What a user installs from: the wheel's content, the container and cluster files beside the page about them."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
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


def _object(required: str, **known: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": known, "additionalProperties": False}


def _list(of: dict[str, Any], at_least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": at_least}


TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"},
}
# Of Kubernetes' PodTemplateSpec what a job needs; an unknown or misspelt field is refused.
POD = _object(
    "spec",
    metadata=_object("", labels=TEXTS, annotations=TEXTS),
    spec=_object(
        "containers",
        containers=_list(
            _object(
                "name image",
                **dict.fromkeys(("name", "image", "imagePullPolicy"), TEXT),
                env=_list(_object("name value", name=TEXT, value=TEXT)),
                resources=_object("", limits=QUANTITIES, requests=QUANTITIES),
                volumeMounts=_list(_object("name mountPath", name=TEXT, mountPath=TEXT, readOnly=FLAG)),
            ),
            at_least=1,
        ),
        volumes=_list(_object("name", name=TEXT, persistentVolumeClaim=_object("claimName", claimName=TEXT))),
        nodeSelector=TEXTS,
    ),
)
# The fields of RayJobSpec, RayClusterSpec and their groups in ray.io/v1 of KubeRay 1.2, with what each requires.
CLUSTER = _object(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    suspend=FLAG,
    headServiceAnnotations=TEXTS,
    headGroupSpec=_object("rayStartParams template", rayStartParams=TEXTS, template=POD, serviceType=TEXT),
    workerGroupSpecs=_list(
        _object(
            "groupName maxReplicas minReplicas rayStartParams template",
            groupName=TEXT,
            **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts"), COUNT),
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
RAY_JOB = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object("name", name={"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]{0,45}[a-z0-9])?$"}, labels=TEXTS),
    spec=_object(
        "entrypoint rayClusterSpec",
        **dict.fromkeys(("entrypoint", "runtimeEnvYAML", "jobId", "entrypointResources"), TEXT),
        **dict.fromkeys(("shutdownAfterJobFinishes", "suspend"), FLAG),
        **dict.fromkeys(("ttlSecondsAfterFinished", "backoffLimit", "activeDeadlineSeconds"), COUNT),
        **dict.fromkeys(("metadata", "clusterSelector"), TEXTS),
        submissionMode={"enum": ["K8sJobMode", "HTTPMode"]},
        rayClusterSpec=CLUSTER,
    ),
)


def test_the_job_for_kuberay_is_one_by_its_schema_and_starts_as_many_ranks_as_workers():
    job: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(job, RAY_JOB)
    cluster = job["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted <= {one["name"] for one in pod["volumes"]}
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    num_workers = sum(group["replicas"] for group in cluster["workerGroupSpecs"])
    assert f"--num-workers {num_workers}" in job["spec"]["entrypoint"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("rayClusterSpec.workerGroupSpecs.0.minReplicas", None),
        ("rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.env.0.value", 1),
        ("rayClusterSpec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory", "8GB"),
        ("backOffLimit", 3),
    ],
)
def test_a_fault_in_the_job_for_kuberay_would_be_seen(key: str, value: Any):
    job = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text(encoding="utf-8"))
    *path, last = key.split(".")
    place = job["spec"]
    for part in path:
        place = place[int(part)] if isinstance(place, list) else place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAY_JOB)
