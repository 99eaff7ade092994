"""The pictures of a report in sentences: copies, and those that a bank was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def told(result: Mapping[str, Any]) -> list[str]:
    """Sentences on each model's data, the model named where there are several; none for a report without them.

    Args:
        result: a validated result.
    """
    blocks = result.get("data") or {}
    found = []
    for model, block in blocks.items():
        head = f"{model}: " if len(blocks) > 1 else ""
        found.append(head + " ".join([_counted(block), *_overlaps(block)]))
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
