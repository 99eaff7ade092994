"""Items whose answer an erasure flips, with their image, for people to look at."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from probes.asking.arms import Answers

#: Longer side of an example's image, in pixels, at most: a page holds many.
SIDE = 224


def flips(name: str, cells: tuple[int, int] | None, answers: Answers, count: int) -> list[dict[str, Any]]:
    """Examples of right answers that erasing text, or vision, made wrong; by turns, and one task after another.

    Args:
        name: the model.
        cells: numbers of the text and the vision cell, which are arms of the same number; None for no examples.
        answers: of all items.
        count: at most so many.
    """
    if cells is None:
        return []
    chosen: list[int] = []
    queues = [_by_turns(answers, answers.clean_correct & ~answers.arms_correct[cell]) for cell in cells]
    while any(queues) and len(chosen) < count:
        for queue in queues:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return [
        {
            "model": name,
            "image": data_uri(answers.samples[i].image),
            "prompt": answers.samples[i].prompt,
            "answer": answers.words[answers.answer[i]],
            "plain": answers.words[answers.clean[i]],
            "erased": [{"cell": cell, "answer": answers.words[answers.arms[cell, i]]} for cell in cells],
        }
        for i in chosen
    ]


def _by_turns(answers: Answers, flipped: np.ndarray) -> list[int]:
    """Numbers of the flipped items: the first of each task, then the second of each."""
    seen: dict[str | None, int] = {}
    turns = []
    for i in np.flatnonzero(flipped).tolist():
        task = answers.samples[i].task
        seen[task] = seen.get(task, 0) + 1
        turns.append((seen[task], i))
    return [i for _, i in sorted(turns)]


def data_uri(image: Image.Image) -> str:
    """A PNG as a data URI, no larger than `SIDE`."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
