"""Scenes of easy-VQA as facts, captions, and questions that a rule answers from the caption alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from eval.zoo.data import IGNORED, attributes, by_image
from tccd.data import Sample, load_samples
from tccd.data.easy_vqa import COLORS, SHAPES, task_of


@dataclass(frozen=True)
class Scene:
    """One picture and what is in it.

    Attributes:
        samples: all questions about it; the first one's picture is shown.
        shape, color: what is in it.
    """

    samples: tuple[Sample, ...]
    shape: str
    color: str

    @property
    def caption(self) -> str:
        """What is in it, in words that the zoo's tokenizer knows."""
        return f"a {self.color} {self.shape}"


def scenes(split: str, most: int | None = None) -> list[Scene]:
    """The pictures whose shape and color the questions settle.

    Args:
        split: of easy-VQA.
        most: pictures, evenly over the split; all when None.
    """
    found = []
    for samples in by_image(load_samples("easy-vqa", split=split)).values():
        shape, color = attributes(samples)
        if IGNORED not in (shape, color):
            found.append(Scene(tuple(samples), SHAPES[shape], COLORS[color]))
    return found if most is None or most >= len(found) else [found[i * len(found) // most] for i in range(most)]


def answered(question: str, shape: str, color: str) -> str | None:
    """What the rule answers from a caption's two facts; None where the question presupposes something else.

    Args:
        question: one of easy-VQA's.
        shape, color: of the scene.
    """
    words = set(question.rstrip("?").split())
    shapes, colors = words & set(SHAPES), words & set(COLORS)
    task = task_of(question)
    if task in ("shape", "color"):
        fits = shapes <= {shape} and colors <= {color}
        return (shape if task == "shape" else color) if fits else None
    there = shapes <= {shape} and colors <= {color}
    return "yes" if there == task.endswith("present") else "no"


def rebuilt(questions: Iterable[str], scene: Scene) -> list[tuple[str, str]]:
    """Questions and answers that the rule makes of a scene's caption.

    Args:
        questions: strings to choose among.
        scene: that they are about.
    """
    told = ((question, answered(question, scene.shape, scene.color)) for question in questions)
    return [(question, answer) for question, answer in told if answer is not None]
