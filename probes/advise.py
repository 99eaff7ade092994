"""From a report to a recommendation: contrast on, with this reference at these settings, or off.

The best of many settings on the very questions it was chosen on always looks like a gain. So "on" asks two
things. A setting's gain must be more than chance gives the best of so many (`probes.statistics.signs`, which
bounds how often a model that gains nothing is told "on"). And settings chosen on some folds of the pictures must
gain on the others, every fold in turn: that held-out gain is the one to expect, and is shown with its interval.

The choice is over all references, signs and settings that were measured; each reference alone is judged the same
way beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from probes.references import cost_of, name_of, recipes
from probes.statistics.clusters import Clusters, clustered, clusters_of
from probes.statistics.folds import OFF, best, folds, held_out
from probes.statistics.outcomes import by_task, gain, outcomes_of
from probes.statistics.protocols import mildest_first, settings_of
from probes.statistics.signs import BOUND, GAINS, PASSES, Gains, gains_of_many
from probes.warnings import negative_text_cost, random_direction
from tccd.errors import DataError

FOLDS = 5


def advise(
    result: Mapping[str, Any], model: str | None = None, *, n_folds: int = FOLDS, seed: int = 0
) -> dict[str, Any]:
    """Recommend contrast, on or off, for one model of a report.

    "On" where some setting's p-value, adjusted for all settings and for questions that share a picture or a
    wording, is at most `probes.statistics.signs.PASSES`, and the held-out gain is above zero. The settings
    recommended are, of those, the ones with the most right answers over all questions, of equals the mildest
    (`probes.statistics.protocols.mildest_first`: the cheapest reference, then the weakest contrast).

    Args:
        result: a report with `tccd_cells` and `questions`; see `probes.report.schema`.
        model: which of its models; may be None where it has one.
        n_folds: folds of the pictures.
        seed: of the folds and of the turns of signs.

    Returns:
        `{"model", "on", "settings": {...} or None, "cost": what they cost, in words, or None, "use": how to
        decode so, by engine, or {}, "reason", "warnings": [{"code", "text"}], "runner_up": of the other references
        the one that gains most, as in "by_reference", with "behind", "behind_ci95": what it gains less, or None,
        "by_reference": [{"reference", "cost", "settings": those with the most right answers, "n_settings",
        "p_adjusted": their p, "held_out": of a choice among these settings alone}],
        the largest held-out gain first, "n_settings", "n_images", "n_question_strings" or None, "n_folds", "seed",
        "bound": how often at most "on" is said where nothing gains,
        "p_adjusted": of the settings recommended, or the smallest,
        "power": [{"gain", "power"}] of the setting with the most right answers,
        "held_out": {"n", "baseline", "accuracy", "delta", "ci95", "p_value", "helped", "harmed", "by_task", ...},
        "chosen": [{"folds", "settings" or None}], "in_sample_delta": oracle upper bound}`. Accuracies and gains
        are fractions, `delta` = accuracy - baseline. Held out are pictures: their question strings were seen.

    Raises:
        DataError: the report holds no settings of contrast or outcomes for the model, or fewer images than folds.
        ConfigError: fewer than two folds.
    """
    model = _which(result, model)
    cells = mildest_first(_cells(result, model))
    questions = result["questions"][model]
    plain = outcomes_of(questions["right"])
    outcomes = np.stack([outcomes_of(cell["right"]) for cell in cells])
    clusters = clusters_of(questions)
    images = np.array(questions.get("picture") or questions["image_id"])
    fold = folds(images, n_folds, seed)
    found = held_out(plain, outcomes, fold)
    evidence = gain(plain, found.outcomes, clusters=clusters)
    evidence["by_task"] = [
        {"task": task} | gain(plain[at], found.outcomes[at], clusters=clusters[at])
        for task, at in by_task(questions["task"])
    ]
    tested = gains_of_many(plain, outcomes, clusters, seed=seed)
    choice = _recommended(outcomes, tested)
    on = choice != OFF and evidence["delta"] > 0
    settings = settings_of(cells[choice]) if on else None
    each = _by_reference(cells, plain, outcomes, tested, fold, clusters)
    shown = int(outcomes.sum(axis=1).argmax())
    p_adjusted = float(tested.p_values[choice] if choice != OFF else tested.p_values.min())
    return {
        "model": model,
        "on": bool(on),
        "settings": settings,
        "cost": cost_of(settings["reference"]) if settings else None,
        "use": recipes(settings) if settings else {},
        "reason": _reason(evidence, found.chosen, p_adjusted, len(cells)),
        "warnings": _warnings(result, model, settings),
        "runner_up": _runner_up(each, found.outcomes, settings, clusters) if settings else None,
        "by_reference": [one for one, _ in each],
        "n_settings": len(cells),
        "n_images": clusters.pictures,
        "n_question_strings": clusters.questions,
        "n_folds": n_folds,
        "seed": seed,
        "bound": BOUND,
        "p_adjusted": p_adjusted,
        "power": [
            {"gain": true, "power": float(power)} for true, power in zip(GAINS, tested.power[shown], strict=True)
        ],
        "held_out": evidence,
        "chosen": [
            {"folds": count, "settings": None if index == OFF else settings_of(cells[index])}
            for index, count in Counter(found.chosen).most_common()
        ],
        "in_sample_delta": float(max(outcomes.mean(axis=1).max() - plain.mean(), 0.0)),
    }


def can_advise(result: Mapping[str, Any], model: str) -> bool:
    """Whether the report holds what `advise` needs for the model, images for the folds included."""
    questions = (result.get("questions") or {}).get(model)
    return bool(
        questions
        and len(set(questions.get("picture") or questions["image_id"])) >= FOLDS
        and _measured(result, model)
    )


def _which(result: Mapping[str, Any], model: str | None) -> str:
    names = list(result["models"])
    if model is None and len(names) == 1:
        return names[0]
    if model is None or model not in names:
        asked = "no model was named" if model is None else f"model {model!r} is not in the report"
        raise DataError(f"{asked}; it holds {', '.join(names)}: name one of them")
    return model


def _measured(result: Mapping[str, Any], model: str) -> list[Mapping[str, Any]]:
    cells = [cell for cell in result.get("tccd_cells") or () if cell["model"] == model]
    return [cell for cell in cells if cell.get("right")]


def _cells(result: Mapping[str, Any], model: str) -> list[Mapping[str, Any]]:
    cells = _measured(result, model)
    if not cells or model not in (result.get("questions") or {}):
        raise DataError(
            f"the report holds no outcomes of contrast for {model}; measure them with "
            "`tccd probe replacement --reference all --alpha-cd 0.5,1,2 ...`"
        )
    return cells


def _by_reference(
    cells: Sequence[Mapping[str, Any]],
    plain: np.ndarray,
    outcomes: np.ndarray,
    tested: Gains,
    fold: np.ndarray,
    clusters: Clusters,
) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Each reference by itself, a choice among its own settings, with its outcomes; the largest gain first."""
    names = np.array([name_of(cell) for cell in cells])
    found = []
    for name in dict.fromkeys(names.tolist()):
        own = np.flatnonzero(names == name)
        top = own[best(outcomes[own].sum(axis=1))]
        judged = held_out(plain, outcomes[own], fold)
        told = {
            "reference": name,
            "cost": cost_of(name),
            "settings": settings_of(cells[top]),
            "n_settings": len(own),
            "p_adjusted": float(tested.p_values[top]),
            "held_out": gain(plain, judged.outcomes, clusters=clusters),
        }
        found.append((told, judged.outcomes))
    return sorted(found, key=lambda one: -one[0]["held_out"]["delta"])


