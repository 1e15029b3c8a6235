"""What runs beside the steps of a training: callbacks, saved states, TensorBoard."""
