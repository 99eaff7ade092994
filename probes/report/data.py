"""The pictures of a report in sentences: copies, and those that a bank was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes.report.prose import listed


def told(result: Mapping[str, Any]) -> list[str]:
    """Sentences on each model's data, one for all that were asked alike; none for a report without them.

    Args:
        result: a validated result.
    """
    alike: dict[str, list[str]] = {}
    for model, block in (result.get("data") or {}).items():
        alike.setdefault(" ".join([_counted(block), *_overlaps(block)]), []).append(model)
    several = sum(map(len, alike.values())) > 1
    heads = ["Each model: "] if len(alike) == 1 else [f"{listed(models)}: " for models in alike.values()]
    found = [(head if several else "") + told for head, told in zip(heads, alike, strict=False)]
    # The config of several reports is one of theirs by source.
    configs = [result["config"], *(one for one in result["config"].values() if isinstance(one, Mapping))]
    for base in dict.fromkeys(one["fitted_on"] for one in configs if isinstance(one.get("fitted_on"), str)):
        found.append(f"The bank was fitted on {base}, another model than this one, as --fitted-on said.")
    return found


def _counted(block: Mapping[str, Any]) -> str:
    questions = f"{_count(block['questions'], 'question')} about {_count(block['images'], 'image')}"
    copies, pictures = block["copies"], block["pictures"]
    if not copies:
        return f"{questions}, none of which is a copy of another."
    are = "is a copy" if copies == 1 else "are copies"
    return f"{questions}, of which {copies:,} {are} of another: {_count(pictures, 'distinct picture')}."


def _overlaps(block: Mapping[str, Any]) -> list[str]:
    found = []
    for bank, fitted in block["banks"].items():
        named = f"bank {bank}" if len(block["banks"]) > 1 else "the bank"
        of = f"those that {named} was fitted on"
        if fitted["overlap"] is None:
            found.append(f"Whether any was among {of} is not known: it keeps no digests of its pictures.")
        else:
            were = "was" if fitted["overlap"] == 1 else "were"
            found.append(f"{fitted['overlap']:,} of {_count(block['pictures'], 'picture')} {were} among {of}.")
    return found


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
