"""Questions asked of a model once for many arms: what is kept, how answers are scored, what can be had blind."""
