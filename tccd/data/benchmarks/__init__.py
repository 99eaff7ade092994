"""The paper's benchmarks, by name, through the `datasets` library."""

from tccd.data.benchmarks.reader import read_benchmark
from tccd.data.benchmarks.table import BENCHMARKS, Benchmark

__all__ = ["BENCHMARKS", "Benchmark", "read_benchmark"]
