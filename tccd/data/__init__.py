"""From a data source to images, prompts and answers."""

from tccd.data.load import load_samples
from tccd.data.sample import Sample, Samples, union

__all__ = ["Sample", "Samples", "load_samples", "union"]
