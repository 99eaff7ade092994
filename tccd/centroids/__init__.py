"""Offline: from activations to a bank of centroids."""
