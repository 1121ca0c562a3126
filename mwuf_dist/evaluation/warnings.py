"""What to know before the figures of a comparison: sets too small, rows that lose to what needs no training."""

from __future__ import annotations

from typing import Any

from mwuf_dist.config import PHASES, WARM_SETS

FEWEST_POSITIVES = 50  # of a set; with fewer an AUC's own standard error is above .03
TELLING_AUC = 0.6  # of a probe
_SETS = {"next": (*WARM_SETS, "test"), "test": ("test",) * 4}
_NAMES = {"next": "next set", "test": "fixed test"}


def num_of_class(split: dict[str, Any], name: str) -> int:
    """Returns rows of the scarcer class of a set; of results that do not say, all its rows."""
    rows, share = split.get(name, 0), split.get("positives", {}).get(name)
    return rows if share is None else round(rows * min(share, 1 - share))


def is_large_enough(split: dict[str, Any], phase: str, scoring: str) -> bool:
    """Says whether the set that a phase is scored on has rows enough of both classes to tell methods apart."""
    return num_of_class(split, _SETS[scoring][PHASES.index(phase)]) >= FEWEST_POSITIVES


def best_trivial(comparison: dict[str, Any], phase: str, scoring: str) -> tuple[float, str] | None:
    """Returns AUC and label of the best row that needs no training."""
    found = [(row["phases"][phase].get(f"auc_{scoring}"), row["label"]) for row in comparison.get("trivial", ())]
    return max(((auc, label) for auc, label in found if auc is not None), default=None)


def warnings(comparison: dict[str, Any]) -> list[str]:
    """Returns sentences, the gravest first."""
    return [*_telling_probes(comparison), *_small_sets(comparison["split"]), *_weak_rows(comparison)]


def _telling_probes(comparison: dict[str, Any]) -> list[str]:
    found = []
    for name, sets in comparison.get("probes", {}).items():
        telling = {split: auc for split, auc in sets.items() if auc is not None and auc > TELLING_AUC}
        telling = {s: auc for s, auc in telling.items() if num_of_class(comparison["split"], s) >= FEWEST_POSITIVES}
        if telling:
            where = ", ".join(f"{auc:.3f} on {split}" for split, auc in telling.items())
            found.append(
                f"The {name} alone tells the label: a probe that sees nothing else reaches AUC {where}. Part of every "
                "AUC there may be that; look at how rows of label 0 came about."
            )
    return found


def _small_sets(split: dict[str, Any]) -> list[str]:
    small = {name: num_of_class(split, name) for name in _SETS["next"] if name in split}
    small = {name: num for name, num in small.items() if num < FEWEST_POSITIVES}
    if not small:
        return []
    sizes = ", ".join(f"{name} {num}" for name, num in small.items())
    return [f"Too few rows of the scarcer class to tell methods apart (under {FEWEST_POSITIVES}): {sizes}."]


def _weak_rows(comparison: dict[str, Any]) -> list[str]:
    found = []
    constant = next((row for row in comparison.get("trivial", ()) if row["label"] == "constant"), None)
    for row in comparison["rows"]:
        under, above, beaten = [], [], []
        for scoring in ("next", "test"):
            for phase in PHASES:
                numbers, where = row["phases"][phase], f"{phase} ({_NAMES[scoring]})"
                auc, loss = (numbers[f"{metric}_{scoring}"]["mean"] for metric in ("auc", "logloss"))
                limit = constant and constant["phases"][phase].get(f"logloss_{scoring}")
                trivial = best_trivial(comparison, phase, scoring)
                under += [where] if auc is not None and auc < 0.5 else []
                above += [where] if loss is not None and limit and loss > limit else []
                beaten += [where] if auc is not None and trivial is not None and auc <= trivial[0] else []
        found += [f"{row['label']}: AUC under .5 in {', '.join(under)}."] if under else []
        found += [f"{row['label']}: log loss above the constant's in {', '.join(above)}."] if above else []
        found += [f"{row['label']} does not beat what needs no training in {', '.join(beaten)}."] if beaten else []
    return found
