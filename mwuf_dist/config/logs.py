"""Section `data.logs`: your own logs."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Le, MinLen

from mwuf_dist.config.types import Count, Negatives, Seed, Share, section


@section
class LogsField:
    """One `[[data.logs.fields]]`: a feature of the users, the items or the rows of your own logs."""

    name: Annotated[str, MinLen(1)]  # Name in reports and tables.
    # Whose feature it is; row: of the interaction itself (its position, device or hour), a column there.
    side: Literal["user", "item", "row"]
    # numeric: an index per quantile bucket; vector: a list of numbers, in Parquet, as many for every item.
    kind: Literal["categorical", "multi_valued", "numeric", "vector"] = "categorical"
    column: str = ""  # Its column, in the side table or else the interactions; empty: the name.
    separator: str = "|"  # multi_valued: separator of the values in a text (a list column needs none).
    min_count: Count = 1  # A value of fewer users (items, rows) than this is unknown, index 0.
    buckets: Annotated[int, Ge(2), Le(1_000_000)] = 20  # numeric: number of quantile buckets.


@dataclasses.dataclass(frozen=True)
class Written:
    """Holds what a command line says of how text files are written; what is empty is left to the config.

    Attributes:
        header: names of the columns, with commas between them.
        delimiter: between two columns; `tab` is one.
        quote: around values that hold the delimiter; `none`: nothing is.
        encoding: of letters.
        time_format: of dates, as strptime has it.
        drop_incomplete: rows that lack something are left out.
    """

    header: str = ""
    delimiter: str = ""
    quote: str | None = None
    encoding: str = ""
    time_format: str = ""
    drop_incomplete: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(name.strip() for name in self.header.split(",") if name.strip())

    def on(self, options: LogsConfig) -> LogsConfig:
        """Puts what is said into the section `data.logs` of a config."""
        said: dict[str, object] = {name: getattr(self, name) for name in ("encoding", "time_format")}
        said |= {"header": self.names, "delimiter": {"tab": "\t", "\\t": "\t"}.get(self.delimiter, self.delimiter)}
        said = {name: value for name, value in said.items() if value}
        if self.quote is not None:
            said["quote"] = "" if self.quote == "none" else self.quote
        said |= {"drop_incomplete": True} if self.drop_incomplete else {}
        return dataclasses.replace(options, **said)


@section
class TableForm:
    """How the text files of a side table are written, where otherwise than those of the interactions."""

    header: tuple[str, ...] = ()  # Names of the columns of files without a header line.
    delimiter: str = ""  # Delimiter of the columns; empty: that of the interactions.
    quote: str = ""  # Character around values that contain the delimiter; none: no quotes; empty: as there.
    encoding: str = ""  # Encoding of the text; empty: that of the interactions.


@section
class LogsConfig:
    """Your own logs, Parquet or CSV: where they lie, and what their columns mean (`mwuf init` proposes it)."""

    interactions: str = ""  # File, or folder of files: Parquet or CSV, also compressed.
    users: str = ""  # Table of users to join, a file or folder; may be empty.
    items: str = ""  # Table of items to join; may be empty.
    user: str = "user_id"  # Column of the user, in interactions and users.
    item: str = "item_id"  # Column of the item, in interactions and items.
    time: str = "timestamp"  # Column of the time: a number, a date, or a date and time; empty: the order of the rows.
    time_format: str = ""  # Format of dates in text, as in strptime; empty: ISO 8601.
    label: str = ""  # Column that is 0 or 1; empty: `label_from` or `negatives_per_positive` says what a label is.
    label_from: str = ""  # Column from which the label is made, by `label_at_least` or `label_is`.
    label_at_least: Annotated[float, Ge(-1e300), Le(1e300)] = 1.0  # 1 where `label_from` is at least this.
    label_is: tuple[str, ...] = ()  # Instead: 1 where `label_from` is one of these values.
    # For logs without labels: every row is positive, and so many rows of label 0 are drawn for each.
    negatives_per_positive: Negatives = 0
    negatives_seed: Seed = 0  # Seed of that draw.
    weight: str = ""  # Column with the weight of a row in the losses, from 0 on; empty: each weighs 1.
    weights: tuple[str, ...] = ()  # Weights of the values of that column: ["click=1", "buy=5"]; others 1.
    # Of rows alike in user, item, time and label, one stays; first_of_pair: of a user and an item, the earliest.
    repeated_rows: Literal["drop", "keep", "first_of_pair"] = "drop"
    drop_incomplete: bool = False  # Leave rows without user, item, time or label out, where they would be an error.
    missing: tuple[str, ...] = (
        "",
        "NULL",
        "null",
        "NaN",
        "nan",
        "N/A",
        "NA",
        "None",
        "\\N",
        "<NA>",
        "NaT",
        "#N/A",
    )  # Means missing.
    delimiter: str = ""  # CSV: delimiter of the columns; empty: a tab in .tsv, else a comma.
    quote: str = '"'  # CSV: character around values that contain the delimiter; empty: no quotes.
    encoding: str = "utf-8"  # CSV: encoding of the text.
    header: tuple[str, ...] = ()  # CSV: names of the columns of files without a header line.
    # How the table of users is written, if otherwise.
    users_form: TableForm = dataclasses.field(default_factory=TableForm)
    # How the table of items is written, if otherwise.
    items_form: TableForm = dataclasses.field(default_factory=TableForm)
    # A field of the users (or items) that is a column of the interactions should have one value for at least this
    # fraction of them; if it has not, a note says so.
    constant_share: Share = 0.99
    fields: tuple[LogsField, ...] = dataclasses.field(default=(), metadata={"of": LogsField})  # The features.

    def of_table(self, side: Literal["user", "item"]) -> LogsConfig:
        """Says how the side table of users or items is read: it names its own columns, and may be written otherwise."""
        form: TableForm = self.users_form if side == "user" else self.items_form
        said = {name: value for name in ("delimiter", "encoding") if (value := getattr(form, name))}
        if form.quote:
            said["quote"] = "" if form.quote == "none" else form.quote
        return dataclasses.replace(self, header=form.header, **said)
