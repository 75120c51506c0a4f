"""The faults. Each is one part of a sound generator, replaced; the comment says where
it was seen, or what it stands for."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from ppds_jax.data.batches import decode
from ppds_jax.privacy import accounting
from ppds_jax.privacy.mechanisms import gaussian_release
from ppds_jax.types import Budget, Generator
from tests.planted_faults.sound import (
    BOUND,
    SPEC,
    Batches,
    Means,
    clipped,
    fresh,
    gaussian,
    images,
    one_hot,
)


def detached_noise(data, budget):
    """Noise is added to a loss, whose gradient does not know it (DP-Kernel)."""
    sigma = accounting.calibrate(gaussian, budget)

    def init(key, data, public, start=None):
        return {"mean": jnp.zeros((SPEC.num_classes, 16))}

    def step(key, state, data, public):
        exact = one_hot(data).T @ unclipped(data) / SPEC.num_members

        def loss(mean):
            noise = sigma * BOUND * jax.random.normal(key, exact.shape)
            return jnp.sum((mean - exact) ** 2 + noise)

        mean = state["mean"] - 0.3 * jax.grad(loss)(state["mean"])
        return {"mean": mean}, {}

    return Generator(init, step, images, 5, gaussian(sigma))


def values_only(data, budget):
    """A noisy kernel mean whose gradient is the exact one (DP-Kernel).

    The noise is there in the function's values at generated points, as it should be,
    and is paid for; but it is drawn apart from the points, so that the gradient, and
    with it every update, does not know it.
    """
    run = lambda sigma: accounting.compose(*[gaussian(sigma)] * 5)
    sigma = accounting.calibrate(run, budget)
    w = jax.random.normal(jax.random.key(2), (16, 10)) / 2

    def z(x):
        return jnp.concatenate([jnp.cos(x @ w), jnp.sin(x @ w)], axis=1) / 10**0.5

    def init(key, data, public, start=None):
        del data
        points = jax.random.uniform(key, (SPEC.num_classes, 16))
        return {"mean": points, "step": jnp.array(0, jnp.int32)}

    def step(key, state, data, public):
        member = data.member[:, None].astype(jnp.float32)
        exact = one_hot(data).T @ (member * z(decode(data.image).reshape(80, -1)))
        due = jnp.where(state["step"] < 5, exact, jnp.nan)
        released = gaussian_release(key, due, sensitivity=1.0, noise_multiplier=sigma)

        def loss(points):
            mean = z(points)
            noise = jax.lax.stop_gradient(mean) * (released - exact)
            return jnp.sum(mean**2) - 0.1 * jnp.sum(mean * exact + noise)

        mean = state["mean"] - 0.3 * jax.grad(loss)(state["mean"])
        return {"mean": mean, "step": state["step"] + 1}, {}

    return Generator(init, step, images, 5, run(sigma))


def noise_as_target(data, budget):
    """A forward diffusion's noise, counted as privacy (dp-promise).

    Each noised image is private indeed; but the model is taught the noise itself, so
    that the gradient takes it off again.
    """
    run = lambda sigma: accounting.compose(*[gaussian(sigma)] * 5)
    sigma = accounting.calibrate(run, budget)

    def init(key, data, public, start=None):
        mean = jnp.zeros((SPEC.num_classes, 16))
        return {"mean": mean, "step": jnp.array(0, jnp.int32)}

    def step(key, state, data, public):
        clean = jnp.where(state["step"] < 5, clipped(data), jnp.nan)
        noised = gaussian_release(key, clean, sensitivity=BOUND, noise_multiplier=sigma)
        noise = noised - clean

        def loss(mean):
            error = noise - (noised - mean[data.label])
            return jnp.sum(jnp.where(data.member[:, None], error, 0) ** 2)

        mean = state["mean"] - 0.02 * jax.grad(loss)(state["mean"])
        return {"mean": mean, "step": state["step"] + 1}, {}

    return Generator(init, step, images, 5, run(sigma))


def unclipped(data):
    return jnp.where(data.member[:, None], decode(data.image).reshape(80, -1), 0.0)


def without_replacement(key, step, member, settings):
    """Batches of one size."""
    rank = jnp.argsort(jnp.argsort(jnp.where(member, jax.random.uniform(key, 80), 2.0)))
    return rank < settings.batch_size


def shuffled(key, step, member, settings):
    """An epoch goes through all members once, in a random order."""
    epoch = step * settings.batch_size // settings.num_members
    order = jax.random.uniform(jax.random.fold_in(jax.random.key(3), epoch), (80,))
    rank = jnp.argsort(jnp.argsort(jnp.where(member, order, 2.0)))
    start = step * settings.batch_size % settings.num_members
    return (rank >= start) & (rank < start + settings.batch_size)


def one_draw(key, step, total, settings):
    return fresh(jax.random.key(5), step, total, settings)


def for_the_mean(key, step, total, settings):
    return fresh(key, step, total, settings) / settings.batch_size


def by_the_data(key, step, total, settings):
    """Noise in proportion to what is there, not to what could be."""
    return fresh(key, step, total, settings) * jnp.linalg.norm(total) / BOUND


def skipped(key, step, total, settings):
    noise = fresh(key, step, total, settings)
    return jnp.where(jnp.isfinite(noise), noise, 0.0)


def sampled_then_multiplied(settings):
    """Amplification for one image in N, for each image of the batch (GS-WGAN)."""
    return accounting.poisson_gaussian(
        noise_multiplier=settings.noise_multiplier * settings.batch_size,
        sampling_rate=1 / settings.num_members,
        num_steps=settings.num_steps * settings.batch_size,
        num_members=settings.num_members,
        capacity=settings.num_members,
    )


def away_from(data):
    """A sampler that drops what comes near to a private image: it holds them all."""

    def sample(key, state, label, public):
        image = images(key, state, label, public)
        private = decode(data.image)[data.member]
        distance = jnp.sum((image[:, None] - private[None]) ** 2, axis=(2, 3, 4))
        near = distance.min(1) < 0.5
        return jnp.where(near[:, None, None, None], 0.5, image)

    return sample


def over(budget):
    return accounting.calibrate(gaussian, Budget(1.5 * budget.epsilon, budget.delta))


def copies(key):
    return key, key


def real_start(mean, exact, data):
    """State that keeps real images, to begin from (a default of DP-KIP)."""
    start = jnp.where(data.member[:10, None, None, None], data.image[:10], 0)
    return {"mean": mean, "start": decode(start)}


def labeller(mean, exact, data):
    """A classifier of the private images beside the generator, unpaid for (DPGEN)."""
    return {"mean": mean, "centres": exact / one_hot(data).sum(0)[:, None]}


def by_labeller(data):
    """A sampler whose labels are that classifier's."""

    def sample(key, state, label, public):
        far = state["mean"][None] - state["centres"][:, None]
        found = jnp.argmin(jnp.sum(far**2, axis=2), axis=1)
        return images(key, state, found[label], public)

    return sample


