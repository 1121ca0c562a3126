import base64
import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from mwuf_dist import files
from mwuf_dist.config import PHASES
from mwuf_dist.evaluation import report
from mwuf_dist.evaluation.report import (
    build_comparison,
    html,
    latex,
    markdown,
    print_comparison,
    write_comparison,
)
from mwuf_dist.evaluation.tables import auc_table, sentences, speed
from tests.evaluation.results import make_result, two_methods, with_clicks
from tests.evaluation.test_comparison import audit_of


def _markdown_rows(text, heading):
    """The cells of the Markdown table below a heading, without its rule."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [cells[0], *cells[2:]]


def _comparison(num_seeds=3, **more):
    results = two_methods(num_seeds, **more)
    for result in results:
        for phase in PHASES:
            result["phases"][phase] |= {"ceiling_next": 0.8, "ceiling_test": 0.81}
    return build_comparison(results)


def test_markdown_shows_means_spreads_marks_speeds_and_the_ceiling():
    comparison = _comparison()
    head, base, mwuf, ceiling = _markdown_rows(markdown(comparison), "AUC, next set")
    assert head[1:5] == list(PHASES)
    numbers = comparison["rows"][1]["phases"]["warm-b"]["auc_next"]
    assert mwuf[3] == f"**{numbers['mean']:.4f}** ± {numbers['std']:.4f}\\*"
    assert "**" not in base[3]
    assert base[6] == "–" and mwuf[6] == "101 k"  # the base has no meta_train
    assert ceiling[:2] == ["Bayes ceiling", "0.8000"]


def test_markdown_tables_are_rectangular_and_escape_what_would_break_them():
    results = [*two_methods(2), make_result("wide_deep", "mwuf", 0, [0.6] * 4, variant="a|b <i>*x*")]
    text = markdown(build_comparison(results))
    for section in text.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert r"wide\_deep / mwuf (a\|b \<i\>\*x\*)" in text


def test_a_single_seed_shows_no_spread_and_no_mark():
    table = auc_table(_comparison(1))
    assert "tem popularity" not in table.note, "there is no such row"
    assert all(not cell.spread and not cell.mark for _, cells in table.rows for cell in cells)
    assert "±" not in markdown(_comparison(1)).split("## RelaImpr")[0]


def test_marks_tell_the_best_method_from_one_that_beats_only_its_base():
    results = two_methods(5)
    wiggle = (0.001, 0.0, 0.002, 0.0, 0.001)
    for seed in range(5):
        results.append(
            make_result("wide_deep", "metaemb", seed, [auc + wiggle[seed] for auc in (0.66, 0.651, 0.6, 0.6)])
        )
    rows = dict(auc_table(build_comparison(results), ("next",)).rows)
    marks = {label: [cell.mark for cell in cells[:4]] for label, cells in rows.items()}
    assert marks["wide_deep / base"] == ["", "", "", ""]
    assert marks["wide_deep / metaemb"] == ["*", "", "", ""]  # in warm-a it beats the base's .65 by too little
    assert marks["wide_deep / mwuf"] == ["†", "*", "*", "*"]


def test_best_of_log_loss_is_the_lowest():
    _, base, mwuf = _markdown_rows(markdown(_comparison()), "Log loss")
    assert all("**" in cell for cell in mwuf[1:]) and not any("**" in cell for cell in base[1:])


def test_latex_rows_have_as_many_cells_as_columns_and_special_characters_are_escaped():
    results = two_methods(2, dataset="movielens-1m")
    results += [make_result("wide_deep", "mwuf", 0, [0.6] * 4, "50% & more_", "movielens-1m")]
    text = latex(build_comparison(results))
    tables = re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL)
    assert len(tables) == 8
    for columns, body in tables:
        rows = body.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
        assert rows
        for row in rows:
            assert len(re.split(r"(?<!\\)&", row)) == len(columns)
            assert row.endswith(r"\\")
    assert r"wide\_deep / mwuf (50\% \& more\_)" in text
    assert not re.search(r"[^\x00-\x7f]", text), "plain ASCII compiles with every engine"
    assert text.count("{") == text.count("}")


class _Page(HTMLParser):
    """Collects what a browser would fetch, and checks that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.tags, self.text = [], [], set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_well_formed_and_needs_nothing_from_outside(tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n some bytes")
    results = two_methods(3, dataset="movielens-1m", config={"method": {"name": "<script>alert(1)</script>"}})
    page = html(build_comparison(results), [picture])
    parser = _Page()
    parser.feed(page)
    assert parser.open == []
    assert not parser.tags & {"script", "link", "iframe"}
    assert [url.partition(",")[0] for url in parser.fetched] == ["data:image/png;base64"]
    assert base64.b64decode(parser.fetched[0].partition(",")[2]) == picture.read_bytes()
    assert not re.search(r"https?:|url\(|@import", page)


def test_page_holds_every_part_of_the_report_with_the_headline_first(tmp_path):
    comparison = _comparison(dataset="movielens-1m", config={"warm_up": {"epochs": 5}})
    page = _Page()
    page.feed(html(comparison, []))
    parts = [
        "AUC, next set",
        "RelaImpr",
        "Log loss",
        "Against the published figures",
        "Speed",
        "warm_up.epochs",
        "torch",
    ]
    places = [page.text.index(part) for part in parts]
    assert places == sorted(places)
    assert "Bayes ceiling" in page.text


def _told(**about):
    results = [with_clicks(result, warm_rows=20) for result in two_methods(3)]
    failures = {"wide_deep-mwuf-seed9": "the loss is nan"}
    audits = [audit_of("wide_deep / base"), audit_of("wide_deep / mwuf", {"warm-a on test": 12})]
    return build_comparison(results, audits, about, failures)


def test_every_form_tells_title_regime_note_command_audit_failures_clicks_and_budget():
    comparison = _told(title="RQ9", regime="paper", note="100% tuned.", command="mwuf compare rq9.toml")
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=100))
    page = _Page()
    page.feed(html(comparison, []))
    forms = [markdown(comparison).replace("\\", ""), latex(comparison).replace("\\", ""), page.text, out.getvalue()]
    for form in (" ".join(form.split()) for form in forms):
        for part in (
            "100% tuned.",
            "mwuf compare rq9.toml",
            "Leak audit: FAILED",
            "wide_deep / mwuf: 12 scores of warm-a on test",
            "wide_deep-mwuf-seed9: the loss is nan",
        ):
            assert part in form, part
    for form in forms[:3]:
        assert "synthetic: RQ9 (paper regime)" in form
        assert "AUC by clicks of the item" in form and "60 on" in form and "Budget" in form
    rows = _markdown_rows(markdown(comparison), "AUC by clicks of the item")
    assert len(rows[0]) == 14 and rows[1][1] == "0.6007 ± 0.0031"


