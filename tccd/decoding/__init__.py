"""Online: from a bank to better tokens."""
