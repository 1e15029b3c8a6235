"""The authors' learning rates, Adam with coupled decay against NumPy, and LAMB."""

import math
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf import model
from hqc_tf.errors import UserError
from hqc_tf.optimizers import CoupledAdam, WarmupCosine, make_optimizer, warmup_cosine
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("same_random_numbers")


def rates(schedule, count):
    return np.array([schedule(step).numpy() for step in range(count)])


@pytest.mark.parametrize("name", ["cifar10", "flickr25k"])
def test_rates_are_the_authors(load_reference, name):
    arrays, meta = load_reference("learning_rate")
    got = rates(warmup_cosine(**meta[name]), len(arrays[name]))
    np.testing.assert_allclose(got, arrays[name], rtol=1e-5)


def test_rates_by_hand():
    # c(e) = 0.2 + 0.8 (1 + cos(pi e / 4)) / 2; two steps rise from 0 to c(1).
    first = 0.2 + 0.4 * (1 + math.sqrt(0.5))
    third = 0.2 + 0.4 * (1 - math.sqrt(0.5))
    got = rates(warmup_cosine(1.0, 4, 1, 2, 0.2, warmup_from=0.0), 10)
    expected = [0, first / 2, 0.6, 0.6, third, third, 0.2, 0.2, 0.2, 0.2]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_without_warmup_the_first_epoch_has_its_cosine():
    got = rates(warmup_cosine(1.0, 2, 0, 3, 0.0), 6)
    np.testing.assert_allclose(got, [0.5, 0.5, 0.5, 0, 0, 0], atol=1e-7)


def test_decay_by_step_follows_the_cosine_at_every_step():
    rate = warmup_cosine(1.0, 4, 1, 10, 0.0, warmup_from=0.0, decay="step")
    expected = [0.5 * (1 + math.cos(math.pi * step / 40)) for step in range(10, 40)]
    np.testing.assert_allclose([rate(step) for step in range(10, 40)], expected, atol=1e-6)
    np.testing.assert_allclose(rate(5), rate(10) / 2, rtol=1e-6)


def test_late_steps_are_told_apart():
    steps_per_epoch = 2**25
    schedule = warmup_cosine(1.0, 4, 0, steps_per_epoch, 0.0)
    last, first = schedule(steps_per_epoch - 1), schedule(steps_per_epoch)
    np.testing.assert_allclose([last, first], [0.5 + math.sqrt(0.125), 0.5], rtol=1e-6)


def test_schedule_from_its_config_is_the_same():
    schedule = warmup_cosine(5e-4, 5, 2, 3, 0.1, warmup_from=1e-6)
    again = WarmupCosine.from_config(schedule.get_config())
    np.testing.assert_array_equal(rates(again, 15), rates(schedule, 15))


def adam_by_numpy(weights, gradients, rate, l2):
    """Adam as published, l2 * weight in the gradient: the weights after each step."""
    weights, m, v = np.array(weights), 0.0, 0.0
    for step, gradient in enumerate(gradients, start=1):
        gradient = gradient + l2 * weights
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        weights = weights - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        yield weights


