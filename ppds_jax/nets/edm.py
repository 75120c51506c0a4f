"""Diffusion as EDM formulates it: preconditioning, loss, samplers. Pure functions.

Images x have about zero mean and standard deviation s = `deviation`; noisy ones are
x + sigma n with n ~ N(0, I). A denoiser D(x; sigma) estimates the clean image.

**References:** Karras, Aittala, Aila and Laine, Elucidating the Design Space of
Diffusion-Based Generative Models, 2022, arXiv 2206.00364: table 1, algorithms 1 and 2.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppds_jax.types import Key

Image = Float[Array, "n h w c"]
Level = Float[Array, " n"]
Denoiser = Callable[[Image, Level], Image]


def precondition(network: Callable[[Image, Level], Image], deviation: float):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), of inputs with variance 1."""

    def denoise(x: Image, sigma: Level) -> Image:
        s = sigma[:, None, None, None]
        total = s**2 + deviation**2
        scaled = x * jax.lax.rsqrt(total)
        c_skip = deviation**2 / total
        c_out = s * deviation * jax.lax.rsqrt(total)
        return c_skip * x + c_out * network(scaled, jnp.log(sigma) / 4)

    return denoise


def guided(conditional: Denoiser, free: Denoiser, weight: float) -> Denoiser:
    """Classifier-free guidance: D + weight (D - D without the label).

    **References:** Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv
    2207.12598.
    """

    def denoise(x: Image, sigma: Level) -> Image:
        given = conditional(x, sigma)
        return given + weight * (given - free(x, sigma))

    return denoise


def random_levels(key: Key, size: int, median: float, spread: float) -> Level:
    """Noise levels to train on: ln sigma ~ N(ln median, spread^2)."""
    return median * jnp.exp(spread * jax.random.normal(key, (size,)))


def error(
    denoise: Denoiser, image: Image, noise: Image, sigma: Level, deviation: float
) -> Level:
    """lambda(sigma) times the mean square of D(x + sigma n; sigma) - x: [n].

    lambda = (sigma^2 + s^2) / (sigma s)^2 makes it 1 at every level for a network that
    predicts nothing.
    """
    weight = (sigma**2 + deviation**2) / (sigma * deviation) ** 2
    noisy = image + sigma[:, None, None, None] * noise
    return weight * jnp.square(denoise(noisy, sigma) - image).mean((1, 2, 3))


def schedule(
    num_steps: int, smallest: float = 0.002, largest: float = 80.0, rho: float = 7.0
) -> Float[Array, " steps"]:
    """Noise levels from the largest to the smallest, evenly spaced in sigma^(1/rho)."""
    if num_steps == 1:
        return jnp.array([largest])
    place = jnp.linspace(0, 1, num_steps)
    first, last = largest ** (1 / rho), smallest ** (1 / rho)
    return (first + place * (last - first)) ** rho


def slope(denoise: Denoiser, x: Image, sigma: Array) -> Image:
    """dx/dsigma = (x - D(x; sigma)) / sigma: minus the score times sigma."""
    level = jnp.broadcast_to(sigma, x.shape[:1])
    return (x - denoise(x, level)) / sigma


def heun(field: Callable[[Image, Array], Image], x: Image, t: Array, after: Array):
    """A step of Heun's method along dx/dt = field(x, t).

    Along the slope here, then along the mean of it and the slope found there; as a
    loop, so that the network is compiled once.
    """

    def move(carry, row):
        point, total = carry
        time, count = row
        total = total + field(point, time)
        return (x + (after - t) * total / count, total), None

    rows = jnp.stack([t, after]), jnp.array([1.0, 2.0])
    return jax.lax.scan(move, (x, jnp.zeros_like(x)), rows)[0][0]


def sample(
    key: Key,
    denoise: Denoiser,
    shape: tuple[int, ...],
    levels: Float[Array, " steps"],
    churn: float = 0.0,
) -> Image:
    """Draws images by Heun's method from the highest level to the lowest, then to 0.

    Args:
      shape: [n h w c] of what is drawn.
      levels: falling; 2 evaluations of the denoiser each, 1 for the last.
      churn: S_churn. 0 solves the differential equation; above it, each step first adds
        noise, which corrects errors made before (algorithm 2, at all levels).
    """
    first_key, step_key = jax.random.split(key)
    x = levels[0] * jax.random.normal(first_key, shape)
    gamma = min(churn / len(levels), 2**0.5 - 1)

    def step(x, row):
        sigma, after, key = row
        if churn:
            noise = jax.random.normal(key, shape)
            x = x + sigma * ((1 + gamma) ** 2 - 1) ** 0.5 * noise
            sigma = sigma * (1 + gamma)
        return heun(lambda x, sigma: slope(denoise, x, sigma), x, sigma, after), None

    keys = jax.random.split(step_key, len(levels) - 1)
    x, _ = jax.lax.scan(step, x, (levels[:-1], levels[1:], keys))
    # Euler's step from the last level to 0 ends at the denoiser's estimate
    return denoise(x, jnp.broadcast_to(levels[-1], shape[:1]))
