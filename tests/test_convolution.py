"""The fast forms equal the plain ones, and no slow convolution is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ppds_jax.convolution import canonical, im2col, max_pool, stacked

KEYS = jax.random.split(jax.random.key(0), 2)
IMAGE = jax.random.normal(KEYS[0], (4, 9, 8, 3))
KERNEL = jax.random.normal(KEYS[1], (3, 3, 3, 5))
NHWC = ("NHWC", "HWIO", "NHWC")


def plain(image, kernel, strides, padding):
    return lax.conv_general_dilated(
        image, kernel, strides, padding, dimension_numbers=NHWC
    )


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 1), (2, 0))])
def test_im2col_and_its_gradients_equal_the_convolution(strides, padding):
    def both(conv):
        out = lambda x, w: jnp.sum(jnp.sin(conv(x, w, strides, padding)))
        return conv(IMAGE, KERNEL, strides, padding), jax.grad(out, (0, 1))(
            IMAGE, KERNEL
        )

    chex_close(both(im2col), both(plain))


def chex_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), a, b)


def test_max_pool_equals_reduce_window():
    window = lax.reduce_window(
        IMAGE, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    )
    np.testing.assert_array_equal(max_pool(IMAGE), window)


def test_the_gradient_of_max_pool_equals_that_of_reduce_window():
    def plain_pool(x):
        form = (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
        return lax.reduce_window(x, -jnp.inf, lax.max, *form)

    weight = jax.random.normal(jax.random.key(2), max_pool(IMAGE).shape)
    slope = lambda pool: jax.grad(lambda x: (weight * pool(x)).sum())(IMAGE)
    np.testing.assert_allclose(slope(max_pool), slope(plain_pool), atol=1e-6)


def train(image, kernel, steps=3):
    """Gradient steps in a scan, through a branch and a nested jit."""

    def loss(kernel):
        conv = jax.jit(lambda w: plain(image, w, (1, 1), "SAME"))
        out = lax.cond(kernel.sum() > 0, conv, lambda w: 2 * conv(w), kernel)
        return jnp.mean(jax.nn.relu(out) ** 2)

    def step(kernel, _):
        value, gradient = jax.value_and_grad(loss)(kernel)
        return kernel - 0.1 * gradient, value

    return step


@pytest.mark.parametrize("outside", [False, True])
def test_canonical_equals_the_plain_loop(outside):
    step = train(IMAGE, KERNEL)
    scan = lambda step: lambda w: lax.scan(step, w, None, length=3)
    one = jax.jit(scan(step))(KERNEL)
    fast = canonical(scan(step)) if outside else scan(canonical(step))
    chex_close(jax.jit(fast)(KERNEL), one)


def layouts(fn, *args):
    """The convolutions in the compiled program, by their dimension numbers."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    return {part.split("dim_labels=")[1].split()[0].strip(",")
            for part in text.splitlines() if "dim_labels=" in part}  # fmt: skip


def test_only_the_fast_layout_is_left_in_the_program():
    step = train(IMAGE, KERNEL)
    scan = lambda step: lambda w: lax.scan(step, w, None, length=3)
    fast = {"b01f_01io->b01f"}
    assert layouts(canonical(scan(step)), KERNEL) == fast
    assert layouts(scan(step), KERNEL) - fast, "the plain loop has slow ones to cure"


def test_gradients_by_kernels_are_products_that_a_cpu_has_a_fast_kernel_for():
    def step(kernel):
        loss = lambda w: jnp.sum(jnp.sin(im2col(IMAGE, w, (2, 2), "SAME")))
        return jax.grad(loss)(kernel)

    def contracted(fn):
        """The axes of first factors that products of the compiled program contract."""
        text = jax.jit(fn).lower(KERNEL).compile().as_text()
        parts = text.split("lhs_contracting_dims={")[1:]
        return {part.split("}")[0] for part in parts}

    assert "0" in contracted(step), "there is nothing to cure"
    assert contracted(canonical(step)) == {"1"}
    chex_close(jax.jit(canonical(step))(KERNEL), step(KERNEL))


