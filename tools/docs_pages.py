"""Fills the pages of `docs/` with what the code and the records know better; mkdocs calls it for every page.

A line `<!-- generated: NAME ARGUMENT -->` of a page becomes what the function of that name in `GENERATORS` returns. So
no option, key or figure is copied by hand, and none can be out of date.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import docs_tables
import kernel_tables
from docs_tables import rows_table

from mwuf_dist import cli
from mwuf_dist.config import PHASES, Config, registry
from mwuf_dist.evaluation import published, stream_report
from mwuf_dist.evaluation.comparison import conclude
from mwuf_dist.evaluation.tables import Cell, Table, auc_table, published_table

ROOT = Path(__file__).resolve().parent.parent
_MARKER = re.compile(r"^<!-- generated: (\w+) ?(.*?) -->$", re.MULTILINE)
COMMANDS = (
    *("run", "compare", "tune", "recommend", "plan", "prepare", "init", "vectors", "synthesize"),
    *("export", "warm", "apply", "serve-check", "explain", "adopt", "doctor"),
)
_HELP_COLUMNS = "100"
# Below this p value, corrected for the number of comparisons, a gain or a loss is in bold.
_SURE = 0.05
# Help goes on with every key of the config, which has a page of its own.
_FIRST_CONFIG_OPTION = re.compile(r"^  --seed INT\n", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The hook: a page with its markers replaced.

    Args:
        markdown: of the page.
        **_: page, config and files of mkdocs.
    """
    return _MARKER.sub(lambda found: GENERATORS[found[1]](found[2]), markdown)


def config_keys(_: str) -> str:
    """Every section of the config as a table of its keys, from the comments in config.py."""
    return "\n\n".join(_section(name, cls) for name, cls in sections(Config))


def _own_keys(kind: registry.Kind) -> str:
    """The keys that single backbones or methods have beside those of all, a table for each set of them."""
    (base,) = [field.metadata["base"] for field in dataclasses.fields(Config) if field.name == kind]
    of_all = {field.name for field in dataclasses.fields(base)}
    owners: dict[type, list[str]] = {}
    for name in registry.names(kind):
        owners.setdefault(registry.config_class(kind, name), []).append(f"`{name}`")
    tables = [
        f"**{', '.join(names)}**\n\n{_keys_table([f for f in dataclasses.fields(cls) if f.name not in of_all], cls)}"
        for cls, names in owners.items()
        if len(dataclasses.fields(cls)) > len(of_all)
    ]
    return "\n\n".join(tables)


def sections(cls: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(dotted name, class) of a section and of those within it; the name of the outermost is empty."""
    yield prefix, cls
    for field in dataclasses.fields(cls):
        inner = field.metadata.get("of", field.metadata.get("base", field.default_factory))
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from sections(inner, f"{prefix}.{field.name}" if prefix else field.name)


def own_sections() -> Iterator[tuple[str, type]]:
    """(`backbone` or `method`, class) of the keys that single backbones and methods have."""
    for kind in registry.ROOMS:
        yield from ((kind, registry.config_class(kind, name)) for name in registry.names(kind))


def _section(name: str, cls: type) -> str:
    known = {inner for inner, _ in sections(cls)}
    keys = [field for field in dataclasses.fields(cls) if field.name not in known]
    heading = f"## `[{name}]`" if name else "## Top level"
    if name.endswith(".fields"):
        heading = f"## `[[{name}]]`"
    about = (cls.__doc__ or "").strip()
    text = f"{heading}\n\n{about}\n\n{_keys_table(keys, cls)}"
    return f"{text}\n\n{_own_keys(name)}" if name in ("backbone", "method") else text


def _keys_table(keys: list[dataclasses.Field[Any]], cls: type) -> str:
    hints = typing.get_type_hints(cls, include_extras=True)
    helps = {
        key: text
        for one in reversed(cls.__mro__)
        if dataclasses.is_dataclass(one)
        for key, text in comments(one).items()
    }
    rows = [(f"`{field.name}`", _type(hints[field.name]), _default(field), helps[field.name]) for field in keys]
    return rows_table(("key", "value", "default", "meaning"), rows)


def comments(cls: type) -> dict[str, str]:
    """The comment of each key of a section: behind it, or in the lines above it."""
    path = ROOT / (cls.__module__.replace(".", "/") + ".py")
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    (body,) = [
        node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    ]
    found = {}
    for node in body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
            continue
        above, line = [], node.lineno - 2
        while lines[line].strip().startswith("#"):
            above.insert(0, lines[line].strip().lstrip("# "))
            line -= 1
        behind = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].partition("#")[2].strip()
        found[node.target.id] = " ".join([*above, behind]).strip()
    return found


def _type(hint: Any) -> str:
    """A type as a reader of TOML knows it: `one of a, b`, `number >= 0`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [_bound(one) for one in hint.__metadata__]
        return " ".join([_type(arguments[0]), *filter(None, [", ".join(filter(None, bounds))])])
    if origin is typing.Literal:
        return " or ".join(f"`{json.dumps(one)}`" for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type, arguments))
    if origin is tuple:
        return "tables" if dataclasses.is_dataclass(arguments[0]) else f"list of: {_type(arguments[0])}"
    if origin is dict:
        return f"table of: {_type(arguments[1])}"
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}[hint]


