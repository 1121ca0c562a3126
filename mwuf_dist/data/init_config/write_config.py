"""`mwuf init`: the proposal as a commented TOML file, with the numbers of old and new items that N and K would make."""

from __future__ import annotations

import datetime
import math
import re
import textwrap
from dataclasses import fields, replace
from string import Template

import numpy as np
import tomli_w

from mwuf_dist.config import UserError
from mwuf_dist.config.logs import LogsConfig, LogsField, TableForm
from mwuf_dist.data.both_classes import LabelledRows, has_both
from mwuf_dist.data.init_config.propose import Proposal
from mwuf_dist.data.readers.gate import Rows
from mwuf_dist.data.schema import RawDataset
from mwuf_dist.data.sources import logs

THRESHOLDS = (20, 30, 50, 100, 200, 500, 1000, 2000, 5000)
PRETRAIN_SHARE = 0.6  # The model wants most rows; within that, a larger N gives more new items to test on.
MIN_ITEMS = 10
_WIDTH = 118  # Of comments that list columns.


def write_config(found: Proposal) -> str:
    """Makes the text of a config for the logs.

    Raises:
        UserError: no N and K give both old and new items, no row of label 0 could be drawn, or all rows of old items
            have one label.
    """
    rows = found.rows
    assert rows is not None
    dataset = logs.join(rows, found.options)  # draws nothing: N and K count positives
    sizes = {one.name: one.size for one in dataset.fields if one.kind != "vector"}
    if empty := {one.name for one in found.options.fields if sizes.get(one.name) == 1}:
        found = _without_fields(found, empty)
        dataset = logs.join(rows, found.options)
    item, time, label = (dataset.interactions[name].to_numpy() for name in ("item", "time", "label"))
    counts = np.bincount(item, minlength=dataset.items.num_rows)
    old_above, warm_rows = choose(counts)
    positives = float(label.mean())
    num_pairs = dataset.users.num_rows * len(counts)
    # Only then is it worth counting the distinct pairs.
    if positives == 1.0 and num_pairs <= len(item) and num_pairs == len(_pairs(dataset)):
        raise UserError(
            f"no row of label 0 could be drawn: each of {dataset.users.num_rows:,} users has every item. A log of "
            "positives needs users who do not take everything; more of them, or a column of labels (--label)"
        )
    classes_note = ""
    if not found.options.negatives_per_positive:
        old_above, warm_rows, classes_note = _with_both_classes(
            LabelledRows.of(item, time, label), old_above, warm_rows
        )
    lines = [
        "# Proposed by `mwuf init`: every choice below is a guess from names and content; correct what is wrong.",
        f"# {len(counts):,} items, {dataset.users.num_rows:,} users, {counts.sum():,} labelled rows, "
        f"{positives:.1%} of them positive.",
        *[comment(f"{one.removesuffix('.')}.") for one in (*found.remarks, *dataset.notes)],
        "",
        "[data]",
        'name = "logs"',
        *_threshold_comment(counts, old_above, warm_rows),
        *([comment(classes_note)] if classes_note else []),
        *_launch_comment(rows, item, time, counts, (old_above, warm_rows)),
        f"old_above = {old_above}  # N: an old item has more rows than this.",
        f"warm_rows = {warm_rows}  # K: rows of each warm set; a new item has 3K to N rows.",
        "",
        "[data.logs]",
        "# Paths are relative to the folder where mwuf starts, or to $MWUF_DATA_DIR.",
        *options_of(found),
        *_left_out(found.left_out),
    ]
    for one in found.options.fields:
        lines += ["", *_field(one, dataset, found.notes.get(f"field {one.name}", ""))]
    num_rows = int(counts[counts > old_above].sum()) * (1 + found.options.negatives_per_positive)
    return "\n".join([*lines, "", *_training(num_rows), ""])


def _pairs(dataset: RawDataset) -> np.ndarray:
    """Returns distinct pairs of a user and an item."""
    user, item = (dataset.interactions[name].to_numpy() for name in ("user", "item"))
    return np.unique(user * np.int64(dataset.items.num_rows) + item)


def choose(counts: np.ndarray) -> tuple[int, int]:
    """Returns N and K for items with so many rows each [I].

    The largest N that leaves old items six tenths of the rows, with at least ten old and ten new items, and K = N /
    10 (the ratio of the MovieLens protocol); where there is none, the N with the most rows of the scarcer kind.

    Raises:
        UserError: no N gives both kinds.
    """
    best, fallback = None, None
    for threshold in THRESHOLDS:
        rows = threshold // 10
        old, new, old_rows, test = _count(counts, threshold, rows)
        if not old or not new or not test:
            continue
        scarcer = min(old_rows, int(counts.sum()) - old_rows)
        if fallback is None or scarcer > fallback[0]:
            fallback = (scarcer, threshold)
        if min(old, new) >= MIN_ITEMS and old_rows >= PRETRAIN_SHARE * counts.sum():
            best = threshold
    if fallback is None:
        raise UserError(
            f"the {len(counts)} items have at most {int(counts.max(initial=0))} rows each: no item can be old and "
            "another new. More rows of each item are needed (over 20 of some, and 6 to 20 of others)"
        )
    threshold = best or fallback[1]
    return threshold, threshold // 10


