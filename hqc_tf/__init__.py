"""Image search without labels: an encoder and its PQ codebooks, learned together."""
