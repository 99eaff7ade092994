"""Benchmarks and the default models; imports tccd and probes, is not installed."""
