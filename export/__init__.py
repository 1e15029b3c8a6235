"""From a trained run to a served encoder, an index of codes, and answers to queries."""