def _runner_up(
    each: Sequence[tuple[dict[str, Any], np.ndarray]],
    chosen: np.ndarray,
    settings: Mapping[str, Any],
    clusters: Clusters,
) -> dict[str, Any] | None:
    """Of the references that are not recommended the one that gains most, and how far it is behind."""
    for one, outcomes in each:
        if one["reference"] != settings["reference"]:
            behind = clustered(outcomes, chosen, clusters)
            return {**one, "behind": behind.value, "behind_ci95": [behind.low, behind.high]}
    return None


def _warnings(result: Mapping[str, Any], model: str, settings: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """What speaks against trusting the recommended settings, or for measuring others."""
    texts = {
        "negative-text-cost": negative_text_cost(result, model),
        "random-direction": random_direction(result, model),
    }
    if settings is not None and settings["alpha_cd"] < 0:
        texts["negative-alpha"] = (
            f"alpha_cd is negative: {settings['reference']} is added, not subtracted. It answers these questions "
            "better than the clean stream does, which is no contrast with a prior; see that it holds on other data"
        )
    return [{"code": code, "text": text} for code, text in texts.items() if text]


def _recommended(outcomes: np.ndarray, tested: Gains) -> int:
    """Of the settings that pass, the first with the most right answers; `OFF` where none passes."""
    right = np.where(tested.p_values <= PASSES, outcomes.sum(axis=1), -1)
    return int(right.argmax()) if right.max() >= 0 else OFF


def _reason(evidence: Mapping[str, Any], chosen: Sequence[int], p_adjusted: float, n_settings: int) -> str:
    low, high = (100 * bound for bound in evidence["ci95"])
    told = f"held-out gain {100 * evidence['delta']:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
    if all(choice == OFF for choice in chosen):
        return "no setting answered more questions right than plain decoding, on any fold"
    many = f"the best of {n_settings} settings" if n_settings > 1 else "one setting"
    if p_adjusted > PASSES:
        return f"{told}: no more than chance gives {many} (adjusted p = {p_adjusted:.2g})"
    if evidence["delta"] <= 0:
        return f"{told}: a setting gains on all questions, but what other pictures chose doesn't gain"
    harmed = [row["task"] for row in evidence["by_task"] if row["ci95"][1] < 0]
    told += f"; more than chance gives {many} (adjusted p = {p_adjusted:.2g})"
    return told + (f"; but it harms {', '.join(harmed)}" if harmed else "")
