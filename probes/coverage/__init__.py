"""The coverage probe: what a data set covers of what a model can represent, and how dense each sample is."""

from probes.coverage.probe import Source, coverage

__all__ = ["Source", "coverage"]
