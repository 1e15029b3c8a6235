"""A page and a JSON API to search an index by looking: `python -m export.browse ...`"""
