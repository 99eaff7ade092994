"""Speed and memory, each in one command: `python -m eval.speed transformers|kmeans|replacement|probe`."""