def _bound(one: Any) -> str:
    signs = {"Ge": ("≥", "ge"), "Gt": (">", "gt"), "Le": ("≤", "le"), "Lt": ("<", "lt")}
    sign = signs.get(type(one).__name__)
    if sign is None:
        return "at least one" if type(one).__name__ == "MinLen" else ""
    value = getattr(one, sign[1])
    return "" if value == 1 << 63 else f"{sign[0]} {value}"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "must be given"
    else:
        value = field.default
    value = list(value) if isinstance(value, tuple) else value
    return f"`{json.dumps(value)}`"


def study_keys(place: str) -> str:
    """The keys of a section of `mwuf compare` or `mwuf tune`, from the docstring of `file.py:Class`."""
    path, _, name = place.partition(":")
    source = (ROOT / path).read_text(encoding="utf-8")
    (cls,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name]
    helps = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", ast.get_docstring(cls) or "", re.MULTILINE))
    keys = [node for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    rows = [(f"`{ast.unparse(key.target)}`", " ".join(helps[ast.unparse(key.target)].split())) for key in keys]
    return rows_table(("key", "meaning"), rows)


def command_help(_: str) -> str:
    """What each command says with `--help`, without the keys of the config."""
    usage = f"```text\n{help_of()}\n```"
    return "\n\n".join(
        [usage, *(f"## mwuf {command}\n\n```text\n{_short(help_of(command))}\n```" for command in COMMANDS)]
    )


def help_of(*command: str) -> str:
    """The help of a command, or of all of them, as a terminal of 100 columns shows it."""
    shown, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _HELP_COLUMNS
    try:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            cli.main([*command, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return "\n".join(line.rstrip() for line in shown.getvalue().splitlines()).strip()


def _short(text: str) -> str:
    found = _FIRST_CONFIG_OPTION.search(text)
    if found is None or "CONFIG" not in text.partition("\n")[0]:
        return text
    return text[: found.start()] + "  and every key of the config: --seed, --section.key VALUE"


def study(name: str) -> str:
    """The tables of a recorded comparison, by phases or days; where the paper has its rows, ours beside the paper's."""
    comparison = _comparison(name)
    if comparison.get("protocol") == "stream":
        tables, against = stream_report.tables(comparison)[:1], None
    else:
        tables = [auc_table(comparison, (scoring,)) for scoring in ("next", "test")]
        against = published_table(comparison)
    said = " ".join(comparison.get("claims", {}).get("sentences", ()))
    return "\n\n".join(
        [*(_table(table) for table in [*tables, *([against] if against else [])]), *([said] if said else [])]
    )


def gains_table(names: str) -> str:
    """What a method gains over its own backbone without it, as well tuned, fixed test: a line per study and method."""
    rows = []
    for comparison in map(_comparison, names.split()):
        for row in comparison["rows"]:
            gains = [row["phases"][phase]["versus_base_test"] for phase in PHASES]
            if all(gains):
                rows.append((_title(comparison), row["label"], *map(_gain, gains), str(gains[0]["num_seeds"])))
    return rows_table(("data", "row", *PHASES, "seeds"), rows)


def settings_table(names: str) -> str:
    """What DeepFM without a method gains by tuning, fixed test: pairs of studies, the tuned one first."""
    return _tuning_table(names, PHASES, lambda row, phase: row["phases"][phase]["auc_test"]["mean"])


def stream_settings_table(names: str) -> str:
    """The same day by day."""
    parts = {"first ten clicks": "first_clicks", "all rows": "stream"}
    return _tuning_table(names, parts, lambda row, part: row[parts[part]]["auc"]["mean"])


def _tuning_table(names: str, columns: Iterable[str], auc: Callable[[dict[str, Any], str], float]) -> str:
    rows, studies = [], [_comparison(name) for name in names.split()]
    for tuned, usual in zip(studies[::2], studies[1::2], strict=True):
        better, plain = (next(row for row in study["rows"] if row["label"].startswith("deepfm / base"))
                         for study in (tuned, usual))  # fmt: skip
        gains = [f"{auc(better, column) - auc(plain, column):+.4f}".replace("0.", ".") for column in columns]
        rows.append((_title(tuned), *gains, str(len(usual["seeds"]))))
    return rows_table(("data", *columns, "seeds"), rows)


def stream_gains_table(names: str) -> str:
    """What each row gains over the best base of a stream study: a line per study and row."""
    rows = []
    for comparison in map(_comparison, names.split()):
        for row in comparison["rows"]:
            over_all, first = row["versus"], row["versus_first_clicks"]
            if over_all and first:
                seeds = str(first["num_seeds"])
                rows.append((_title(comparison), row["label"], first["row"], _gain(first), _gain(over_all), seeds))
    return rows_table(("data", "row", "against", "first ten clicks", "all rows", "seeds"), rows)


def _comparison(name: str) -> dict[str, Any]:
    comparison = json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))
    # Older records were made before tests were corrected for their number.
    (stream_report.conclude if comparison.get("protocol") == "stream" else conclude)(comparison)
    return comparison


def _title(comparison: dict[str, Any]) -> str:
    return comparison["about"]["title"].partition(",")[0] if comparison["dataset"] == "logs" else comparison["dataset"]


def _gain(versus: dict[str, Any]) -> str:
    text = f"{versus['difference']:+.4f}".replace("0.", ".")
    return f"**{text}**" if versus["p_holm"] < _SURE else text


def other_studies(shown: str) -> str:
    """The tables of every other comparison that has a record, so that a new record needs no new text."""
    parts = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        is_study = isinstance(record, dict) and ("published_source" in record or record.get("protocol") == "stream")
        if path.name in shown.split() or not is_study:
            continue
        about = record.get("about", {})
        said = [about.get("note", ""), f"Made by: `{about['command']}`" if "command" in about else ""]
        heading = f"### {about.get('title') or path.stem} ({record['dataset']}, {about.get('regime') or path.stem})"
        parts.append("\n\n".join([heading, *filter(None, said), study(path.name)]))
    return "\n\n".join(parts)


def paper_table(dataset: str) -> str:
    """The paper's own figures of a data set."""
    rows = [(row, *(f"{auc:.4f}" for auc in aucs)) for row, aucs in published.AUC[dataset].items()]
    return rows_table(("", *PHASES), rows)


def question_configs(_: str) -> str:
    """The configs of the paper's research questions: data set, regime, question, command."""
    rows = []
    for path in sorted((ROOT / "configs").glob("*-rq?.toml")):
        question = tomllib.loads((ROOT / "configs" / "rq" / f"{path.stem[-3:]}.toml").read_text(encoding="utf-8"))
        rows.append((question["study"]["title"], path.stem[:-4], f"`mwuf compare configs/{path.name}`"))
    return rows_table(("question", "data set and regime", "command"), sorted(rows))


def benchmark_list(_: str) -> str:
    """Each benchmark and the question that it answers: the first line of its docstring."""
    rows = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        question = about.split("\n\n")[0].replace("\n", " ")
        if "if __name__" in path.read_text(encoding="utf-8"):
            rows.append((question.partition(" `python")[0], f"`python -m benchmarks.{path.stem}`"))
    return rows_table(("question", "command"), rows)


def _table(table: Table) -> str:
    groups = list(dict.fromkeys(column.group for column in table.columns if column.group != "samples/s"))
    kept = [index for index, column in enumerate(table.columns) if column.group in groups]
    heads = [
        table.columns[i].name if len(groups) == 1 else f"{table.columns[i].name}, {table.columns[i].group}"
        for i in kept
    ]
    rows = [(label, *(_cell(cells[index]) for index in kept)) for label, cells in table.rows]
    title = (groups[0] if len(groups) == 1 else "") or table.title
    return f"**{title}**\n\n{rows_table(('', *heads), rows)}\n\n{table.note}"


def _cell(cell: Cell) -> str:
    return (f"**{cell.text}**" if cell.best else cell.text) + (f" ± {cell.spread}" if cell.spread else "") + cell.mark


GENERATORS: dict[str, Callable[[str], str]] = {
    "config_keys": config_keys,
    "command_help": command_help,
    "gains_table": gains_table,
    "settings_table": settings_table,
    "stream_settings_table": stream_settings_table,
    "stream_gains_table": stream_gains_table,
    "study_keys": study_keys,
    "prepare_table": docs_tables.prepare_table,
    "init_table": docs_tables.init_table,
    "prepare_growth_table": docs_tables.prepare_growth_table,
    "plan_table": docs_tables.plan_table,
    "growth_table": docs_tables.growth_table,
    "loader_table": docs_tables.loader_table,
    "saves_table": docs_tables.saves_table,
    "power_cuts_table": docs_tables.power_cuts_table,
    "new_users_table": docs_tables.new_users_table,
    "stops_table": docs_tables.stops_table,
    "processors_table": docs_tables.processors_table,
    "last_bits_table": docs_tables.last_bits_table,
    "exploration_table": docs_tables.exploration_table,
    "compiled_kernels_table": kernel_tables.compiled_kernels_table,
    "criteo_table": docs_tables.criteo_table,
    "export_table": docs_tables.export_table,
    "gpu_kernels_table": kernel_tables.gpu_kernels_table,
    "warm_table": docs_tables.warm_table,
    "fast_paths_table": kernel_tables.fast_paths_table,
    "threads_table": docs_tables.threads_table,
    "ranks_table": docs_tables.ranks_table,
    "large_tables_table": docs_tables.large_tables_table,
    "network_table": docs_tables.network_table,
    "speed_table": docs_tables.speed_table,
    "backbone_speed_table": docs_tables.backbone_speed_table,
    "study": study,
    "other_studies": other_studies,
    "paper_table": paper_table,
    "question_configs": question_configs,
    "benchmark_list": benchmark_list,
}
