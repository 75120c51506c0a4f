"""Denoisers whose answer is known: the sampler, the loss and the signals of EDM."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.data.batches import decode
from ppds_jax.generators import DPDM, GAN, Diffusion, FlowMatching
from ppds_jax.generators.denoising import denoising
from ppds_jax.metrics.roc import auc
from ppds_jax.nets import denoiser_signals, edm
from ppds_jax.nets.unet import fold, unet, unfold
from ppds_jax.privacy import ghost
from ppds_jax.types import Budget, InputError
from tests.conftest import DIGITS
from tests.methods import small

S = 0.5
# of Gaussian images of deviation S the best denoiser is linear: the network says 0
LINEAR = edm.precondition(lambda x, level: jnp.zeros_like(x), S)
SHAPE = (4, 8, 8, 1)


def drawn(steps, churn=0.0):
    key = jax.random.key(0)
    return edm.sample(key, LINEAR, SHAPE, edm.schedule(steps), churn)


def test_the_sampler_solves_the_equation_to_second_order():
    """Here it has a closed form: x falls in proportion to sqrt(S^2 + sigma^2)."""
    first = 80.0 * jax.random.normal(jax.random.split(jax.random.key(0))[0], SHAPE)
    exact = first * S / (S**2 + 80.0**2) ** 0.5
    coarse, fine = (float(jnp.abs(drawn(n) - exact).max()) for n in (20, 40))
    assert fine < 0.02
    assert 3 < coarse / fine < 6


@pytest.mark.parametrize("churn", [0.0, 10.0])
def test_what_is_drawn_has_the_deviation_of_the_data(churn):
    # over 256 pixels: 4.4 % is one standard error
    assert abs(float(drawn(40, churn).std()) / S - 1) < 0.25


def test_churn_adds_noise():
    assert float(jnp.abs(drawn(10, 10.0) - drawn(10)).max()) > 0.1


def test_the_loss_of_the_best_linear_denoiser_is_one_at_every_level():
    image_key, noise_key = jax.random.split(jax.random.key(1))
    image = S * jax.random.normal(image_key, (200, 8, 8, 1))
    noise = jax.random.normal(noise_key, image.shape)
    for sigma in (0.01, 0.5, 20.0):
        level = jnp.full(200, sigma)
        mean = float(edm.error(LINEAR, image, noise, level, S).mean())
        assert abs(mean - 1) < 0.05  # 12,800 pixels: four standard errors


def test_levels_fall_from_the_largest_to_the_smallest():
    levels = np.asarray(edm.schedule(18))
    assert (np.diff(levels) < 0).all()
    np.testing.assert_allclose(levels[[0, -1]], [80, 0.002], rtol=1e-3)


def test_guidance_without_weight_is_the_conditional_denoiser():
    x, sigma = jnp.ones(SHAPE), jnp.ones(4)
    other = lambda x, sigma: x + 1
    np.testing.assert_array_equal(
        edm.guided(LINEAR, other, 0.0)(x, sigma), LINEAR(x, sigma)
    )
    assert float(jnp.abs(edm.guided(LINEAR, other, 1.0)(x, sigma)).max()) > 1


def test_folding_is_undone():
    x = jax.random.normal(jax.random.key(0), (2, 7, 5, 3))
    assert fold(x, 2).shape == (2, 4, 3, 12)
    np.testing.assert_array_equal(unfold(fold(x, 2), 2)[:, :7, :5], x)


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_the_network_takes_images_of_any_size(shape, patch):
    net = unet(width=4, multipliers=(1, 2, 2), patch=patch)
    args = jnp.zeros((2, *shape)), jnp.zeros(2), jnp.zeros((2, 10))
    params = jax.eval_shape(net.init, jax.random.key(0), *args)
    assert jax.eval_shape(net.apply, params, *args).shape == (2, *shape)


def test_no_parameter_of_the_network_is_shared_or_a_norms_scale():
    """Then DP-SGD needs per-example gradients for biases and few convolutions only."""
    config = DPDM(width=8, multiplicity=1)
    model = denoising(config, DIGITS, lambda state: state)
    params = model.init(jax.random.key(0))
    one = lambda params, image, label: model.loss(
        jax.random.key(1), params, image[None], label[None]
    )[0]
    why = ghost.explain(one, params, (jnp.zeros((8, 8, 1)), jnp.array(3)))
    made = {text for text in why.values() if not text.endswith("at many places")}
    assert made == {"", "add"}


def memory(data):
    """The best denoiser for the members: the posterior mean over them."""
    rows = 2 * decode(data.image[data.member]).reshape(-1, 64) - 1

    def denoise(x, sigma):
        flat = x.reshape(-1, 64)
        far = jnp.square(flat[:, None] - rows[None]).sum(-1)
        weight = jax.nn.softmax(-far / (2 * sigma[:, None] ** 2))
        return (weight @ rows).reshape(x.shape)

    return denoise


# not secmi: it measures how a path bends, and towards one image it is straight
@pytest.mark.parametrize("name", ["denoising_loss", "pia", "sima"])
def test_signals_know_the_members_of_a_memory_and_not_of_a_linear_denoiser(
    name, digits
):
    of = jax.jit(denoiser_signals.SIGNALS[name], static_argnums=1)
    image = 2 * decode(digits.image) - 1
    member = np.asarray(digits.member)

    def separation(denoise):
        phi = np.asarray(of(jax.random.key(0), denoise, image))
        assert phi.shape[0] == 120
        assert np.isfinite(phi).all()
        return auc(phi.mean(1), member)

    assert separation(memory(digits)) > 0.95
    # 60 members and 60 others: one standard error is 0.053
    assert abs(separation(LINEAR) - 0.5) < 0.25


def test_secmi_of_a_linear_denoiser_is_as_computed_by_hand():
    image = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    phi = denoiser_signals.secmi(jax.random.key(0), LINEAR, image)
    slope = lambda sigma: sigma / (S**2 + sigma**2)  # of x at a level, over x
    x, levels = 1.0, (denoiser_signals.CLEAN, *denoiser_signals.LEVELS)
    square = np.square(np.asarray(image, np.float64)).mean((1, 2, 3))
    for i, (before, here) in enumerate(itertools.pairwise(levels)):
        x *= 1 + (here - before) * slope(before)
        up = x * (1 + here / 4 * slope(here))
        back = up * (1 - here / 4 * slope(1.25 * here))
        np.testing.assert_allclose(
            phi[:, i], -np.log((back - x) ** 2 * square), rtol=1e-2, atol=0.05
        )


@pytest.mark.parametrize("cls", [Diffusion, FlowMatching, GAN])
def test_signals_of_methods_are_finite_and_repeat(cls, digits):
    method = small(cls).make(DIGITS, Budget(float("inf"), 1e-5))
    state = method.init(jax.random.key(0), digits, ())
    image, label = decode(digits.image[:3]), digits.label[:3]
    assert method.signals
    for signal in method.signals.values():
        one, two = (
            signal(jax.random.key(0), state, image, label, ()) for _ in range(2)
        )
        assert one.shape[0] == 3
        assert one.ndim == 2
        np.testing.assert_array_equal(one, two)
        assert bool(jnp.isfinite(one).all())


@pytest.mark.parametrize("cls", [Diffusion, FlowMatching, DPDM])
def test_shares_of_one_are_refused(cls):
    with pytest.raises(InputError, match="label_dropout=1"):
        cls(label_dropout=1.0).make(DIGITS, Budget(float("inf"), 1e-5))