def test_a_rate_factor_shortens_the_steps_of_its_weights_alone():
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal([4, 3]), rng.standard_normal([6, 4, 3])
    own, other = (tf.Variable(start, dtype=tf.float64) for _ in range(2))
    optimizer = CoupledAdam(0.05)
    optimizer.set_rate_factor([own], 0.2)
    slow, fast = (adam_by_numpy(start, gradients, rate, 0.0) for rate in (0.01, 0.05))
    for gradient, *expected in zip(gradients, slow, fast, strict=True):
        optimizer.apply_gradients([(tf.constant(gradient), one) for one in (own, other)])
        np.testing.assert_allclose(own, expected[0], rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(other, expected[1], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("optimizer", ["adam", "lamb"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_backbone_of_a_model_has_its_rate(quick_config, set_policy, optimizer, precision):
    if optimizer == "lamb":
        pytest.importorskip("tensorflow_addons", reason="only requirements.txt has it")
    moved = []
    views = tf.unstack(tf.random.uniform([2, 4, 8, 8, 3]))
    for factor in (1.0, 0.25):
        own = quick_config(
            optimizer=optimizer, backbone_rate=factor, learning_rate=0.01, precision=precision
        )
        network = model.build_model(own)
        network.compile(optimizer=make_optimizer(own, steps_per_epoch=2))
        before = network.get_weights()
        network.train_step(views)
        moved.append([b - a for a, b in zip(before, network.get_weights(), strict=True)])
        backbone = {id(weight) for weight in network.build_backbone().trainable_weights}
        slowed = [id(weight) in backbone for weight in network.weights]
    for full, some, is_slowed, weight in zip(*moved, slowed, network.weights, strict=True):
        factor = 0.25 if is_slowed and weight.trainable else 1
        np.testing.assert_allclose(some, factor * full, rtol=0.02, atol=2e-6)
    assert 0 < sum(slowed) < len(slowed)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_coupled_adam_equals_numpy(l2):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal([4, 3]), rng.standard_normal([6, 4, 3])
    variable = tf.Variable(start, dtype=tf.float64)
    optimizer = CoupledAdam(0.05, l2=l2)
    for gradient, expected in zip(
        gradients, adam_by_numpy(start, gradients, 0.05, l2), strict=True
    ):
        optimizer.apply_gradients([(tf.constant(gradient), variable)])
        # Keras raises the betas to their powers in float32.
        np.testing.assert_allclose(variable, expected, rtol=1e-5, atol=2e-6)


def test_epsilon_joins_the_velocity_without_its_bias():
    # Before, it would count 31 times as much in the first step: a rate of 0.076, not 0.5, here.
    variable = tf.Variable(0.0, dtype=tf.float64)
    optimizer = CoupledAdam(1.0)
    optimizer.apply_gradients([(tf.constant(1e-8, tf.float64), variable)])
    assert float(variable) == pytest.approx(-0.5, rel=1e-3)


def test_decay_joins_the_gradient_of_every_weight():
    # Adam's first step is the rate times the gradient's sign, and only decay gives one here.
    kernel, bias = tf.Variable([[2.0, -2.0]]), tf.Variable([3.0])
    optimizer = CoupledAdam(0.1, l2=1e-2)
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in (kernel, bias)])
    np.testing.assert_allclose(kernel, [[1.9, -1.9]], rtol=1e-4)
    np.testing.assert_allclose(bias, [2.9], rtol=1e-4)


def test_adam_of_the_settings_follows_the_schedule(small_config):
    config = small_config(learning_rate=0.1, epochs=3, warmup_epochs=1, weight_decay=0.02)
    optimizer = make_optimizer(config, steps_per_epoch=2)
    assert optimizer.l2 == 0.02
    variable, places = tf.Variable([10.0]), [10.0]
    for _ in range(6):
        optimizer.apply_gradients([(tf.constant([1e3]), variable)])
        places.append(float(variable[0]))
    expected = rates(warmup_cosine(0.1, 3, 1, 2, 0.1), 6)
    # A gradient that stays makes each of Adam's steps as long as the rate.
    np.testing.assert_allclose(-np.diff(places), expected, rtol=1e-2, atol=1e-5)


def test_adam_from_its_config_is_the_same(small_config):
    optimizer = make_optimizer(small_config(weight_decay=0.02), steps_per_epoch=2)
    again = CoupledAdam.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert again.l2 == 0.02


def test_what_the_kernel_has_not_is_refused():
    with pytest.raises(ValueError, match="amsgrad=True: the kernel has no such rule; leave it out"):
        CoupledAdam(0.1, amsgrad=True)


def test_lamb_trains_a_step(small_config):
    pytest.importorskip("tensorflow_addons", reason="only requirements.txt has TensorFlow Addons")
    config = small_config(optimizer="lamb", learning_rate=0.01)
    network = model.HQC(config)
    network.compile(optimizer=make_optimizer(config, steps_per_epoch=2))
    before = [variable.numpy() for variable in network.trainable_variables]
    network.train_step(tf.unstack(tf.random.uniform([2, 4, 8, 8, 3])))
    after = [variable.numpy() for variable in network.trainable_variables]
    assert type(network.optimizer).__name__ == "LAMB"
    assert all(np.isfinite(weights).all() for weights in after)
    assert sum((a != b).any() for a, b in zip(after, before, strict=True)) > len(after) / 2


def test_lamb_without_tensorflow_addons_says_where_it_is(small_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_addons", None)
    rule = "^--optimizer=lamb: needs TensorFlow Addons .*install the extra lamb, .*adam$"
    with pytest.raises(UserError, match=rule):
        make_optimizer(small_config(optimizer="lamb"), steps_per_epoch=2)


@pytest.mark.long
def test_adam_does_without_tensorflow_addons():
    code = (
        "import sys; from hqc_tf import optimizers, config\n"
        "optimizers.make_optimizer(config.Config(), 10)\n"
        "assert 'tensorflow_addons' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
