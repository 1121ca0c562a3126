"""The generated data set: the same rows however they are asked for, and a model that behaves as it says."""

from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from mwuf_dist.config import DataConfig, SyntheticConfig, UserError
from mwuf_dist.data.schema import RawDataset
from mwuf_dist.data.sources import synthetic
from mwuf_dist.data.split import SplitRule
from tests.data.raw_files import in_memory
from tests.data.splits import split_rows

SMALL = SyntheticConfig(num_rows=150_000, num_users=500, num_items=300)


def table(config: SyntheticConfig, **options: int) -> pa.Table:
    return pa.Table.from_batches(synthetic.generate_batches(config, **options)).combine_chunks()


@pytest.fixture(scope="module")
def demo() -> RawDataset:
    return in_memory(synthetic.pieces(DataConfig(name="synthetic")))


@pytest.mark.parametrize("batch_rows", [999, 65_536, 100_000, 10**6])
def test_rows_do_not_depend_on_the_size_of_batches(batch_rows: int) -> None:
    batches = list(synthetic.generate_batches(SMALL, batch_rows))
    assert [batch.num_rows for batch in batches[:-1]] == [batch_rows] * (len(batches) - 1)
    assert (
        pa.Table.from_batches(batches).combine_chunks()
        == in_memory(synthetic.pieces(DataConfig(synthetic=SMALL))).interactions
    )


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (65_535, 65_537), (70_001, 140_003), (149_999, 150_000), (7, 7)])
def test_any_range_of_rows_can_be_generated_alone(start: int, stop: int) -> None:
    alone = list(synthetic.generate_batches(SMALL, 4_000, start, stop))
    whole = table(SMALL).slice(start, stop - start)
    assert pa.Table.from_batches(alone, schema=whole.schema).combine_chunks() == whole.combine_chunks()


def test_same_seed_same_data_and_another_seed_other_data() -> None:
    assert table(SMALL) == table(SMALL)
    other = SyntheticConfig(num_rows=150_000, num_users=500, num_items=300, seed=1)
    for name in ("user", "item", "label"):
        same = np.mean(table(SMALL)[name].to_numpy() == table(other)[name].to_numpy())
        assert same < 0.6
    assert synthetic.make_world(SMALL).items != synthetic.make_world(other).items


def test_huge_seeds_are_seeds_too() -> None:
    tables = [table(SyntheticConfig(num_rows=1_000, seed=seed))["user"] for seed in (0, 2**62)]
    assert tables[0] != tables[1]
    assert tables[1].length() == 1_000


def test_default_data_set_has_hundreds_of_old_and_new_items(demo: RawDataset) -> None:
    demo.check("synthetic")
    assert 200_000 <= demo.interactions.num_rows <= 300_000
    item, time = (demo.interactions[name].to_numpy() for name in ("item", "time"))
    split = split_rows(item, time, demo.items.num_rows, SplitRule(200, 20))
    assert split.num_old_items >= 200 and split.num_new_items >= 300
    assert len(split.rows["test"]) >= 20_000


@pytest.mark.parametrize("seed", range(3))
def test_bayes_ceiling_of_the_default_data_set(seed: int) -> None:
    interactions = table(SyntheticConfig(seed=seed))
    ceiling = roc_auc_score(interactions["label"].to_numpy(), interactions["bayes_logit"].to_numpy())
    assert 0.78 < ceiling < 0.83


def test_bayes_logit_is_calibrated(demo: RawDataset) -> None:
    probability = 1 / (1 + np.exp(-demo.interactions["bayes_logit"].to_numpy().astype(np.float64)))
    label = demo.interactions["label"].to_numpy()
    for rows in np.array_split(np.argsort(probability), 20):
        expected = probability[rows].mean()
        error = np.sqrt(expected * (1 - expected) / len(rows))
        assert abs(label[rows].mean() - expected) < 4.5 * error


def test_label_noise_bounds_the_probabilities_and_lowers_the_ceiling() -> None:
    def ceiling(noise: float) -> float:
        rows = table(SyntheticConfig(num_rows=100_000, label_noise=noise))
        logit = rows["bayes_logit"].to_numpy()
        if noise:
            assert np.abs(logit).max() <= np.log((1 - noise / 2) / (noise / 2)) + 1e-3
        return float(roc_auc_score(rows["label"].to_numpy(), logit))

    assert ceiling(0.0) > ceiling(0.2) + 0.03 > ceiling(0.6) + 0.1


