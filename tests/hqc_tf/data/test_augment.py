"""hqc_tf.augment: each operation against its definition, written out in NumPy."""

import colorsys
import itertools

import numpy as np
import pytest
import tensorflow as tf

from hqc_tf.data import augment, catalog

SEED = (3, 14)
LUMA = np.array([0.2989, 0.587, 0.114])
ORDERS = list(itertools.permutations(range(4)))


@pytest.fixture(scope="module")
def drawn():
    return augment.Draw(*(x.numpy() for x in augment.draw(SEED, 20_000)))


def colors(batch, size=6):
    """Random images with black, white, gray and pure colors among their pixels."""
    images = np.random.default_rng(0).random((batch, size, size, 3), np.float32)
    images[:, 0, :5] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 1]]
    return images


def jitter(images, order, factors):
    channels = augment.color_jitter(
        tf.unstack(images, axis=-1), tf.constant(order), tf.constant(factors, tf.float32)
    )
    return np.stack(channels, -1)


def jitter_by_definition(image, order, factors):
    for operation in order:
        gray = (image @ LUMA)[..., None]
        if operation == augment.HUE_SHIFT:
            image = np.apply_along_axis(turned_hue, -1, image, factors[3])
        elif operation != augment.NOTHING:
            fades_to = [0.0, gray.mean(), gray][operation]
            factor = factors[operation]
            image = np.clip(factor * image + (1 - factor) * fades_to, 0, 1)
    return image


def turned_hue(pixel, turn):
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    return colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)


