"""What a comparison comes to, in words: what each row gains over the best base, what it costs, and which to deploy."""

from __future__ import annotations

from typing import Any

from mwuf_dist.config import PHASES
from mwuf_dist.evaluation.significance import FEWEST_SEEDS, LEVEL


def claims(comparison: dict[str, Any]) -> dict[str, Any]:
    """Returns `reference` (label of the best base), `sentences`, `deploy` (a label) and `seconds` of a run of each row.

    All by the fixed test. A gain is one after Holm's correction; its bracket is the 95 % interval where the scores were
    there to make one. What to deploy is the cheapest row whose mean AUC over the phases is within the best row's margin
    of error; the best base where nothing has gained on it; the best row without training where its mean is as good.
    With fewer than three seeds nothing is sure, and the best mean is named. Where there is one row only, it is not
    named.
    """
    rows = [row for row in comparison["rows"] if _mean(row) is not None]
    if not rows:
        return {"reference": None, "sentences": [], "deploy": None, "seconds": {}}
    seconds = {row["label"]: _seconds(row) for row in rows}
    reference = next((v["row"] for row in rows if (v := row["phases"]["cold"].get("versus_reference_test"))), None)
    sentences = [_against(row) for row in rows if row["phases"]["cold"].get("versus_reference_test")]
    deploy, why = _choice(comparison, rows, seconds)
    advice = [f"Deploy {deploy}: {why}."] if len(rows) > 1 or deploy not in seconds else []
    costs = ", ".join(f"{label} {cost:.1f} s" for label, cost in seconds.items())
    return {
        "reference": reference,
        "sentences": [*sentences, f"Seconds of a run: {costs}.", *advice],
        "deploy": deploy,
        "seconds": seconds,
    }


def _mean(row: dict[str, Any]) -> float | None:
    found = [row["phases"][phase]["auc_test"]["mean"] for phase in PHASES]
    return None if any(value is None for value in found) else sum(found) / len(PHASES)


def _seconds(row: dict[str, Any]) -> float:
    means = [numbers["seconds"]["mean"] for stage, numbers in row["stages"].items() if stage != "prepare"]
    return sum(value for value in means if value is not None)


def _against(row: dict[str, Any]) -> str:
    """Gives a row against the best base: the phases in which it gains or loses, and those in which neither is sure."""
    told, unsure = [], []
    for phase in PHASES:
        versus = row["phases"][phase]["versus_reference_test"]
        lost = _is_loss(versus)
        if not (versus["is_gain"] or lost):
            unsure.append(phase)
            continue
        low, high = versus.get("interval") or (None, None)
        bracket = "" if low is None else f" [{_short(low)}, {_short(high)}]"
        told.append(f"{_short(versus['difference'])}{bracket} in {phase}")
    none = f"no sure difference in {', '.join(unsure)}" if unsure else ""
    other = row["phases"]["cold"]["versus_reference_test"]["row"]
    return f"{row['label']} against {other}: {'; '.join(filter(None, [', '.join(told), none]))}."


def _is_loss(versus: dict[str, Any]) -> bool:
    p_value = versus.get("p_holm")
    return p_value is not None and p_value < LEVEL and versus["difference"] < 0 and versus["num_seeds"] >= FEWEST_SEEDS


def _short(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:+.4f}".replace("0.", ".", 1)


def _best_trivial(comparison: dict[str, Any]) -> tuple[float, str]:
    """Returns mean AUC over the phases, and label, of the one row without training that has most."""
    found = [
        ([row["phases"][p].get("auc_test") for p in PHASES], row["label"]) for row in comparison.get("trivial", ())
    ]
    whole = [(sum(aucs) / len(PHASES), label) for aucs, label in found if None not in aucs]
    return max(whole, default=(0.0, ""))


def _choice(comparison: dict[str, Any], rows: list[dict[str, Any]], seconds: dict[str, float]) -> tuple[str, str]:
    means = {row["label"]: mean for row in rows if (mean := _mean(row)) is not None}
    best = max(means, key=lambda label: means[label])
    mean, trivial = _best_trivial(comparison)
    if mean >= means[best]:
        return trivial, f"mean AUC {mean:.4f} without training, and no row has more ({best} {means[best]:.4f})"
    if min(len(row["seeds"]) for row in rows) < FEWEST_SEEDS:
        return best, f"mean AUC {means[best]:.4f}, {seconds[best]:.1f} s a run; under {FEWEST_SEEDS} seeds, so not sure"
    top = next(row for row in rows if row["label"] == best)
    versus = [top["phases"][phase].get("versus_reference_test") for phase in PHASES]
    against = [one for one in versus if one]
    if against and not any(one["is_gain"] for one in against):
        label = against[0]["row"]
        return label, f"nothing gains on it for sure, and it takes {seconds[label]:.1f} s a run"
    intervals = [one["interval"] for one in against if one.get("interval")]
    margin = max((high - low for low, high in intervals), default=0.0) / 2
    good = [label for label, mean in means.items() if mean >= means[best] - margin]
    chosen = min(good, key=lambda label: (seconds[label], -means[label]))
    why = f"mean AUC {means[chosen]:.4f} over the phases, {seconds[chosen]:.1f} s a run"
    return chosen, why if chosen == best else f"{why}; {best} has {means[best]:.4f}, within the margin of error"
