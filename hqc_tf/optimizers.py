"""The optimizers and the learning rate of each step."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import tensorflow as tf

from hqc_tf.config import Config
from hqc_tf.errors import UserError


@tf.keras.utils.register_keras_serializable("hqc_tf")
class WarmupCosine(tf.keras.optimizers.schedules.LearningRateSchedule):
    """The authors' schedule: a rise of whole steps, then a cosine of whole epochs.

    The cosine c(e) falls from `base` at e = 0 to `final_fraction * base` at e = `epochs`. The rise
    goes in equal steps from `warmup_from` to c(`warmup_epochs`), which it would reach with the
    first step after the warm-up; from there on epoch e, counted from 0, has c(e + 1).

    Args:
        base: learning rate at the top of the cosine.
        epochs, warmup_epochs: of the run, and of its rise; 0 leaves the rise out.
        steps_per_epoch: steps in an epoch.
        final_fraction: of `base`, in the last epoch.
        warmup_from: rate of step 0.
        decay: "epoch"; or "step": step s after the warm-up has c(s / `steps_per_epoch`).

    Call arguments:
        step: int; a call returns its rate, float32.
    """

    def __init__(
        self,
        base: float,
        epochs: int,
        warmup_epochs: int,
        steps_per_epoch: int,
        final_fraction: float,
        warmup_from: float = 1e-5,
        decay: str = "epoch",
    ):
        super().__init__()
        self.base, self.final_fraction, self.warmup_from = base, final_fraction, warmup_from
        self.epochs, self.warmup_epochs = epochs, warmup_epochs
        self.steps_per_epoch, self.decay = steps_per_epoch, decay

    def __call__(self, step):
        # Whole numbers first: float32 cannot tell steps apart beyond 2**24.
        step = tf.cast(step, tf.int64)
        warmup_steps = self.warmup_epochs * self.steps_per_epoch
        done = tf.cast(tf.minimum(step, warmup_steps), tf.float32) / max(warmup_steps, 1)
        reached = self._cosine(tf.cast(self.warmup_epochs, tf.float32))
        rising = self.warmup_from + (reached - self.warmup_from) * done
        epoch, within = step // self.steps_per_epoch, step % self.steps_per_epoch
        if self.decay == "step":
            part = tf.cast(within, tf.float32) / self.steps_per_epoch
            reached = self._cosine(tf.cast(epoch, tf.float32) + part)
        else:
            reached = self._cosine(tf.cast(tf.minimum(epoch + 1, self.epochs), tf.float32))
        return tf.where(step < warmup_steps, rising, reached)

    def _cosine(self, epoch):
        final = self.base * self.final_fraction
        return final + (self.base - final) * 0.5 * (1 + tf.cos(math.pi * epoch / self.epochs))

    def get_config(self) -> dict:
        return vars(self).copy()


# The public name.
warmup_cosine = WarmupCosine


class RateFactors:
    """What an optimizer needs to give some weights a learning rate of their own."""

    _slowed: frozenset = frozenset()
    _factor: float = 1.0

    def set_rate_factor(self, variables: Sequence[tf.Variable], factor: float) -> None:
        """Gives some weights `factor` times the learning rate of the others.

        They are those of a compiled model, in the scope of its strategy.
        """
        # Replicas update their own copy of a weight.
        copies = tf.distribute.get_strategy().experimental_local_results
        self._slowed = frozenset(own.ref() for one in variables for own in copies(one))
        self._factor = factor

    def _update(self, variable: tf.Variable, update: Callable[[], object]) -> object:
        """Calls `update`, which changes `variable`, and takes back what is too much of it."""
        if self._factor == 1 or variable.ref() not in self._slowed:
            return update()
        before = tf.identity(variable)
        with tf.control_dependencies([before]):
            updated = update()
        # Each rule of ours is a rate times a direction, so this is the rule at another rate.
        with tf.control_dependencies([] if updated is None else [updated]):
            return variable.assign(before + self._factor * (variable - before))


class CoupledAdam(RateFactors, tf.keras.optimizers.Adam):
    """Adam whose weight decay is added to the gradient, as PyTorch and the authors have it.

    Keras' own `weight_decay` is AdamW's, which leaves the moments alone.

    Args:
        learning_rate: float or schedule.
        l2: factor; l2 * weight is added to the gradient of every weight.
    """

    def __init__(self, learning_rate, l2: float = 0.0, epsilon: float = 1e-8, **kwargs):
        if kwargs.get("amsgrad"):
            raise ValueError("amsgrad=True: the kernel has no such rule; leave it out")
        # XLA would compile the update of each weight, which is one kernel as it is.
        super().__init__(learning_rate, epsilon=epsilon, **kwargs | {"jit_compile": False})
        self.l2 = l2

    def apply_gradients(
        self, grads_and_vars: Iterable[tuple[tf.Tensor, tf.Variable]], name: str | None = None
    ) -> tf.Tensor:
        """Updates weights by their gradients; returns the number of steps done."""
        self._of_step = functools.cache(self._scalars)
        return super().apply_gradients(grads_and_vars, name)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one weight by its gradient."""
        dtype, place = variable.dtype, self._index_dict[self._var_key(variable)]
        # A sum would be joined with that of the views' gradients, whose order is then open.
        coupled = gradient - tf.constant(-self.l2, dtype) * variable

        # One kernel for the dozen operations of Keras' own step, which take seconds to trace.
        def update():
            return tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=self._momentums[place].handle,
                v=self._velocities[place].handle,
                grad=coupled,
                **self._of_step(dtype),
            )

        self._update(variable, update)

    def _scalars(self, dtype):
        """What the kernel takes beside tensors of a weight, the same for all weights of a step."""
        step = tf.cast(self.iterations + 1, dtype)
        beta_1, beta_2 = (tf.constant(beta, dtype) for beta in (self.beta_1, self.beta_2))
        power_2 = tf.pow(beta_2, step)
        return {
            "beta1": beta_1,
            "beta2": beta_2,
            "beta1_power": tf.pow(beta_1, step),
            "beta2_power": power_2,
            "lr": tf.cast(self.learning_rate, dtype),
            # The kernel adds it before the velocity's bias is taken out, Adam's authors after.
            "epsilon": self.epsilon * tf.sqrt(1 - power_2),
        }

    def get_config(self) -> dict:
        return super().get_config() | {"l2": self.l2}


