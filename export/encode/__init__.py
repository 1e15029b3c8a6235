"""Images to shards of codes: what `python -m export.encode` is made of."""
