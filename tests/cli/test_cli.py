"""The command line: exit code 0 or 2, a message that says what to do, never a traceback, nothing left in the way."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mwuf_dist.config import Config, read_toml, to_dict
from mwuf_dist.training.stages.meta_train import MetaTrain
from mwuf_dist.training.stages.pretrain import Pretrain
from tests.cli.command import SHORT, Mwuf, interrupt, results, write
from tests.waiting import LONGEST_S

# what is called


@pytest.mark.parametrize("command", ["run", "compare", "prepare"])
@pytest.mark.parametrize("with_config", [True, False], ids=["of a config", "alone"])
def test_help_of_a_command_shows_examples_and_every_key(
    command: str, with_config: bool, mwuf: Mwuf, config: Path
) -> None:
    done = mwuf(command, *[config] * with_config, "--help")
    assert done.code == 0
    assert f"examples: mwuf {command} configs/demo.toml" in done.said
    for key in keys() - {"data.logs.fields"}:  # a list of tables, which only a file can hold
        assert f"--{key.replace('_', '-')}" in done.said, key
    # Every key has its comment as help, every section its docstring.
    assert (
        "adam: dense; rowwise_adagrad: fused, for large tables; auto: by `fused_above_rows`. (default: auto)"
        in done.said
    )
    assert "Which data, and the rule that splits it into old and new items." in done.said
    backbone = SHORT["backbone"]["name"] if with_config else "wide_deep"
    assert f"(default: {backbone})" in done.said


def keys(values: dict[str, Any] | None = None, prefix: str = "") -> set[str]:
    found = set()
    for key, value in (to_dict(Config()) if values is None else values).items():
        found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return found


def test_help_of_the_program_names_the_commands(mwuf: Mwuf) -> None:
    done = mwuf("--help")
    assert done.code == 0
    assert all(f"mwuf {command}" in done.said for command in ("run", "compare", "tune", "prepare", "doctor"))
    assert mwuf("doctor", "--help").code == mwuf("init", "--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: mwuf COMMAND CONFIG"),
        (["rum", "short.toml"], "mwuf: no command 'rum': there are run, compare"),
        (["run"], "mwuf: name the config first: mwuf run CONFIG [options], for example configs/demo.toml"),
        (["run", "--seed", "1"], "mwuf: name the config first"),
        (["run", "absent.toml"], "mwuf: absent.toml: cannot be read (No such file or directory); name an existing"),
        (["run", "."], "mwuf: .: cannot be read (Is a directory)"),
        (["doctor", "now"], "It takes no options."),
        (["run", "short.toml", "--num-workers", "0"], "mwuf: --num-workers 0: must be 1 to 100000"),
        (["run", "short.toml", "--num-workers", "2"], "mwuf: --num-workers is for --launcher ray"),
        (["prepare", "short.toml", "--num-workers", "2"], "mwuf: --num-workers is for --launcher ray"),
    ],
)
def test_a_wrong_call_is_told_how_to_call(arguments: list[str], said: str, mwuf: Mwuf, config: Path) -> None:
    done = mwuf(*arguments)
    assert done.code == 2
    assert said in done.said


# configs


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data\n", "bad.toml: not valid TOML: "),
        ("name = '\udcff'", "bad.toml: not valid TOML, which is UTF-8 text: invalid start byte at byte 8"),
        ("[pretrain]\nepocs = 3", "bad.toml: unknown key `pretrain.epocs`; did you mean `pretrain.epochs`?"),
        ("[pretrian]\nepochs = 3", "bad.toml: unknown key `pretrian`; did you mean `pretrain`?"),
        (
            "[data.synthetic]\nnum_row = 3",
            "unknown key `data.synthetic.num_row`; did you mean `data.synthetic.num_rows`?",
        ),
        ("pretrain = 3", "bad.toml: `pretrain` must be a table of keys, not 3"),
        ("[pretrain]\nepochs = '3'", "bad.toml: `pretrain.epochs` = '3': Input should be a valid integer"),
        ("[pretrain]\nepochs = 1.5", "bad.toml: `pretrain.epochs` = 1.5: Input should be a valid integer"),
        ("[pretrain]\nepochs = true", "bad.toml: `pretrain.epochs` = True: Input should be a valid integer"),
        ("[pretrain]\nepochs = 0", "bad.toml: `pretrain.epochs` = 0: Input should be greater than or equal to 1"),
        ("[pretrain]\nlearning_rate = inf", "`pretrain.learning_rate` = inf: Input should be a finite number"),
        ("[data]\nname = 2020-01-01", "bad.toml: `data.name` = 2020-01-01: a date, which no key takes"),
        (
            "[meta_train]\nepochs = 'all'",
            "`meta_train.epochs` = 'all': Input should be a valid integer or Input should be",
        ),
        ("[backbone]\nhidden = []", "bad.toml: `backbone.hidden` = []: Tuple should have at least 1 item"),
        ("[backbone]\nhidden = [8, 0]", "bad.toml: `backbone.hidden` = 0: Input should be greater than or equal to 1"),
        ("seed = -1", "bad.toml: `seed` = -1: Input should be greater than or equal to 0"),
        ("extends = 'none.toml'", "none.toml: cannot be read (No such file or directory)"),
        ("extends = 3", "bad.toml: `extends` must name a file, or a list of files, not 3"),
        ("extends = 'bad.toml'", "bad.toml: `extends` leads back to"),
    ],
)
def test_a_wrong_config_is_an_error_that_names_file_and_key(text: str, said: str, mwuf: Mwuf, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(text.encode(errors="surrogateescape"))
    for command in ("run", "prepare"):
        done = mwuf(command, "bad.toml")
        assert done.code == 2
        assert done.err.startswith("mwuf: ") and done.err.count("\n") == 1
        assert said in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pretrain.epochs", "0"], "`pretrain.epochs` = 0: Input should be greater than or equal to 1"),
        (["--pretrain.learning-rate", "nan"], "`pretrain.learning_rate` = nan: Input should be a finite number"),
        (["--backbone.dropout", "1"], "`backbone.dropout` = 1.0: Input should be less than 1"),
        (["--backbone.hidden", "8", "-2"], "`backbone.hidden` = -2: Input should be greater than or equal to 1"),
        (["--meta-train.epochs", "-1"], "`meta_train.epochs` = -1: Input should be greater than or equal to 0"),
    ],
)
def test_a_value_out_of_range_on_the_command_line_is_one_line(
    arguments: list[str], said: str, mwuf: Mwuf, config: Path
) -> None:
    done = mwuf("run", config, *arguments, "--output", "out")
    assert done.code == 2
    assert done.err.startswith(f"mwuf: command line: {said}") and done.err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pretrain.epocs", "3"], "Perhaps you meant: --pretrain.epochs INT"),
        (["--pretrain.epochs", "three"], "Error parsing --pretrain.epochs: invalid literal for int()"),
        (["--pretrain.epochs"], "Missing value"),
        (["--embedding.optimizer", "sgd"], "Expected one of ('auto', 'adam', 'rowwise_adagrad')"),
        (["more.toml"], "Unrecognized options: more.toml"),
    ],
)
def test_an_option_that_cannot_be_read_is_told_with_what_can(
    arguments: list[str], said: str, mwuf: Mwuf, config: Path
) -> None:
    done = mwuf("run", config, *arguments, "--output", "out")
    assert done.code == 2
    assert said in done.said
    assert not Path("out").exists()


# data and names that only the run finds wrong


MISTAKES = [
    (["--data.synthetic.num-items", "10"], "no item is new: of 10 items"),
    (
        ["--data.warm-rows", "5000"],
        "data.old_above = 60 is below 3 * data.warm_rows = 15000, so that no item can be new",
    ),
    (["--data.old-above", "100000"], "no item is old: of 300 items"),
    (["--data.name", "movielens"], "data.name = 'movielens' is no data set; did you mean 'movielens-1m'?"),
    (["--backbone.name", "widedeep"], "backbone.name = 'widedeep': unknown; did you mean 'wide_deep'?"),
    (["--method.name", "mwufs"], "method.name = 'mwufs': unknown; did you mean 'mwuf'?"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES)
def test_a_mistake_that_the_run_finds_leaves_nothing_behind(
    arguments: list[str], said: str, mwuf: Mwuf, config: Path
) -> None:
    done = mwuf("run", config, *arguments, "--output", "out")
    assert done.code == 2
    assert done.err.startswith(f"mwuf: {said}") and done.err.count("\n") == 1
    assert not Path("out").exists()


def test_movielens_that_is_absent_and_cannot_be_downloaded_says_what_to_put_where(
    mwuf: Mwuf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("offline")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setenv("MWUF_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("MWUF_CACHE_DIR", str(tmp_path / "cache"))
    config = write(tmp_path / "ml.toml", {"data": {"name": "movielens-1m"}})
    for command in (["prepare"], ["run", "--output", "out"]):
        done = mwuf(command[0], config, *command[1:])
        assert done.code == 2
        assert "mwuf: MovieLens-1M could not be downloaded" in done.said
        assert "put ratings.dat, users.dat, movies.dat into a folder ml-1m" in done.said
    assert not Path("out").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != config]


# the output folder


def test_a_run_finishes_says_so_when_run_again_and_refuses_another_config(
    mwuf: Mwuf, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A mistake before does not block the folder.
    assert mwuf("run", config, "--output", "out", "--method.name", "mwufs").code == 2
    done = mwuf("run", config, "--output", "out")
    assert done.code == 0
    assert "deepfm" in done.said and "mwuf" in done.said
    files = {path.name for path in Path("out").iterdir()}
    assert files >= {"config.toml", "metrics.jsonl", "results.json", "run.png", "tensorboard", "checkpoints"}
    assert not [name for name in files if name.startswith(".") or name.endswith(".tmp")]

    first, table = results("out"), done.out[done.out.index("deepfm") :]
    monkeypatch.setattr(Pretrain, "step", None)  # nothing trains from here on
    again = mwuf("run", config, "--output", "out")
    assert again.code == 0
    assert table in again.out
    assert results("out") == first
    # Where it runs is no part of what is run.
    assert mwuf("run", config, "--output", "out", "--runtime.threads", "2").code == 0

    other = mwuf("run", config, "--output", "out", "--seed", "3", "--warm-up.epochs", "7")
    assert other.code == 2
    assert "mwuf: out holds another run, which differs in seed: 0 -> 3; warm_up.epochs: 2 -> 7: name ano" in other.err
    assert results("out") == first


def test_an_interrupted_run_goes_on_when_run_again(mwuf: Mwuf, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MetaTrain, "step", interrupt)
        done = mwuf("run", config, "--output", "out")
        assert done.code == 130
        assert done.err == "mwuf: stopped; the same command goes on from the last checkpoint\n"
    monkeypatch.setattr(Pretrain, "step", None)  # it is done
    again = mwuf("run", config, "--output", "out")
    assert again.code == 0
    assert "goes on from meta_train-0-0-00000000" in again.out
    assert results("out")["phases"].keys() == {"cold", "warm-a", "warm-b", "warm-c"}


def test_a_folder_of_something_else_and_a_file_are_left_alone(mwuf: Mwuf, config: Path) -> None:
    Path("mine").mkdir()
    Path("mine", "thesis.txt").write_text("...")
    done = mwuf("run", config, "--output", "mine")
    assert done.code == 2
    assert done.err == "mwuf: mine is not empty and holds no run: name another --output\n"
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.txt"]
    for output in ("mine/thesis.txt", "mine/thesis.txt/deeper"):
        done = mwuf("run", config, "--output", output)
        assert done.code == 2
        assert done.err.startswith("mwuf: ") and output in done.err
    assert Path("mine", "thesis.txt").read_text() == "..."


# processes


def process(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )


def test_a_reader_that_goes_away_is_no_error_of_ours(config: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m mwuf_dist run {config} --help | head -n 1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST_S, check=False
    )
    assert done.stdout.startswith("usage: mwuf run")
    assert done.stderr == ""


@pytest.mark.dist
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pretrain.epochs", "0"], "mwuf: command line: `pretrain.epochs` = 0: "),
        (["--data.synthetic.num-items", "10"], "mwuf: no item is new: of 10 items"),
    ],
)
def test_a_mistake_under_torchrun_is_told_without_a_traceback_of_ours(
    arguments: list[str], said: str, config: Path, tmp_path: Path
) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mwuf_dist"]
    done = process([*launcher, "run", str(config), "--output", "out", *arguments], tmp_path)
    assert done.returncode != 0
    assert said in done.stderr
    # What comes behind is the launcher's own report: none of our modules is in it.
    assert "mwuf_dist/" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_config_may_extend_several_files_the_later_above_the_earlier(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    write(tmp_path / "low" / "ground.toml", {"seed": 1, "backbone": {"name": "fm"}})
    write(tmp_path / "one.toml", {"extends": "low/ground.toml", "pretrain": {"epochs": 2, "batch_size": 7}})
    write(tmp_path / "two.toml", {"seed": 2, "pretrain": {"epochs": 3}})
    values = {"extends": ["one.toml", "two.toml"], "warm_up": {"epochs": 4}}
    found = read_toml(write(tmp_path / "top.toml", values))
    expected = {"seed": 2, "backbone": {"name": "fm"}, "pretrain": {"epochs": 3, "batch_size": 7}}
    assert found == expected | {"warm_up": {"epochs": 4}}