def blur_by_definition(image, sigma):
    distance = np.arange(-1, 2)
    weights = np.exp(-(distance[:, None] ** 2 + distance**2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = np.pad(image, [(1, 1), (1, 1), (0, 0)], "reflect")
    height, width = image.shape[:2]
    return sum(
        weights[i, j] * padded[i : i + height, j : j + width] for i in range(3) for j in range(3)
    )


def blurred(images, sigma):
    planes = augment.blur(tf.transpose(images, [3, 0, 1, 2]), tf.constant(sigma, tf.float32))
    return tf.transpose(planes, [1, 2, 3, 0]).numpy()


def as_arrays(boxes):
    return [np.asarray(side) for side in boxes]


# What is drawn


def test_draw_is_a_function_of_the_seed(drawn):
    again, other = augment.draw(SEED, 20_000), augment.draw((3, 15), 20_000)
    for first, second, different in zip(drawn, again, other, strict=True):
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, different)


def test_a_larger_batch_begins_with_the_rows_of_a_smaller_one(drawn):
    for size in (1, 37, 256):
        for few, many in zip(augment.draw(SEED, size), drawn, strict=True):
            np.testing.assert_array_equal(few, many[:size])


def test_draw_is_the_same_in_a_pipeline(drawn):
    steps = tf.data.Dataset.range(14, 15)
    piped = next(iter(steps.map(lambda step: augment.draw(tf.stack([np.int64(3), step]), 64))))
    for eager, inside in zip(drawn, piped, strict=True):
        np.testing.assert_array_equal(eager[:64], inside)


def test_chances(drawn):
    jittered = drawn.order[:, 0] != augment.NOTHING
    for share, chance in ((drawn.flip, 0.5), (jittered, 0.8), (drawn.gray, 0.2)):
        assert share.mean() == pytest.approx(chance, abs=0.012)
    together = drawn.flip & jittered & drawn.gray
    assert together.mean() == pytest.approx(0.5 * 0.8 * 0.2, abs=0.008)


def test_orders_are_equally_frequent(drawn):
    jittered = drawn.order[drawn.order[:, 0] != augment.NOTHING]
    found, counts = np.unique(jittered, axis=0, return_counts=True)
    assert list(map(tuple, found)) == ORDERS
    np.testing.assert_allclose(counts / len(jittered), 1 / 24, rtol=0.17)
    assert (drawn.order[drawn.order[:, 0] == augment.NOTHING] == augment.NOTHING).all()


def test_factors_and_sigma_are_uniform(drawn):
    ranges = [(0.6, 1.4)] * 3 + [(-0.1, 0.1), (0.1, 2.0)]
    for values, (low, high) in zip([*drawn.factors.T, drawn.sigma], ranges, strict=True):
        assert low <= values.min() < low + 0.002 * (high - low)
        assert high - 0.002 * (high - low) < values.max() <= high
        counts, _ = np.histogram(values, 10, (low, high))
        np.testing.assert_allclose(counts / len(values), 0.1, rtol=0.12)


def test_nothing_depends_on_another_draw(drawn):
    jittered = drawn.order[:, 0] != augment.NOTHING
    places = np.argsort(drawn.order, axis=1)
    single = np.stack([jittered, drawn.flip, drawn.gray, drawn.sigma], 1)
    columns = np.concatenate([single, drawn.factors, drawn.crop], 1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(30)).max() < 0.04
    both = np.concatenate([places, columns[:, 1:]], 1)[jittered]
    assert np.abs(np.corrcoef(both.T)[:4, 4:]).max() < 0.04


# Crops


def test_areas_and_ratios_of_boxes(drawn):
    side = 1000
    _, _, height, width = as_arrays(augment.crop_boxes(drawn.crop, side, side))
    area, log_ratio = height * width / side**2, np.log(width / height)
    # Boxes that stick out are drawn anew, which bends the two uniform distributions.
    wish_area, wish_ratio = np.meshgrid(
        np.linspace(0.08, 1, 1001), np.linspace(np.log(3 / 4), np.log(4 / 3), 1001)
    )
    fits = wish_area * np.exp(np.abs(wish_ratio)) <= 1
    for found, wish in ((area, wish_area[fits]), (log_ratio, wish_ratio[fits])):
        assert found.mean() == pytest.approx(wish.mean(), abs=0.006)
        assert found.std() == pytest.approx(wish.std(), rel=0.015)
        assert wish.min() - 0.003 <= found.min() and found.max() <= wish.max() + 0.003


def test_a_weaker_augmentation_changes_less(drawn):
    weak = augment.Strength(area=0.6, ratio=1.1, flip=0.0, jitter=0.1, hue=0.0, gray=0.0, sigma=0.1)
    few = augment.Draw(*(x.numpy() for x in augment.draw(SEED, 20_000, weak)))
    assert not few.flip.any() and not few.gray.any()
    assert np.abs(few.factors[:, :3] - 1).max() == pytest.approx(0.1, abs=1e-3)
    assert not few.factors[:, 3].any() and np.ptp(few.sigma) == 0
    np.testing.assert_array_equal(few.crop, drawn.crop)
    _, _, height, width = as_arrays(augment.crop_boxes(few.crop, 1000, 1000, weak))
    assert (height * width).min() / 1e6 == pytest.approx(0.6, abs=0.003)
    assert np.maximum(width / height, height / width).max() == pytest.approx(1.1, abs=0.003)


def test_places_of_boxes(drawn):
    top, left, height, width = as_arrays(augment.crop_boxes(drawn.crop, 8, 8))
    for start, room in ((top, 8 - height), (left, 8 - width)):
        for n in range(4):
            counts = np.bincount(start[room == n], minlength=n + 1)
            assert len(counts) == n + 1
            np.testing.assert_allclose(counts / counts.sum(), 1 / (n + 1), atol=0.03)


@pytest.mark.parametrize("height, width", [(32, 32), (28, 28), (375, 500), (3, 4), (1, 1), (9, 70)])
def test_boxes_lie_inside(drawn, height, width):
    top, left, box_h, box_w = as_arrays(augment.crop_boxes(drawn.crop, height, width))
    assert top.min() >= 0 and left.min() >= 0 and box_h.min() > 0 and box_w.min() > 0
    assert (top + box_h).max() == height and (left + box_w).max() == width


@pytest.mark.parametrize("fitting", range(10))
def test_first_of_ten_tries_that_fits_counts(fitting):
    tries = np.zeros((10, 2), np.float32)
    tries[:fitting] = 1.0, 1.0  # the whole area at 4:3 is wider than the image
    tries[fitting] = (0.25 - 0.08) / 0.92, 0.5  # a quarter, square
    uniform = np.append(tries, np.float32([0.0, 0.9999]))[None]
    boxes = augment.crop_boxes(uniform, 40, 40)
    assert [side.numpy().item() for side in boxes] == [0, 20, 20, 20]


@pytest.mark.parametrize(
    "height, width, box", [(11, 300, (0, 142, 11, 15)), (200, 10, (93, 0, 13, 10))]
)
def test_box_of_a_strip_is_centered(drawn, height, width, box):
    boxes = as_arrays(augment.crop_boxes(drawn.crop[:500], height, width))
    np.testing.assert_array_equal(np.stack(boxes, 1), [box] * 500)


def test_boxes_of_images_of_several_sizes(drawn):
    height, width = np.array([32, 10, 375]), np.array([32, 200, 500])
    together = augment.crop_boxes(drawn.crop[:3], height, width)
    for row in range(3):
        alone = augment.crop_boxes(drawn.crop[row : row + 1], height[row], width[row])
        assert [int(s[row]) for s in together] == [s.numpy().item() for s in alone]


@pytest.mark.parametrize("height, width, size", [(32, 32, 32), (60, 90, 16), (9, 13, 20)])
def test_crop_is_cutting_and_resizing(drawn, height, width, size):
    rng = np.random.default_rng(1)
    images = rng.random((64, height, width, 3), np.float32)
    boxes = augment.crop_boxes(drawn.crop[:64], height, width)
    flip = drawn.flip[:64]
    crops = augment.crop(images, boxes, flip, size)
    assert crops.shape == (64, size, size, 3)
    for row, box in enumerate(np.stack(boxes, 1)):
        top, left, box_h, box_w = box
        cut = images[row, top : top + box_h, left : left + box_w]
        wanted = tf.image.resize(cut, [size, size], antialias=True).numpy()
        wanted = wanted[:, ::-1] if flip[row] else wanted
        np.testing.assert_allclose(crops[row], wanted, atol=1e-5)
        one = augment.crop_one(tf.constant(images[row]), augment.Boxes(*box), flip[row], size)
        np.testing.assert_allclose(one, wanted, atol=1e-5)


def test_crop_of_the_whole_image_changes_nothing():
    images = colors(2, size=8)
    whole = augment.Boxes(*tf.constant([[0, 0], [0, 0], [8, 8], [8, 8]]))
    crops = augment.crop(images, whole, tf.constant([False, True]), 8)
    np.testing.assert_allclose(crops[0], images[0], atol=1e-7)
    np.testing.assert_allclose(crops[1], images[1, :, ::-1], atol=1e-7)


# Colours


def test_jitter_in_each_order():
    images, rng = colors(48), np.random.default_rng(2)
    factors = rng.uniform([0.6, 0.6, 0.6, -0.1], [1.4, 1.4, 1.4, 0.1], (48, 4))
    result = jitter(images, ORDERS * 2, factors)
    for row, order in enumerate(ORDERS * 2):
        wanted = jitter_by_definition(images[row].astype(np.float64), order, factors[row])
        np.testing.assert_allclose(result[row], wanted, atol=3e-6)
    assert result.min() >= 0 and result.max() <= 1


def test_order_matters():
    image = np.repeat(colors(1), 24, axis=0)
    result = jitter(image, ORDERS, [[1.4, 0.6, 1.4, 0.1]] * 24)
    assert len(np.unique(result.round(3), axis=0)) > 12


@pytest.mark.parametrize("operation", range(4))
def test_one_operation_alone(operation):
    images = colors(5)
    order = [[operation] + [augment.NOTHING] * 3] * 5
    factors = np.full((5, 4), 0.123)
    factors[:, operation] = [-0.5, -0.1, 0, 0.07, 0.5] if operation == 3 else [0, 0.6, 1, 1.4, 3]
    result = jitter(images, order, factors)
    for row in range(5):
        wanted = jitter_by_definition(images[row], order[row], factors[row])
        np.testing.assert_allclose(result[row], wanted, atol=2e-6)


def test_hue_goes_round():
    reds = tf.constant([[[[1.0, 0.2, 0.4]]], [[[1.0, 0.4, 0.2]]]])
    order, turns = [[augment.HUE_SHIFT] + [augment.NOTHING] * 3] * 2, [[1, 1, 1, 0.1]] * 2
    forth = jitter(reds, order, turns)
    np.testing.assert_allclose(forth[0, 0, 0], turned_hue([1.0, 0.2, 0.4], 0.1), atol=1e-6)
    back = jitter(forth, order, -np.array(turns))
    np.testing.assert_allclose(back, reds, atol=1e-6)
    thirds = jitter(reds, order, [[1, 1, 1, 1 / 3]] * 2)
    np.testing.assert_allclose(thirds, np.roll(reds, 1, axis=-1), atol=1e-6)


def test_nothing_leaves_images_untouched():
    images = colors(7)
    factors = np.full((7, 4), 0.3)
    np.testing.assert_array_equal(jitter(images, [[augment.NOTHING] * 4] * 7, factors), images)


def test_gray_where_chosen():
    images = colors(3)
    result = augment.grayscale(tf.unstack(images, axis=-1), tf.constant([True, False, True]))
    for channel, plane in enumerate(result):
        np.testing.assert_allclose(plane[0], images[0] @ LUMA, atol=1e-6)
        np.testing.assert_array_equal(plane[1], images[1, :, :, channel])
        np.testing.assert_allclose(plane[2], images[2] @ LUMA, atol=1e-6)


def test_blur_is_a_convolution():
    sigma = [0.1, 0.3, 0.7, 1.3, 2.0]
    images = np.random.default_rng(3).random((5, 7, 9, 3), np.float32)
    result = blurred(images, sigma)
    for row in range(5):
        np.testing.assert_allclose(
            result[row], blur_by_definition(images[row], sigma[row]), atol=1e-6
        )
    np.testing.assert_allclose(result[0], images[0], atol=1e-6)


def test_blur_of_a_point():
    point = np.zeros((1, 5, 5, 3), np.float32)
    point[0, 2, 2] = 1
    side, middle = 0.8824969, 1.0  # exp(-1/8): sigma 2
    line = np.array([0, side, middle, side, 0]) / (2 * side + middle)
    np.testing.assert_allclose(blurred(point, [2.0])[0, :, :, 0], np.outer(line, line), atol=1e-6)


def test_blur_leaves_an_even_image():
    even = np.full((2, 6, 6, 3), 0.7, np.float32)
    np.testing.assert_allclose(blurred(even, [0.1, 2.0]), even, atol=1e-6)


def test_recolor_is_jitter_then_gray_then_blur(drawn):
    images = colors(32)
    few = augment.Draw(*(x[:32] for x in drawn))
    result = augment.recolor(images, augment.Draw(*map(tf.constant, few)))
    for row in range(32):
        wanted = jitter_by_definition(images[row], few.order[row], few.factors[row])
        if few.gray[row]:
            wanted = np.repeat((wanted @ LUMA)[..., None], 3, -1)
        wanted = blur_by_definition(wanted, few.sigma[row])
        np.testing.assert_allclose(result[row], wanted, atol=4e-6)


def test_views_are_the_same_in_a_pipeline(drawn):
    images = colors(8, size=12)
    few = augment.Draw(*(tf.constant(x[:8]) for x in drawn))

    def view(images):
        boxes = augment.crop_boxes(few.crop, 12, 12)
        return augment.recolor(augment.crop(images, boxes, few.flip, 10), few)

    piped = tf.data.Dataset.from_tensors(images).map(view, num_parallel_calls=2)
    np.testing.assert_allclose(next(iter(piped)), view(images), atol=1e-6)


def test_other_images_of_a_batch_change_nothing(drawn):
    images = colors(8)
    few = augment.Draw(*(tf.constant(x[:8]) for x in drawn))
    others = images.copy()
    others[1:] = 0.5
    np.testing.assert_allclose(
        augment.recolor(images, few)[0], augment.recolor(others, few)[0], atol=1e-6
    )


def test_brightness_and_contrast_of_real_images(drawn, fashion_mnist_dir):
    pixels = catalog.load_images("fashion_mnist/test[:300]", fashion_mnist_dir).pixels
    # So that nothing is clipped: then brightness b scales the mean, and with contrast c the spread.
    images = 0.25 + 0.4 * pixels.astype(np.float32) / 255
    rows = np.arange(1200) % len(images)
    result = jitter(images[rows], drawn.order[:1200], drawn.factors[:1200])
    mean, spread = (
        measure(result, axis=(1, 2, 3)) / measure(images[rows], axis=(1, 2, 3))
        for measure in (np.mean, np.std)
    )
    variance = 0.4**2 / 3
    assert mean.mean() == pytest.approx(1, abs=0.02)
    assert mean.std() == pytest.approx((0.8 * variance) ** 0.5, rel=0.06)
    assert spread.mean() == pytest.approx(1, abs=0.03)
    assert spread.std() == pytest.approx((0.8 * ((1 + variance) ** 2 - 1)) ** 0.5, rel=0.08)


def test_views_of_real_images(fashion_mnist_dir):
    pixels = catalog.load_images("fashion_mnist/test[:300]", fashion_mnist_dir).pixels
    images = pixels.astype(np.float32) / 255
    few = augment.draw(SEED, 300)
    crops = augment.crop(images, augment.crop_boxes(few.crop, 28, 28), few.flip, 28)
    views = augment.recolor(crops, few).numpy()
    assert np.ptp(views, axis=-1).max() < 1e-5  # a gray image stays gray
    assert views.mean() == pytest.approx(np.mean(crops), rel=0.05)
    plain = jitter(crops, few.order, few.factors)
    rough, smooth = (np.abs(np.diff(x, axis=1)).mean((1, 2, 3)) for x in (plain, views))
    sharp, soft = few.sigma < 0.25, few.sigma > 1
    np.testing.assert_allclose(smooth[sharp], rough[sharp], rtol=2e-3, atol=1e-6)
    assert (smooth <= rough + 1e-6).all()
    assert smooth[soft].sum() < 0.8 * rough[soft].sum()


# The plain view


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_plain_view_of_equal_size_is_the_image(dtype):
    pixels = np.random.default_rng(4).integers(0, 256, (3, 12, 12, 3)).astype(dtype)
    view = augment.plain_view(pixels, 12, 12)
    assert view.dtype == tf.float32
    np.testing.assert_allclose(view, pixels / 255, atol=1e-6)


def test_plain_view_cuts_the_center():
    pixels = np.random.default_rng(5).integers(0, 256, (14, 12, 3), np.uint8)
    np.testing.assert_allclose(
        augment.plain_view(pixels, 12, 8), pixels[3:11, 2:10] / 255, atol=1e-6
    )


@pytest.mark.parametrize("height, width, new", [(40, 30, (21, 16)), (30, 47, (16, 25))])
def test_plain_view_resizes_the_shorter_side(height, width, new):
    pixels = np.random.default_rng(6).integers(0, 256, (height, width, 3), np.uint8)
    resized = tf.image.resize(pixels, new, antialias=True).numpy() / 255
    top, left = (new[0] - 12) // 2, (new[1] - 12) // 2
    wanted = resized[top : top + 12, left : left + 12]
    view = augment.plain_view(pixels, 16, 12)
    assert view.shape == (12, 12, 3)
    np.testing.assert_allclose(view, wanted, atol=1e-6)
    np.testing.assert_array_equal(augment.plain_view(pixels.astype(np.float32), 16, 12), view)
    batch = augment.plain_view(np.stack([255 - pixels, pixels]), 16, 12)
    np.testing.assert_allclose(batch[1], view, atol=1e-6)


def test_plain_view_is_the_same_in_a_pipeline():
    pixels = np.random.default_rng(7).integers(0, 256, (40, 30, 3), np.uint8)
    images = tf.data.Dataset.from_generator(
        lambda: [pixels], output_signature=tf.TensorSpec([None, None, 3], tf.uint8)
    )
    piped = images.map(lambda image: augment.plain_view(image, 16, 12))
    assert piped.element_spec.shape == (12, 12, 3)
    np.testing.assert_allclose(next(iter(piped)), augment.plain_view(pixels, 16, 12), atol=1e-6)
