"""Training that stops at the first step whose numbers are none, before anything keeps them."""

import numpy as np
import tensorflow as tf

from hqc_tf.config import UserError

_MEND = (
    "; what was saved before stays; take a lower --learning_rate, or a higher temperature of the "
    "term, in another --workdir"
)


class StopAtNonFinite(tf.keras.callbacks.Callback):
    """Raises `UserError` after the first step in which a loss term is infinite or no number.

    It has to stand before the callbacks that save.

    Args:
      first_step: the one that training begins or goes on with.
    """

    def __init__(self, first_step):
        super().__init__()
        self._step = first_step

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        # Of a mean one value that is not finite is never averaged away.
        bad = [name for name, value in logs.items() if not np.isfinite(value)]
        if bad:
            named = [name for name in bad if name != "loss"] or bad
            raise UserError(f"step {self._step}: not finite: {', '.join(named)}" + _MEND)


def check_weights(model, step):
    """Raises `UserError` where a weight of `model` is infinite or no number after `step` steps."""
    for variable in model.weights:
        if not tf.reduce_all(tf.math.is_finite(variable)):
            raise UserError(f"step {step}: not finite: {variable.name}" + _MEND)
