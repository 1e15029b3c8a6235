"""Image search without labels: an encoder and its product-quantization codebooks, learned together."""
