"""The rooms of the `tccd` command: one file a command, and what they share."""
