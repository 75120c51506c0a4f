"""One-shot private releases: bounded statistics, histograms, votes and selections."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from ppds_jax.data.batches import in_blocks
from ppds_jax.privacy import accounting
from ppds_jax.privacy.release import Mechanism, release
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

    Raises:
      InputError: a sensitivity that is not positive, a multiplier that is negative, or
        either of them not finite.

    **Privacy:** `accounting.gaussian(noise_multiplier, neighbours)`, for the
    neighbours for which the sensitivity holds.

    **References:** Dwork and Roth, The Algorithmic Foundations of Differential Privacy,
    2014, appendix A.
    """
    deviation = sensitivity * noise_multiplier
    cost = accounting.gaussian(noise_multiplier, accounting.ZERO_OUT)
    mechanism = Mechanism(cost.event, sensitivity, deviation=deviation)
    noise = jax.random.normal(key, statistic.shape, statistic.dtype)
    noisy = statistic + jnp.asarray(deviation, noise.dtype) * noise
    return release(statistic, noisy, mechanism)


def noisy_sum(
    key: Key,
    rows: Float[Array, "n d"],
    label: Int32[Array, " n"],
    member: Bool[Array, " n"],
    *,
    num_classes: int,
    bound: float,
    noise_multiplier: float,
) -> Float[Array, "classes d"]:
    """The noisy sum of the members' rows in each class, each row clipped to `bound`.

    Divide it by a public constant (the declared number of images) to get a mean.

    **Privacy:** one Gaussian release under zero-out or add-or-remove-one: a record
    moves one class's sum by `bound` at most.
    """
    norm = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
    rows = rows * jnp.minimum(1, bound / jnp.maximum(norm, 1e-12))
    rows = jnp.where(member[:, None], rows, 0.0)
    total = jax.ops.segment_sum(rows, label, num_classes)
    return gaussian_release(
        key, total, sensitivity=bound, noise_multiplier=noise_multiplier
    )


def subsampled_sums(
    key: Key,
    rows: Float[Array, "n d"],
    label: Int32[Array, " n"],
    member: Bool[Array, " n"],
    *,
    count: int,
    sampling_rate: float,
    num_classes: int,
    bound: float,
    noise_multiplier: float,
) -> Float[Array, "count classes d"]:
    """`count` noisy sums of the rows in each class, each over its own Poisson sample.

    Every member is in each sample with probability `sampling_rate`, independently; rows
    are clipped to `bound`. Divide by public constants to get means.

    **Privacy:** `count` Poisson-sampled Gaussian releases of sensitivity `bound`, under
    add-or-remove-one: `accounting.poisson_gaussian` with these arguments and a capacity
    of all members.
    """
    cost = accounting.poisson_gaussian(
        noise_multiplier=noise_multiplier,
        sampling_rate=sampling_rate,
        num_steps=1,
        num_members=member.size,
        capacity=member.size,  # no sample is cut down
    )
    deviation = bound * noise_multiplier
    mechanism = Mechanism(cost.event, bound, deviation=deviation)
    norm = jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))
    rows = rows * jnp.minimum(1, bound / jnp.maximum(norm, 1e-12))
    rows = jnp.where(member[:, None], rows, 0.0)
    classes = jax.nn.one_hot(label, num_classes)

    def once(_, key):
        coin_key, noise_key = jax.random.split(key)
        coin = jax.random.bernoulli(coin_key, sampling_rate, member.shape)
        chosen = jnp.where((coin & member)[:, None], classes, 0.0)
        total = jnp.matmul(chosen.T, rows, precision="highest")
        noise = jax.random.normal(noise_key, total.shape)
        return None, release(total, total + deviation * noise, mechanism)

    return jax.lax.scan(once, None, jax.random.split(key, count))[1]


