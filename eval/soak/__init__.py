"""Whether a server answers as it should under a storm of mixed requests: `python -m eval.soak`."""
