"""Is the coverage probe right where the truth is known, and what does it cost? Figures stand in eval/results."""
