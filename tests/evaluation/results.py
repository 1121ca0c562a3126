"""Results of invented runs, in the shape of `results.json`."""

from mwuf_dist.config import PHASES

SPLIT = {"old_items": 5, "new_items": 4, "pretrain": 9000, "warm_a": 800, "warm_b": 800, "warm_c": 800, "test": 3000}


def make_result(backbone, method, seed, auc, variant="", dataset="synthetic", **more):
    """A run whose four next-set AUCs are `auc`; on the fixed test .01 more, but in warm-c the same."""
    phases = {
        phase: {
            "auc_next": value,
            "auc_test": value + (0.01 if phase != "warm-c" else 0.0),
            "logloss_next": 1.2 - value,
            "logloss_test": 1.1 - value,
            "calibration_next": 1.0 + seed / 10,
            "calibration_test": 1.0,
        }
        for phase, value in zip(PHASES, auc, strict=True)
    }
    speed = {"samples": 1000, "seconds": 0.01, "samples_per_s": 100_000.0 + 1000 * seed}
    return {
        "schema": 1,
        "dataset": dataset,
        "backbone": backbone,
        "method": method,
        "variant": variant,
        "seed": seed,
        "world_size": 1,
        "device": "cpu",
        "split": dict(SPLIT),
        "phases": phases,
        "stages": {"pretrain": speed, "meta_train": {} if method == "base" else speed, "warm_up": speed},
        "config_hash": f"{seed:012x}",
        "versions": {"torch": "2.13.0"},
    } | more


def two_methods(num_seeds=3, **more):
    """Base and mwuf on Wide & Deep, mwuf clearly better, spread over seeds."""
    wiggle = (0.0, 0.004, -0.002, 0.003, -0.001)
    results = []
    for seed in range(num_seeds):
        base = [value + wiggle[seed] for value in (0.60, 0.65, 0.68, 0.70)]
        mwuf = [value + 0.03 + 0.1 * wiggle[seed] * (index + 1) for index, value in enumerate(base)]
        results += [make_result("wide_deep", "base", seed, base, **more)]
        results += [make_result("wide_deep", "mwuf", seed, mwuf, **more)]
    return results


def with_clicks(result, warm_rows):
    """The run with a curve of AUC by clicks: in each bucket the phase's AUC."""
    for number, numbers in enumerate(result["phases"].values()):
        low, width = number * warm_rows, warm_rows // 4
        bounds = [(low + width * part, low + width * (part + 1)) for part in range(4)] if number < 3 else [(low, None)]
        numbers["auc_by_clicks"] = [
            {"from": first, "to": last, "rows": 9, "positives": 4, "auc": numbers["auc_next"]} for first, last in bounds
        ]
    return result
