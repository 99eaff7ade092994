"""Pictures and texts of thin codes, small enough for a page that people look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probes.replacement.examples import data_uri
from tccd.data import Sample

#: Characters of a sample's text that are shown.
WORDS = 160


def examples(rows: Sequence[Mapping[str, Any]], samples: Mapping[str, Sequence[Sample]]) -> list[dict[str, Any]]:
    """Rows of `thin` with their samples as pictures and texts.

    Args:
        rows: with `most`, a set's name, and `shown`, numbers of its samples.
        samples: of each set.
    """
    made: dict[tuple[str, int], dict[str, str]] = {}
    found = []
    for row in rows:
        shown = []
        for number in row["shown"]:
            at = row["most"], number
            if at not in made:
                sample = samples[row["most"]][number]
                said = " ".join(part for part in (sample.prompt, sample.answer) if part)
                made[at] = {"image": data_uri(sample.image), "text": said[:WORDS]}
            shown.append(made[at])
        found.append({key: value for key, value in row.items() if key != "shown"} | {"examples": shown})
    return found
