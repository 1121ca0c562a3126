from __future__ import annotations

import pytest

from mwuf_dist import doctor
from mwuf_dist.config import UserError
from mwuf_dist.runtime import versions

RIGHT = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0"}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch):
    """Makes the package metadata say something else."""

    def install(**changes: str | None) -> None:
        found = RIGHT | {name.replace("_", "-"): version for name, version in changes.items()}
        monkeypatch.setattr(versions, "installed", found.get)
        monkeypatch.setattr(doctor, "installed", found.get)

    return install


def test_the_installed_versions_go_together():
    doctor.check_versions()


@pytest.mark.parametrize(
    ("torch", "others"), [("2.11.0", "1.6.0"), ("2.12.1+cu126", "1.7.0"), ("2.13.0", "1.8.0"), ("2.14.0", "1.9.2")]
)
def test_published_trios_are_accepted(pretend, torch: str, others: str):
    pretend(torch=torch, torchrec=others, fbgemm_gpu_cpu=others)
    doctor.check_versions()


@pytest.mark.parametrize(
    ("torch", "others", "is_tested"),
    [("2.12.1", "1.7.0", False), ("2.13.1", "1.8.0", True), ("2.14.0+cu130", "1.9.2", True)],
)
def test_a_set_that_goes_together_and_is_not_tested_is_noted_with_those_that_are(pretend, torch, others, is_tested):
    pretend(torch=torch, torchrec=others, fbgemm_gpu_cpu=others)
    found = doctor._versions()
    assert found.status == ("ok" if is_tested else "note")
    assert is_tested or "torch 2.14.1 with torchrec and fbgemm 1.9.0" in found.remedy


def test_a_wrong_fbgemm_is_named_with_the_right_one(pretend):
    pretend(fbgemm_gpu_cpu="1.9.0")
    with pytest.raises(UserError, match=r"fbgemm-gpu-cpu 1\.9\.0 .* torch 2\.13 needs fbgemm-gpu-cpu 1\.8"):
        doctor.check_versions()


def test_a_wrong_torchrec_is_named_with_the_right_one(pretend):
    pretend(torchrec="1.9.2")
    with pytest.raises(UserError, match=r"torchrec 1\.9\.2 .* and torchrec 1\.8"):
        doctor.check_versions()


@pytest.mark.parametrize("torch", ["2.4.1", "1.13.1", "3.0.0"])
def test_a_torch_without_an_fbgemm_is_refused(pretend, torch: str):
    pretend(torch=torch)
    with pytest.raises(UserError, match="does not go with torch"):
        doctor.check_versions()


def test_the_cuda_fbgemm_beside_the_cpu_one_is_refused(pretend):
    pretend(fbgemm_gpu="1.8.0")
    with pytest.raises(UserError, match="both installed"):
        doctor.check_versions()


@pytest.mark.parametrize("name", ["torch", "torchrec", "fbgemm-gpu-cpu"])
def test_a_missing_package_is_named(pretend, name: str):
    pretend(**{name: None})
    with pytest.raises(UserError, match=rf"{name}.* not installed"):
        doctor.check_versions()


def test_diagnose_finds_nothing_wrong_here_and_prints_it(capsys: pytest.CaptureFixture[str]):
    code = doctor.main()
    report = capsys.readouterr().out
    assert code == 0, report
    for name in ("python", "torch", "fbgemm", "torchrec", "triton", "ray", "data", "cache"):
        assert f"\n  {name}" in f"\n{report}" or f"\n! {name}" in f"\n{report}", report


def test_a_wrong_fbgemm_that_does_not_load_is_explained_by_its_version(
    pretend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pretend(fbgemm_gpu_cpu="1.9.0")
    torch_alone = ['{"cuda": null, "devices": []}']
    monkeypatch.setattr(doctor, "_probe", lambda code: (torch_alone, "OSError: Could not load this library"))
    assert doctor.main() == 1
    report = capsys.readouterr().out
    assert "X fbgemm    does not load: OSError" in report
    assert "torch 2.13 needs fbgemm-gpu-cpu 1.8" in report
    assert "! torchrec  not tried" in report


def test_a_library_that_ends_the_process_is_reported_not_suffered():
    printed, error = doctor._probe("import os; print('so far', flush=True); os.abort()")
    assert printed == ["so far"]
    assert "exit code" in error


@pytest.mark.parametrize(
    ("setting", "status"), [("1", "ok"), (None, "ok"), ("0", "wrong"), ("two", "wrong"), ("9999", "wrong")]
)
def test_thread_settings_are_judged(monkeypatch: pytest.MonkeyPatch, setting: str | None, status: str):
    monkeypatch.delenv("OMP_NUM_THREADS")
    if setting is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert doctor._threads().status == status


@pytest.mark.parametrize(
    ("torch_cuda", "usable", "listed", "fbgemm", "status"),
    [
        (None, [], [], "fbgemm-gpu-cpu", "ok"),
        (None, [], ["GPU 0"], "fbgemm-gpu-cpu", "wrong"),
        ("13.0", [], ["GPU 0"], "fbgemm-gpu", "wrong"),
        ("13.0", [], [], "fbgemm-gpu", "note"),
        ("13.0", ["H100"], ["GPU 0"], "fbgemm-gpu", "ok"),
        ("13.0", ["H100"], ["GPU 0"], "fbgemm-gpu-cpu", "wrong"),
    ],
)
def test_a_gpu_that_goes_unused_is_wrong(pretend, monkeypatch, torch_cuda, usable, listed, fbgemm, status):
    pretend(**{"fbgemm-gpu-cpu": None, fbgemm: "1.8.0"})
    monkeypatch.setattr(doctor, "_driver_gpus", lambda: listed)
    assert doctor._devices(torch_cuda, usable).status == status


def test_folders_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path / "absent"))
    assert doctor._data_dir().status == "wrong"
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("MWUF_CACHE_DIR", str(file / "cache"))
    assert doctor._cache_dir().status == "wrong"
    monkeypatch.setenv("MWUF_CACHE_DIR", str(tmp_path / "not" / "yet"))
    assert doctor._cache_dir().status == "ok"


def test_loops_that_are_not_compiled_are_a_note_with_what_to_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MWUF_NATIVE", "0")
    found = doctor._loops()
    assert found.status == "note" and "MWUF_NATIVE=0" in found.value and "g++" in found.remedy
    monkeypatch.setattr(doctor, "_probe", lambda code: (["False", "c++ took longer than 120 s"], ""))
    found = doctor._loops()
    assert found.status == "note" and found.value.endswith("c++ took longer than 120 s") and "g++" not in found.remedy
