"""The fast forms equal the plain ones, and no slow convolution is left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ppds_jax.convolution import canonical, im2col, max_pool

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