def convolutions(fn, *args):
    return jax.jit(fn).lower(*args).as_text().count("stablehlo.convolution")


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 1), (2, 0))])
@pytest.mark.parametrize("features", [2, 5])  # fewer than the image's, and more
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (3, 2)])
def test_a_vmap_over_kernels_becomes_products(strides, padding, features, window):
    keys = jax.random.split(jax.random.key(2), 2)
    images = jax.random.normal(keys[0], (2, 4, 9, 8, 3))
    kernels = jax.random.normal(keys[1], (2, *window, 3, features))

    def slopes(image, kernel):
        loss = lambda x, w: jnp.sum(jnp.sin(plain(x, w, strides, padding)))
        return jax.value_and_grad(loss, (0, 1))(image, kernel)

    grouped, batched = jax.vmap(slopes), jax.vmap(stacked(slopes))
    assert convolutions(grouped, images, kernels) == 3, "there is nothing to cure"
    assert convolutions(batched, images, kernels) == 0
    chex_close(jax.jit(batched)(images, kernels), jax.jit(grouped)(images, kernels))


@pytest.mark.parametrize("dimensions", [1, 3])
def test_signals_and_volumes_are_left_alone(dimensions):
    image = jnp.arange(2.0 * 5**dimensions * 2).reshape(2, *(5,) * dimensions, 2)
    kernel = jnp.ones((*(3,) * dimensions, 2, 4))
    dims = ("NWC", "WIO", "NWC") if dimensions == 1 else ("NDHWC", "DHWIO", "NDHWC")
    conv = lambda x, w: lax.conv_general_dilated(
        x, w, (1,) * dimensions, "SAME", dimension_numbers=dims
    )
    np.testing.assert_array_equal(canonical(conv)(image, kernel), conv(image, kernel))
    kernels = jnp.stack([kernel, 2 * kernel])
    chex_close(*(jax.vmap(f, (None, 0))(image, kernels) for f in (stacked(conv), conv)))


def test_what_is_computed_again_for_the_gradient_is_changed_too():
    def slope(image, kernel):
        layer = jax.checkpoint(lambda w: jnp.sin(plain(image, w, (1, 1), "SAME")))
        return jax.grad(lambda w: layer(w).sum())(kernel)

    kernels = jnp.stack([KERNEL, 2 * KERNEL])
    many = [jax.vmap(f, (None, 0)) for f in (stacked(slope), slope)]
    assert [convolutions(f, IMAGE, kernels) > 0 for f in many] == [False, True]
    chex_close(*(f(IMAGE, kernels) for f in many))


def test_a_vmap_of_one_or_over_images_alone_keeps_the_convolution():
    conv = stacked(lambda x, w: plain(x, w, (1, 1), "SAME"))
    one = jax.vmap(conv, (None, 0))
    np.testing.assert_array_equal(one(IMAGE, KERNEL[None])[0], conv(IMAGE, KERNEL))
    text = jax.jit(one).lower(IMAGE, KERNEL[None]).as_text()
    assert "feature_group_count = 1" in text
    over_images = jax.vmap(conv, (0, None))
    assert convolutions(over_images, IMAGE[None], KERNEL) == 1


def test_what_has_no_form_as_products_is_left_alone():
    """A dilated kernel, and a convolution with groups, within a vmap over kernels."""
    options = {"dimension_numbers": NHWC}
    dilated = lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", rhs_dilation=(2, 2), **options
    )
    grouped = lambda x, w: lax.conv_general_dilated(
        x, w[:, :, :1, :3], (1, 1), "SAME", feature_group_count=3, **options
    )
    kernels = jnp.stack([KERNEL, 2 * KERNEL])
    for conv in (dilated, grouped):
        both = [jax.vmap(f, (None, 0))(IMAGE, kernels) for f in (conv, stacked(conv))]
        chex_close(*both)


def test_products_keep_the_precision_that_a_convolution_asks_for():
    exact = lambda x, w: lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=NHWC, precision="highest"
    )
    kernels = jnp.stack([KERNEL, KERNEL])
    many = jax.vmap(stacked(exact), (None, 0))
    for fn, kernel in ((many, kernels), (canonical(exact), KERNEL)):
        text = jax.jit(fn).lower(IMAGE, kernel).as_text()
        assert "HIGHEST" in text
        assert "DEFAULT" not in text