def test_an_audit_that_passed_says_how_many_scores_it_compared():
    comparison = build_comparison(two_methods(), [audit_of("wide_deep / mwuf")], {"title": "x"})
    sentence = sentences(comparison)[0]
    assert "passed, 10 scores of 1 rows" in sentence and sentence.endswith("Not audited: wide_deep / base.")
    told = " ".join(sentences(build_comparison(two_methods())))
    assert "audit" not in told, "a single run has no audit to speak of"


@pytest.mark.parametrize("many", [False, True])
def test_console_fits_a_hundred_columns_and_has_a_table_per_scoring_and_one_of_speed(many):
    results = two_methods(3)
    if many:
        results += [make_result("gru4rec", "dropoutnet", seed, [0.5] * 4, "no shifting") for seed in range(3)]
    out = io.StringIO()
    print_comparison(build_comparison(results), Console(file=out, width=100))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    text = " ".join(out.getvalue().split())
    assert "AUC, next set" in text and "AUC, fixed test" in text and "Samples per second" in text
    assert "0.6807 ±0.0031" in text and "+0.0%" in text and "…" not in text


def test_console_takes_brackets_in_a_variant_as_text():
    results = [*two_methods(1), make_result("wide_deep", "mwuf", 0, [0.6] * 4, variant="[bold]x[/nothing]")]
    out = io.StringIO()
    print_comparison(build_comparison(results), Console(file=out, width=200))
    assert "[bold]x[/nothing]" in out.getvalue()


def test_write_comparison_leaves_a_complete_folder_and_the_same_bytes_each_time(tmp_path):
    folder = tmp_path / "new" / "folder"
    comparison = write_comparison(build_comparison(two_methods(2)), folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    names = ["comparison.json", "comparison.md", "comparison.tex", "phases.png", "report.html", "speed.png"]
    assert sorted(first) == names
    assert files.parse_json(first["comparison.json"]) == comparison
    assert first["report.html"].count(b"data:image/png;base64,") == 2
    write_comparison(build_comparison(two_methods(2)), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_a_failing_write_keeps_the_old_report_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    write_comparison(build_comparison(two_methods(2)), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("mwuf_dist.files.os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        report.write_atomically(tmp_path / "comparison.md", "half")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_speed_has_three_digits_and_a_unit():
    shown = [speed(value) for value in (None, 0, 999, 999.6, 1_234, 99_960, 123_456, 999_600, 1.24e6, 2e9)]
    assert shown == ["–", "0", "999", "1.00 k", "1.23 k", "100 k", "123 k", "1.00 M", "1.24 M", "2.00 G"]
