"""The replacement probe: what each modality is worth, by the accuracy lost when it is replaced by its centroids.

from probes.replacement import Grid, run
result = run(model, processor, samples, bank, Grid(alphas=(0.0, 0.4)))
"""

from probes.replacement.grid import Grid
from probes.replacement.probe import run

__all__ = ["Grid", "run"]
