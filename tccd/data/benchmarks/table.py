"""The benchmarks, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tccd.data.benchmarks import questions
from tccd.data.benchmarks.questions import Question
from tccd.data.benchmarks.tables import Tables


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies, and how it is read.

    Attributes:
        repository: its id on the Hugging Face hub.
        revision: the commit that is read unless another is asked for.
        split: the split that is read unless another is asked for.
        questions: its tables -> its questions.
    """

    repository: str
    revision: str
    split: str
    questions: Callable[[Tables], Iterator[Question]]


#: By the name that `--data` takes. The commits are those that the authors of arXiv 2604.14363 name for their
#: results (centroids/MANIFEST.json of github.com/yahskapar/centroid-erasure).
BENCHMARKS: dict[str, Benchmark] = {
    "blink": Benchmark(
        "BLINK-Benchmark/BLINK", "a3666eb249237ba3d5eca8db21176cc47967e040", "val", questions.blink
    ),
    "mmvp": Benchmark("MMVP/MMVP", "37eafecab8a3940c50c2ade5b36de69dbc99a8cf", "train", questions.mmvp),
    "cv-bench": Benchmark(
        "nyu-visionx/CV-Bench", "bc284db50d036958861cb60cdd7b77612052ce0d", "test", questions.cv_bench
    ),
    "pope": Benchmark("lmms-lab/POPE", "4db1276663dfa5eb8ad16a52d24c31a09e470896", "test", questions.pope),
    "scienceqa-img": Benchmark(
        "lmms-lab/ScienceQA-IMG", "b9984af01798586705cee1fbdfa80a6dcbef04f1", "test", questions.scienceqa_img
    ),
    "medblink": Benchmark(
        "MahtabBg/MedBLINK", "e492d79e6d6d3319d5d82b954708c3be2c5e42ef", "val", questions.medblink
    ),
}
