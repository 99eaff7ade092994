"""Other ways to decode, to compare with."""