def noisy_histogram(
    key: Key,
    bin: Int32[Array, " n"],
    member: Bool[Array, " n"],
    *,
    num_bins: int,
    noise_multiplier: float,
    allowed: Bool[Array, ""] | bool = True,
) -> Float[Array, " bins"]:
    """How many members fall into each bin, with Gaussian noise; may be negative.

    Args:
      bin: of each record, in [0, num_bins); others count nowhere.
      allowed: where False (a step beyond those accounted for), all is NaN.

    **Privacy:** one Gaussian release of sensitivity 1 under zero-out or
    add-or-remove-one: a record is in one bin.
    """
    count = jnp.zeros(num_bins).at[bin].add(member.astype(jnp.float32), mode="drop")
    count = jnp.where(allowed, count, jnp.nan)
    return gaussian_release(
        key, count, sensitivity=1.0, noise_multiplier=noise_multiplier
    )


def nearest_votes(
    key: Key,
    feature: Float[Array, "n d"],
    member: Bool[Array, " n"],
    candidate: Float[Array, "k d"],
    *,
    noise_multiplier: float,
    eligible: Bool[Array, "n k"] | None = None,
    groups: tuple[Int32[Array, " n"], Int32[Array, " k"]] | None = None,
    allowed: Bool[Array, ""] | bool = True,
) -> Float[Array, " k"]:
    """Each member's vote for its nearest candidate, counted with Gaussian noise.

    Distances are computed for some hundred images at a time.

    Args:
      feature: of the private images.
      candidate: features of public candidates, drawn without this round's data.
      eligible: which candidates each image may vote for; an image without any does
        not vote.
      groups: labels of images and candidates; votes go to candidates of the same.
      allowed: as for `noisy_histogram`.

    **Privacy:** one Gaussian release of sensitivity 1 under zero-out or
    add-or-remove-one: a record votes once.

    **References:** Lin et al., Differentially Private Synthetic Data via Foundation
    Model APIs 1: Images, 2024, arXiv 2305.15560, algorithm 2.
    """
    size = jnp.sum(candidate**2, axis=1)[None]

    def choose(feature, *may):
        product = jnp.matmul(feature, candidate.T, precision="highest")
        distance = size - 2 * product  # less a constant
        some = jnp.ones(feature.shape[0], bool)
        if may:
            distance = jnp.where(may[0], distance, jnp.inf)
            some = may[0].any(axis=1)
        return jnp.argmin(distance, axis=1).astype(jnp.int32), some

    if groups is not None:
        label, group = groups
        own = lambda feature, label: choose(feature, label[:, None] == group[None])
        bin, some = in_blocks(own, feature, label, size=min(500, label.size))
    elif eligible is not None:
        bin, some = in_blocks(choose, feature, eligible)
    else:
        bin, some = in_blocks(choose, feature)
    return noisy_histogram(
        key,
        bin,
        member & some,
        num_bins=candidate.shape[0],
        noise_multiplier=noise_multiplier,
        allowed=allowed,
    )


def noisy_max(
    key: Key,
    score: Float[Array, " k"],
    *,
    sensitivity: float,
    epsilon: float,
    monotone: bool = False,
) -> Int32[Array, ""]:
    """The index of the largest of k private scores, chosen with Gumbel noise.

    Args:
      score: one for each choice.
      sensitivity: bound on the change of any one score between neighbours.
      epsilon: the cost; infinite chooses the largest.
      monotone: one record moves all scores in the same direction (counts): half the
        noise.

    **Privacy:** the exponential mechanism: `accounting.pure(epsilon)`, under zero-out.
    Only the index is released.

    **References:** McSherry and Talwar, Mechanism Design via Differential Privacy,
    2007; Durfee and Rogers, Practical Differentially Private Top-k Selection with
    Pay-what-you-get Composition, 2019, arXiv 1905.04273.
    """
    cost = accounting.pure(epsilon)
    mechanism = Mechanism(cost.event, sensitivity, norm="max")
    scale = 0.0 if math.isinf(epsilon) else sensitivity / epsilon
    scale = scale if monotone else 2 * scale
    noise = jax.random.gumbel(key, score.shape)
    chosen = jnp.argmax(score + jnp.asarray(scale, noise.dtype) * noise)
    return release(score, chosen.astype(jnp.int32), mechanism)
