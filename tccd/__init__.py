"""Text-centroid contrastive decoding (TCCD) and the centroid probe."""