def by_realised(total, data):
    return total / jnp.maximum(data.member.astype(jnp.float32).sum(), 1)


# the fault, and the check that has to catch it, whichever others do
FAULTS = {
    "noise detached from the gradient": (detached_noise, "flow"),
    "noise in a kernel mean's values alone": (values_only, "flow"),
    "a diffusion's noise counted, and learned": (noise_as_target, "flow"),
    "sensitivity two times too small": (Means(sensitivity=BOUND / 2), "sensitivity"),
    "no clipping": (Means(rows=unclipped), "sensitivity"),
    "noise drawn once and reused": (Batches(noise=one_draw), "noise"),
    "noise for the mean, on the sum": (Batches(noise=for_the_mean), "noise"),
    "noise scaled by the data": (Batches(noise=by_the_data), "noise"),
    "shuffled batches, Poisson accounting": (Batches(batch=shuffled), "sampling"),
    "batches of one size, Poisson accounting": (
        Batches(batch=without_replacement),
        "sampling",
    ),
    "twice the sampling rate": (
        Batches(real=lambda s: replace(s, batch_size=2 * s.batch_size)),
        "sampling",
    ),
    "one step too many": (Batches(steps=1), "ledger"),
    "amplification in the wrong order": (
        Batches(guarantee=sampled_then_multiplied),
        "ledger",
    ),
    "steps go on beyond the budget": (
        Batches(guard=lambda noisy, total, step, settings: noisy),
        "failure",
    ),
    "noise skipped where it fails": (Batches(noise=skipped), "failure"),
    "a filter that closes over private images": (Means(sample=away_from), "closure"),
    "real images as a start": (Means(state=real_start), "flow"),
    "labels by a model of private images": (
        Means(state=labeller, sample=by_labeller),
        "flow",
    ),
    "divided by the realised count": (Means(divide=by_realised), "flow"),
    "calibrated beyond the budget": (Means(sigma=over), "budget"),
    "one key for batch and noise": (Batches(keys=copies), "keys"),
    "no noise at all": (Means(sigma=lambda budget: 0.0), "collapse"),
}
