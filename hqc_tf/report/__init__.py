"""A trained run on one page: what it learned, how well it finds, and what it finds."""
