"""Which pictures a run was about: how many, which are copies, and which a bank was fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tccd.centroids.bank import CentroidBank
from tccd.data import Sample


def data_block(
    samples: Sequence[Sample], pictures: Sequence[str], banks: Mapping[str, CentroidBank]
) -> dict[str, Any]:
    """A model's entry in a report's `data`; see `probes.report.sections.measured.Data`.

    Args:
        samples: the questions.
        pictures: each one's picture digest, as it was shown to the model.
        banks: by the name that the report gives them.
    """
    images, distinct = len({sample.image_id for sample in samples}), set(pictures)
    fitted = {}
    for name, bank in banks.items():
        known = bank.pictures if "pictures" in bank.provenance else None
        fitted[name] = {
            "pictures": None if known is None else len(known),
            "overlap": None if known is None else bank.shared_pictures(distinct),
        }
    return {
        "questions": len(samples),
        "images": images,
        "pictures": len(distinct),
        "copies": max(images - len(distinct), 0),
        "banks": fitted,
    }


def seen_pictures(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Warnings, as `probes.warnings.warn` gives them, where a bank was fitted on pictures that were asked about.

    Args:
        result: with `data`.
    """
    return [
        {
            "code": "seen-pictures",
            "model": model,
            "text": f"{of['overlap']:,} of {block['pictures']:,} pictures were among those that "
            f"{f'bank {bank}' if len(block['banks']) > 1 else 'the bank'} was fitted on: what is measured on them "
            "is not held out; ask about another split, or fit on one",
        }
        for model, block in result["data"].items()
        for bank, of in block["banks"].items()
        if of["overlap"]
    ]
