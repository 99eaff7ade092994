"""Data sets that the benchmarks run on, and the subsets they report."""
