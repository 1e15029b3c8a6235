"""Everything around the training steps: callbacks, saved states, TensorBoard."""