def _count(counts: np.ndarray, threshold: int, rows: int) -> tuple[int, int, int, int]:
    """Counts old items, new items, rows of old items, rows of `test`."""
    old = counts > threshold
    new = (counts >= 3 * rows) & ~old
    return int(old.sum()), int(new.sum()), int(counts[old].sum()), int(counts[new].sum() - 3 * rows * new.sum())


def _without_fields(found: Proposal, empty: set[str]) -> Proposal:
    """Returns the proposal without fields that have no value, which it says."""
    kept = tuple(one for one in found.options.fields if one.name not in empty)
    columns = {one.name: one.column or one.name for one in found.options.fields}
    why = {columns[name]: "each of its values stands too seldom to be learnt" for name in empty}
    return replace(found, options=replace(found.options, fields=kept), left_out=found.left_out | why)


def _with_both_classes(rows: LabelledRows, old_above: int, warm_rows: int) -> tuple[int, int, str]:
    """Finds the N and K nearest to the chosen ones for which each set has both labels, and what to say.

    Raises:
        UserError: there are none near, and the rows of old items have one label, from which nothing is learnt.
    """
    classes = rows.classes(old_above, warm_rows)
    if has_both(classes):
        return old_above, warm_rows, ""
    lacking = ", ".join(f"{name} {num:,} of {of:,}" for name, (of, num) in classes.items())
    said = f"N = {old_above} and K = {warm_rows} leave a set with one class (positives: {lacking})"
    for fewest in (MIN_ITEMS, 1):
        better = rows.better(old_above, warm_rows, fewest)
        if better:
            return *better, f"{said}; these are the nearest that do not."
    num_rows, num_positives = classes["pretrain"]
    if num_positives in (0, num_rows):
        raise UserError(
            f"{said}, and so does all that is near: of the {num_rows:,} rows to pretrain on {num_positives:,} are "
            "positives, and nothing could be learnt. Check what is a positive (--label COLUMN with --label-is VALUE "
            "or --label-at-least NUMBER), or name more logs; --label none takes every row as a positive"
        )
    return old_above, warm_rows, f"{said}, and so does all that is near: AUC is not defined there, and shown as –."


