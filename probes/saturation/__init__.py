"""From which layer on a model no longer needs the image: attention, states, and what withholding it costs."""

from probes.saturation.probe import run

__all__ = ["run"]
