"""What needs no training of a network: optimized product quantization, also of raw pixels."""
