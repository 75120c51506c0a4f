"""One Gaussian release of a bounded statistic."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppds_jax.types import Key


def gaussian_release(
    key: Key,
    statistic: Float[Array, "..."],
    *,
    sensitivity: float,
    noise_multiplier: float,
) -> Float[Array, "..."]:
    """Adds N(0, (noise_multiplier * sensitivity)^2) to each entry of a statistic.

    Args:
      key: used here and nowhere else.
      statistic: any shape, float32.
      sensitivity: bound on the Euclidean norm of the change of the whole statistic
        between neighbouring data sets; the caller proves it.
      noise_multiplier: standard deviation over sensitivity; 0 adds no noise.

    **Privacy:** `accounting.gaussian(noise_multiplier, neighbours)`, for the
    neighbours for which the sensitivity holds.

    **References:** Dwork and Roth, The Algorithmic Foundations of Differential Privacy,
    2014, appendix A.
    """
    noise = jax.random.normal(key, statistic.shape, statistic.dtype)
    return statistic + jnp.asarray(sensitivity * noise_multiplier, noise.dtype) * noise
