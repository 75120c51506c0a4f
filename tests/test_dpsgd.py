"""DP-SGD: batches, clipping, noise and the limits in which it is plain descent."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.data.batches import decode
from ppds_jax.privacy.dpsgd import DPSGD, calibrated, dp_gradient, poisson_batch
from ppds_jax.types import Budget, Dataset, DataSpec

SPEC = DataSpec((4, 4, 1), 2, 40)
KEYS = jax.random.split(jax.random.key(0), 3)
DATA = Dataset(
    jax.random.randint(KEYS[0], (80, 4, 4, 1), 0, 256, jnp.uint8),
    jax.random.randint(KEYS[1], (80,), 0, 2, jnp.int32),
    jnp.arange(80) % 2 == 0,
)
PARAMS = {"w": jax.random.normal(KEYS[2], (16, 2)), "b": jnp.zeros(2)}


def loss(key, params, image, label):
    logits = image.reshape(1, -1) @ params["w"] + params["b"][None]
    return -jax.nn.log_softmax(logits)[0, label[0]]


def settings(**changes):
    fields = {"noise_multiplier": 0.0, "clip_norm": 1e6, "num_members": 40}
    fields["batch_size"] = 40
    return DPSGD(**{**fields, "num_steps": 10, "microbatch": 8, **changes})


@cache
def compiled(config, loss=loss):
    private = dp_gradient(loss, config)

    def gradient(key, params, data, step):
        state = private.init(params)._replace(step=step)
        return private.apply(key, state, params, data)[0]

    return jax.jit(gradient)


def gradient(config, data=DATA, key=0, loss=loss, step=0, params=PARAMS):
    key, step = jax.random.key(key), jnp.array(step, jnp.int32)
    return compiled(config, loss)(key, params, data, step)


def test_without_noise_clipping_and_sampling_it_is_the_mean_gradient():
    image, label = decode(DATA.image[DATA.member]), DATA.label[DATA.member]
    mean = lambda p: jnp.mean(
        jax.vmap(lambda x, y: loss(None, p, x[None], y[None]))(image, label)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        gradient(settings()),
        jax.grad(mean)(PARAMS),
    )


@pytest.mark.parametrize("change", ["remove", "replace"])
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(change):
    """Removing a record moves the sum by C at most, replacing it by 2 C."""
    config = settings(clip_norm=0.3)
    norm = lambda tree: float(jnp.sqrt(sum(jnp.sum(x**2) for x in tree.values())))
    before = gradient(config)
    moved = []
    for row in range(0, 80, 8):
        if change == "remove":
            data = DATA._replace(member=DATA.member.at[row].set(False))
        else:
            data = DATA._replace(
                image=DATA.image.at[row].set(255 - DATA.image[row]),
                label=DATA.label.at[row].set(1 - DATA.label[row]),
            )
        moved.append(
            norm(
                jax.tree.map(lambda a, b: 40 * (a - b), before, gradient(config, data))
            )
        )
    bound = 0.3 * (1 if change == "remove" else 2)
    assert max(moved) <= bound * 1.001
    assert max(moved) >= 0.5 * bound, "nothing was clipped: the test sees nothing"


def test_the_noise_has_the_stated_scale_and_is_new_at_each_step():
    config = settings(noise_multiplier=2.0, clip_norm=0.5)
    exact = gradient(settings(clip_norm=0.5))
    draws = [gradient(config, key=key) for key in range(200)]
    noise = np.concatenate(
        [np.ravel(draw[k] - exact[k]) for draw in draws for k in sorted(exact)]
    )
    # 6,800 draws: the deviation is within 5 % with failure probability below 1e-7
    assert noise.std() == pytest.approx(2.0 * 0.5 / 40, rel=0.05)
    assert len(np.unique(noise)) > 6700


def test_the_microbatch_does_not_change_the_result():
    one = gradient(settings(microbatch=4, batch_size=10, clip_norm=0.5))
    other = gradient(settings(microbatch=20, batch_size=10, clip_norm=0.5))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


def test_a_nan_in_one_image_cannot_pass_the_clipping():
    """A gradient that is not finite counts as zero; its image gains no influence."""
    bad = lambda key, p, x, y: loss(key, p, x, y) / jnp.where(x.max() == 1, 0.0, 1.0)
    data = DATA._replace(image=DATA.image.at[0].set(255))
    out = jax.jit(dp_gradient(bad, settings(clip_norm=0.5)))(
        jax.random.key(0), PARAMS, data
    )
    assert all(bool(jnp.isfinite(x).all()) for x in out.values())


def test_poisson_batches_hold_members_only_each_at_the_rate():
    member = jnp.arange(200) % 2 == 0
    draw = jax.jit(jax.vmap(lambda key: poisson_batch(key, member, 0.2, 64)))
    batches = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    drawn = batches[batches >= 0]
    assert (drawn % 2 == 0).all()
    count = np.bincount(drawn, minlength=200)[::2]
    # Binomial(2000, 0.2): each within 6 standard deviations
    assert np.abs(count - 400).max() < 6 * np.sqrt(2000 * 0.2 * 0.8)
    sizes = (batches >= 0).sum(1)
    assert sizes.var() == pytest.approx(100 * 0.2 * 0.8, rel=0.2)
    assert all(len(set(b[b >= 0])) == (b >= 0).sum() for b in batches[:50])


def test_a_batch_above_capacity_is_cut_at_random():
    member = jnp.ones(100, bool)
    draw = jax.jit(jax.vmap(lambda key: poisson_batch(key, member, 1.0, 10)))
    batches = np.asarray(draw(jax.random.split(jax.random.key(0), 1000)))
    assert (batches >= 0).all()
    assert np.abs(np.bincount(batches.ravel()) - 100).max() < 60


def test_step_and_accountant_read_the_same_fields():
    config = calibrated(
        SPEC, Budget(3.0, 1e-5), clip_norm=1.0, batch_size=8, num_steps=50
    )
    event = config.guarantee.event
    assert event.count == config.num_steps == 50
    assert event.event.sampling_probability == config.sampling_rate == 0.2
    assert event.event.noise_multiplier == config.noise_multiplier > 0
    assert event.event.truncated_batch_size == config.capacity