def _threshold_comment(counts: np.ndarray, old_above: int, warm_rows: int) -> list[str]:
    lines = ["#      N      K   old items   new items    pretrain rows    test rows"]
    for threshold in sorted({*THRESHOLDS, old_above}):
        of_chosen = {warm_rows} if threshold == old_above else set()
        for rows in sorted({max(1, threshold // 20), threshold // 10, threshold // 4} - {0} | of_chosen):
            old, new, old_rows, test = _count(counts, threshold, rows)
            if old and new and test:
                mark = "  <- chosen" if (threshold, rows) == (old_above, warm_rows) else ""
                lines.append(f"# {threshold:>6} {rows:>6} {old:>11,} {new:>11,} {old_rows:>16,} {test:>12,}{mark}")
    return lines


def _launch_comment(
    rows: Rows, item: np.ndarray, time: np.ndarray, counts: np.ndarray, rule: tuple[int, int]
) -> list[str]:
    """Says that the new items are old acquaintances, where most are, and which launch date would take recent ones."""
    old_above, warm_rows = rule
    if rows.form.time.kind != "date" and not rows.form.time.is_recent:
        return []
    first = np.full(len(counts), np.iinfo(np.int64).max)
    np.minimum.at(first, item, time)
    new = (counts >= 3 * warm_rows) & (counts <= old_above)
    start, stop = int(time.min()), int(time.max())
    early = int((first[new] <= start + (stop - start) // 10).sum())
    day = datetime.datetime.fromtimestamp(int(np.quantile(time, 0.7)) / 1e6, datetime.UTC).date()
    since = int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp() * 1e6)
    recent = (first >= since) & (counts >= 3 * warm_rows)
    if 2 * early <= new.sum() or min(recent.sum(), (first < since).sum()) < MIN_ITEMS:
        return []
    return [
        f"# {early:,} of these {int(new.sum()):,} new items were first seen in the first tenth of the log's time: "
        "seldom seen, not recent.",
        f'# new_since = "{day}"  # would take the {int(recent.sum()):,} items that were first seen since then.',
    ]


_ALWAYS = ("interactions", "user", "item", "time")


def options_of(found: Proposal) -> list[str]:
    """Writes the keys of section `data.logs` but for the fields, with what spoke for each."""
    usual = LogsConfig()
    lines = []
    for key in (one.name for one in fields(LogsConfig) if one.name != "fields"):
        value = getattr(found.options, key)
        said = found.notes.get(key)  # of a value that is the usual one, too
        if key in _ALWAYS or said or value != getattr(usual, key):
            note = f"  {comment(said)}" if said else ""
            lines.append(f"{key} = {_toml(value)}{note}")
    return lines


def _left_out(columns: dict[str, str]) -> list[str]:
    """Writes why columns are no fields: of those with one reason once, with the numbers of each."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, why in columns.items():
        detail = re.search(r" \((.*?)\)", why)
        reason = why if detail is None else why.replace(detail[0], "", 1)
        groups.setdefault(reason, []).append((name, "" if detail is None else detail[1]))
    lines = []
    for reason, members in groups.items():
        name, detail = members[0]
        if len(members) == 1:
            lines.append(comment(f"Column {name!r} is left out: {columns[name]}."))
            continue
        said = [f"{name!r} ({detail})" if detail else repr(name)]
        for other, numbers in members[1:]:
            short = ", ".join(re.findall(r"\d[\d,.]*%?", numbers))
            said.append(f"{other!r} ({short})" if short else repr(other))
        text = comment(f"Each of {len(members)} columns is left out: {reason}. They are {', '.join(said)}.")
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent="#   ", break_long_words=False, break_on_hyphens=False)
    return lines


def _form(form: TableForm) -> str:
    """Returns a form as an inline table."""
    said = [f"{one.name} = {_toml(getattr(form, one.name))}" for one in fields(TableForm) if getattr(form, one.name)]
    return f"{{ {', '.join(said)} }}"


def _toml(value: object) -> str:
    """Returns a value as TOML has it."""
    if isinstance(value, TableForm):
        return _form(value)
    text = tomli_w.dumps({"x": list(value) if isinstance(value, tuple) else value}).removeprefix("x = ").rstrip("\n")
    return " ".join(one.strip() for one in text.split("\n")) if isinstance(value, tuple) else text


def comment(text: str) -> str:
    """Returns a comment of one line: what stands in data (line ends, escapes) cannot leave it."""
    return "# " + "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _field(one: LogsField, dataset: RawDataset, said: str) -> list[str]:
    usual = LogsField(name="x", side="user")
    size = next(made.size for made in dataset.fields if made.name == one.name)
    note = f"  {comment(said)}" if said else ""
    lines = ["[[data.logs.fields]]", f"name = {_toml(one.name)}", f"side = {_toml(one.side)}{note}"]
    unit = "buckets" if one.kind == "numeric" else "values"
    said = f"{size:,} numbers of each item" if one.kind == "vector" else f"{size - 1:,} {unit}"
    lines.append(f"kind = {_toml(one.kind)}  # {said}")
    for key in ("column", "separator", "min_count", "buckets"):
        if getattr(one, key) != getattr(usual, key):
            lines.append(f"{key} = {_toml(getattr(one, key))}")
    return lines


_TRAINING = Template(
    """\
[backbone]
name = "fm"

[method]
name = "map"

[pretrain]
epochs = $epochs
batch_size = $batch_size
learning_rate = 3e-3

[meta_train]
batch_size = $batch_size

[warm_up]
epochs = 5
learning_rate = 1e-2
carry_over = true

# `mwuf compare` runs these, over three seeds, and says which to deploy.
[study]
seeds = 3

[[study.runs]]
method = { name = "map" }

[[study.runs]]
$deep
method = { name = "base" }

[[study.runs]]
$deep
method = { name = "base", initialisation = "mean", variant = "mean row" }

[[study.runs]]
$deep
method = { name = "mwuf" }
warm_up = { learning_rate = 3e-3 }  # its learned scale, often 2 to 3, makes the steps longer

# `mwuf tune` tries these for every run of [study], on old items played as new.
[tune]
folds = 1

[tune.grid]
"pretrain.learning_rate" = [1e-3, 3e-3]
"pretrain.epochs" = [$epochs, $more_epochs]
"warm_up.learning_rate" = [3e-3, 1e-2, 3e-2]"""
)


def _training(rows: int) -> list[str]:
    """Gives settings that suit the number of pretrain rows, drawn ones included.

    `mwuf compare` finds its runs here too.

    FM with rows fitted to their clicks (map) comes first: of the methods here it has won most often on real logs, and
    costs least. The steps of `pretrain` decide most: one pass in large batches leaves a log of a few hundred thousand
    rows far from trained, so small logs have small batches and more passes.
    """
    batch_size = int(min(2048, max(256, 2 ** round(math.log2(max(rows, 1) / 1500)))))
    epochs = 5 if rows < 1_000_000 else 3 if rows < 4_000_000 else 2
    deep = 'backbone = { name = "deepfm", batch_norm = true, dropout = 0.2 }'
    keys = {"epochs": epochs, "more_epochs": 2 * epochs, "batch_size": batch_size, "deep": deep}
    return _TRAINING.substitute(keys).split("\n")
