"""What a reader of a report should know before its figures: a pure function of the result and its banks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from probes.statistics.clusters import clustered, clusters_of
from probes.statistics.intervals import wilson
from probes.statistics.outcomes import outcomes_of

if TYPE_CHECKING:
    from tccd.centroids.bank import CentroidBank

NAMED = 4
"""Places that a warning names; of more it gives the number."""


def warn(result: Mapping[str, Any], banks: Mapping[str, CentroidBank] | None = None) -> list[dict[str, str]]:
    """Plain warnings about a result.

    Args:
        result: a report; see `probes.report.schema`.
        banks: the banks it was measured with, by the name that its cells give; None where they aren't at hand.

    Returns:
        `[{"code", "model", "text"}]`, by model: `blind`, a model that is no better than without the image;
        `negative-text-cost`, erasing text raised accuracy; `random-direction`, contrast with a random direction
        gains as much as with centroids; `empty-clusters`, centroids that no row was nearest
        to; `few-rows`, fewer distinct rows than centroids asked for. Empty where there is nothing to say.
    """
    found = []
    for model in result["models"]:
        texts = {"blind": _blind(result, model), "negative-text-cost": negative_text_cost(result, model)}
        texts |= {"random-direction": random_direction(result, model)} | _of_banks(banks or {})
        found += [{"code": code, "model": model, "text": text} for code, text in texts.items() if text]
    return found


def _blind(result: Mapping[str, Any], model: str) -> str | None:
    entry = result["models"][model]
    blind = entry.get("blind")
    if not blind:
        return None
    clean, floor = entry["accuracy"], blind["accuracy"]
    asked = (result.get("questions") or {}).get(model) or {}
    if "blind_right" in asked:
        gained = clustered(outcomes_of(asked["blind_right"]), outcomes_of(asked["right"]), clusters_of(asked))
        low, high, seen = gained.low, gained.high, gained.low > 0
        bounds = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
        evidence = f"difference {100 * gained.value:+.1f} points, {bounds}"
    else:
        above = wilson(round(floor * blind["n"]), blind["n"])[1]
        seen, evidence = clean["ci95"][0] > above, "their 95 % intervals overlap"
    if seen:
        return None
    return (
        f"with its images the model is right on {100 * clean['accuracy']:.1f} %, without them on "
        f"{100 * floor:.1f} % ({evidence}): it can't be said to use the images, so neither can the cost of "
        "erasing vision say anything; check that the images reach the model"
    )


def negative_text_cost(result: Mapping[str, Any], model: str) -> str | None:
    """Where erasing text raised accuracy, in a sentence; None where it did not."""
    below = [
        cell
        for cell in result.get("cells") or ()
        if cell["model"] == model and cell["modality"] == "text" and cell["ci95"][1] < 0
    ]
    if not below:
        return None
    places = _listed([f"layer {c['layer']} (cost {100 * c['cost']:+.1f} points)" for c in below])
    return (
        f"erasing text raised accuracy: the interval of the text cost lies below zero at {places}. The "
        "text-erased stream sees better than the clean one there, so subtracting it may amplify the prior; "
        "measure other references, and alpha_cd below zero"
    )


def random_direction(result: Mapping[str, Any], model: str) -> str | None:
    """Whether contrast with a random direction gains as much as contrast with centroids, in a sentence; None where
    neither gains, where it gains less, or where it was not measured (`--controls`).
    """
    controls = [c for c in result.get("tccd_controls") or () if c["model"] == model and c.get("right")]
    every = result.get("tccd_cells") or ()
    own = [every[c["setting"]] for c in controls]
    if not own:
        return None
    centroids, drawn = (max(rows, key=lambda row: row["accuracy"]) for rows in (own, controls))
    asked = (result.get("questions") or {}).get(model) or {}
    more = clustered(outcomes_of(drawn["right"]), outcomes_of(centroids["right"]), clusters_of(asked))
    gains = max(centroids["ci95"][0], drawn["ci95"][0]) > 0
    if more.low > 0 or drawn["delta"] <= 0 or not gains:
        return None
    bounds = f"95 % interval {100 * more.low:+.1f} to {100 * more.high:+.1f}"
    return (
        f"a random direction of equal norm gains {100 * drawn['delta']:+.1f} points at its best, centroids "
        f"{100 * centroids['delta']:+.1f} (difference {100 * more.value:+.1f}, {bounds}): any disturbance would "
        "do, so what helps is not what centroids are; prefer another reference"
    )


def _of_banks(banks: Mapping[str, CentroidBank]) -> dict[str, str | None]:
    empty, few = [], []
    for name, bank in banks.items():
        for (modality, layer), entry in bank.entries.items():
            where = f"{modality} at layer {layer}" + (f" of {name}" if len(banks) > 1 else "")
            distinct = len(np.unique(bank.tensors[modality, layer].numpy(), axis=0))
            if distinct < entry.k:
                few.append(f"{where} ({distinct} of K = {entry.k} centroids differ)")
            elif entry.empty_clusters:
                empty.append(f"{where} ({entry.empty_clusters} of K = {entry.k})")
    return {
        "empty-clusters": f"the bank has centroids that no row was nearest to: {_listed(empty)}. Its K is "
        "smaller than it says there; fit with more images or a smaller K"
        if empty
        else None,
        "few-rows": f"the bank was fitted on fewer distinct rows than K: {_listed(few)}. Its centroids are the "
        "rows themselves, so erasing loses next to nothing on such rows; fit with more images or a smaller K"
        if few
        else None,
    }


def _listed(places: Sequence[str]) -> str:
    shown = ", ".join(places[:NAMED])
    return shown if len(places) <= NAMED else f"{shown} and {len(places) - NAMED} more"