def explained_variance(dataset: synthetic.World) -> float:
    """Share of item vectors' variance that a linear model on the fields explains, adjusted for its size."""
    items = dataset.items
    columns = [np.ones((items.num_rows, 1))]
    for field in dataset.fields:
        if field.side == "item":
            hot = np.zeros((items.num_rows, field.size))
            for row, value in enumerate(items[field.name].to_pylist()):
                # The part of k tags is their sum over sqrt(k).
                hot[row, value] = 1 / np.sqrt(len(value)) if isinstance(value, list) else 1
            columns.append(hot)
    design = np.concatenate(columns, axis=1)
    fitted = design @ np.linalg.lstsq(design, dataset.item_vectors, rcond=None)[0]
    left = (dataset.item_vectors - fitted).var() / dataset.item_vectors.var()
    return 1 - left * items.num_rows / (items.num_rows - np.linalg.matrix_rank(design))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_fields_explain_the_named_share_of_an_item(share: float) -> None:
    config = SyntheticConfig(num_items=5_000, feature_share=share, num_factors=6)
    # The variance of a part is that of its draws, one per value and factor, some 120: a standard error of 13 %, and of
    # the share 13 % of share * (1 - share), which is .03 at most.
    assert explained_variance(synthetic.make_world(config)) == pytest.approx(share, abs=0.03)


def test_popularity_falls_as_the_zipf_exponent_says() -> None:
    config = SyntheticConfig(num_rows=400_000, num_items=1_000, zipf_exponent=0.8, exposure=0.0)
    counts = np.sort(np.bincount(table(config)["item"].to_numpy(), minlength=1_000))[::-1]
    ranks = np.arange(20, 500)
    slope = np.polyfit(np.log(ranks + 1), np.log(counts[ranks]), 1)[0]
    # Counts of 200 to 2,000: the standard error of the slope is .003, and sorting them adds a bias of the same order.
    assert slope == pytest.approx(-0.8, abs=0.02)


@pytest.mark.parametrize(("num", "exponent"), [(2, 0.5), (7, 1.0), (1_000, 0.0), (1_000, 2.5)])
def test_zipf_ranks_stay_in_range_and_prefer_the_head(num: int, exponent: float) -> None:
    ranks = synthetic._zipf_rank(np.append(np.linspace(0, 1, 100_000, endpoint=False), 1 - 2**-53), num, exponent)
    counts = np.bincount(ranks, minlength=num)
    assert len(counts) == num
    assert exponent == 0 or counts[0] > counts[-1]


@pytest.mark.parametrize("num", [2, 3, 10, 1_200, 65_536, 99_991])
def test_scatter_is_one_to_one(num: int) -> None:
    assert len(np.unique(synthetic._scatter(np.arange(num), num))) == num


def test_users_meet_what_they_like_as_much_as_exposure_says() -> None:
    def mean_affinity(exposure: float) -> float:
        config = SyntheticConfig(num_rows=65_536, exposure=exposure)
        world, rows = synthetic.make_world(config), table(config)
        user, item = (rows[name].to_numpy() for name in ("user", "item"))
        dim = config.num_factors
        return float((world.user_vectors[user, :dim] * world.item_vectors[item, :dim]).sum(axis=1).mean())

    assert mean_affinity(0.0) < mean_affinity(1.0) < mean_affinity(3.0)


def test_times_span_the_period_nearly_in_order(demo: RawDataset) -> None:
    time = demo.interactions["time"].to_numpy()
    assert time.min() >= synthetic.START_TIME_S
    assert time.max() <= synthetic.START_TIME_S + synthetic.SPAN_S + synthetic.JITTER_S
    assert (np.diff(time) < 0).any() and (np.maximum.accumulate(time) - time).max() <= synthetic.JITTER_S


def test_raw_files_hold_the_generated_rows(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    synthetic.write_raw(SMALL, folder, rows_per_file=70_000)
    files = sorted((folder / "interactions").iterdir())
    assert [pq.read_metadata(path).num_rows for path in files] == [70_000, 70_000, 10_000]
    written, rows = pq.read_table(folder / "interactions"), table(SMALL)
    for name, ours in (("user_id", "user"), ("item_id", "item")):
        assert (written[name].to_numpy() == rows[ours].to_numpy() + 1).all()
    for name, ours in (("label", "label"), ("timestamp", "time"), ("bayes_logit", "bayes_logit")):
        assert written[name].to_pylist() == rows[ours].to_pylist()
    world = synthetic.make_world(SMALL)
    assert pq.read_table(folder / "items.parquet").column_names == ["item_id", "category", "brand", "tags"]
    assert pq.read_table(folder / "items.parquet")["tags"].to_pylist() == world.items["tags"].to_pylist()
    assert pq.read_table(folder / "users.parquet").column_names == ["user_id", "age_group", "region"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]


def test_writing_over_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="already holds something"):
        synthetic.write_raw(SMALL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_failed_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_block", lambda *_: (_ for _ in ()).throw(RuntimeError("disk on fire")))
    with pytest.raises(RuntimeError, match="disk on fire"):
        synthetic.write_raw(SMALL, tmp_path / "logs")
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    def peak(num_batches: int) -> int:
        batches = synthetic.generate_batches(SyntheticConfig(num_rows=4_000_000_000), start=3_000_000_000)
        tracemalloc.start()
        for batch in itertools.islice(batches, num_batches):
            assert batch.num_rows
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(12) < 1.2 * peak(3)