def make_schedule(config: Config, steps_per_epoch: int) -> WarmupCosine:
    """The learning rate of each step of a run with the settings `config`."""
    return WarmupCosine(
        config.learning_rate,
        config.epochs,
        config.warmup_epochs,
        steps_per_epoch,
        config.final_fraction,
        config.warmup_from,
        config.decay,
    )


def make_optimizer(config: Config, steps_per_epoch: int) -> tf.keras.optimizers.Optimizer:
    """The optimizer of `--optimizer` with the schedule of `config`, a `Config`.

    Raises:
        UserError: LAMB is wanted, and TensorFlow Addons cannot be imported.
    """
    rate = make_schedule(config, steps_per_epoch)
    if config.optimizer == "adam":
        return CoupledAdam(rate, l2=config.weight_decay)
    # TensorFlow Addons takes seconds to import, and only LAMB needs it.
    try:
        import tensorflow_addons as tfa
    except ImportError as error:
        raise UserError(
            f"--optimizer=lamb: needs TensorFlow Addons ({error}); install the extra lamb, whose "
            "TensorFlow 2.15 is the last with it, or take --optimizer=adam"
        ) from error

    class LAMB(RateFactors, tfa.optimizers.LAMB):
        def _resource_apply_dense(self, gradient, variable, apply_state=None):
            own = super()._resource_apply_dense
            return self._update(variable, lambda: own(gradient, variable, apply_state))

    return LAMB(rate, weight_decay=config.weight_decay)
