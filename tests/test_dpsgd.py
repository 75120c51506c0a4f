"""DP-SGD: batches, clipping, noise and the limits in which it is plain descent."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax.classifiers import DPCNN
from ppds_jax.data.batches import decode
from ppds_jax.devices import data_mesh
from ppds_jax.fit import fit_chunks
from ppds_jax.jaxprs import bodies
from ppds_jax.mapping import map_shadows
from ppds_jax.privacy import engines
from ppds_jax.privacy.dpsgd import DPSGD, calibrated, dp_gradient, poisson_batch
from ppds_jax.types import Budget, Dataset, DataSpec, InputError

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


def bad_loss(key, params, image, label):
    """Not finite for an image with a white pixel."""
    return loss(key, params, image, label) / jnp.where(image.max() == 1, 0.0, 1.0)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_leaves_nothing_to_publish(noise):
    config = settings(clip_norm=0.5, noise_multiplier=noise)
    member_is_bad = DATA._replace(image=DATA.image.at[0].set(255))
    other_is_bad = DATA._replace(image=jnp.minimum(DATA.image, 254).at[1].set(255))
    out = gradient(config, member_is_bad, loss=bad_loss)
    assert all(bool(jnp.isnan(x).all()) for x in out.values())
    out = gradient(config, other_is_bad, loss=bad_loss)
    assert all(bool(jnp.isfinite(x).all()) for x in out.values())


def test_a_step_beyond_the_last_is_nan_and_raises():
    config = settings(noise_multiplier=1.0, num_steps=10)
    assert np.isfinite(gradient(config, step=9)["w"]).all()
    assert np.isnan(gradient(config, step=10)["w"]).all()

    spec = DataSpec((4, 4, 1), 2, 40)
    method = small_cnn().make(spec, Budget(1.0, 1e-5))
    longer = method._replace(num_steps=method.num_steps + 1)
    with pytest.raises(FloatingPointError, match="private step failed"):
        fit_chunks(jax.random.key(0), longer, DATA, chunk=2)


def small_cnn(**options):
    return DPCNN(width=2, hidden=4, epochs=1, batch_size=20, **options)


@pytest.mark.parametrize("strategy", [(), (0.0, 1.0), (np.nan,), (0.5,), (0.6, 0.8)])
def test_a_strategy_without_an_inverse_raises(strategy):
    with pytest.raises(InputError, match="strategy="):
        engines.noise(1.0, strategy, 1)


def direct(config, params=PARAMS):
    """The same mean of clipped gradients by jax_privacy's own engine."""
    from jax_privacy.clipping import clipped_grad

    image, label = decode(DATA.image[DATA.member]), DATA.label[DATA.member]
    one = lambda p, x, y: loss(None, p, x, y)
    total = clipped_grad(one, batch_argnums=(1, 2), l2_clip_norm=config.clip_norm)
    with jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(
            lambda x: x / config.batch_size, total(params, image, label)
        )


def test_the_clipped_sum_is_that_of_the_reference_engine():
    config = settings(clip_norm=0.3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        gradient(config),
        direct(config),
    )


def test_per_layer_clipping_bounds_each_layer_and_the_whole():
    layers = {"one": PARAMS, "two": {"b": jnp.ones(2)}}

    def loss_of_layers(key, params, image, label):
        shifted = params["one"] | {"b": params["one"]["b"] + 50 * params["two"]["b"]}
        return loss(key, shifted, image, label)

    only = Dataset(DATA.image, DATA.label, jnp.arange(80) == 0)
    config = settings(clip_norm=0.2, clipping="per-layer")
    out = gradient(config, only, loss=loss_of_layers, params=layers)
    for layer in out.values():
        norm = float(jnp.sqrt(sum(jnp.sum(x**2) for x in layer.values())))
        assert norm * 40 == pytest.approx(0.2 / 2**0.5, rel=1e-4)
    free = gradient(settings(clipping="per-layer"), loss=loss_of_layers, params=layers)
    whole = gradient(settings(), loss=loss_of_layers, params=layers)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), free, whole)


def noisy_loss(key, params, image, label):
    return loss(key, params, image + jax.random.normal(key, image.shape), label)


def test_draws_are_averaged_before_clipping():
    """Less variance from draw to draw, and no image gets more influence."""

    def spread(multiplicity):
        config = settings(multiplicity=multiplicity)
        draws = [gradient(config, key=k, loss=noisy_loss)["w"] for k in range(20)]
        return np.stack(draws).std(0).mean()

    assert spread(16) == pytest.approx(spread(1) / 4, rel=0.4)
    only = Dataset(DATA.image, DATA.label, jnp.arange(80) == 0)
    out = gradient(settings(multiplicity=16, clip_norm=0.1), only, loss=noisy_loss)
    assert float(jnp.sqrt(sum(jnp.sum(x**2) for x in out.values()))) * 40 <= 0.1001


@pytest.mark.parametrize("engine", ["microbatch", "ghost"])
def test_norms_sums_and_noise_stay_in_float32_at_highest_precision(engine):
    """Whatever precision the rest computes in."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)

    def half_loss(key, params, image, label):
        return loss(key, params, image.astype(jnp.bfloat16), label).astype(jnp.float32)

    config = settings(clip_norm=0.3, noise_multiplier=1.0)
    private = dp_gradient(half_loss, config, engine)
    with jax.default_matmul_precision("bfloat16"):
        step = jax.make_jaxpr(private.apply)(
            jax.random.key(0), private.init(half), half, DATA
        )
    exact = jnp.dtype("float32")
    dots = [e for e in equations(step.jaxpr) if e.primitive.name == "dot_general"]
    sums = [e for e in dots if {v.aval.dtype for v in e.invars} == {exact}]
    assert sums
    assert all("HIGHEST" in str(e.params["precision"]) for e in sums)
    (mark,) = [e for e in equations(step.jaxpr) if e.primitive.name == "release"]
    assert {v.aval.dtype for v in mark.invars} == {exact}
    squares = [e for e in equations(step.jaxpr) if e.primitive.name == "integer_pow"]
    squares += [e for e in equations(step.jaxpr) if e.primitive.name == "square"]
    assert all(e.invars[0].aval.dtype == exact for e in squares)

    only = Dataset(DATA.image, DATA.label, jnp.arange(80) == 0)
    config = settings(clip_norm=0.3)
    out = dp_gradient(half_loss, config, engine)
    out, _ = out.apply(jax.random.key(0), out.init(half), half, only)
    norm = jnp.sqrt(sum(jnp.sum(x**2) for x in out.values()))
    assert norm * config.batch_size == pytest.approx(0.3, rel=1e-6)


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for body in bodies(eqn):
            yield from equations(body.jaxpr)


RUN = settings(noise_multiplier=1.0, clip_norm=0.5, batch_size=16, num_steps=4)


def descent(key, member):
    """Four private steps of plain descent."""
    private, data = dp_gradient(loss, RUN), DATA._replace(member=member)
    params, state = PARAMS, private.init(PARAMS)
    for t in range(4):
        step_key = jax.random.fold_in(key, t)
        gradient, state = private.apply(step_key, state, params, data)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
    return params


def test_a_vmap_over_8_shadows_is_8_runs():
    keys = jax.random.split(jax.random.key(3), 8)
    member = jnp.stack([(jnp.arange(80) + i) % 2 == 0 for i in range(8)])
    together = jax.jit(jax.vmap(descent))(keys, member)
    single = jax.jit(descent)
    for i in range(8):
        alone = single(keys[i], member[i])
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, atol=1e-5),
            together,
            alone,
        )


def test_a_batch_over_4_devices_is_that_of_one_with_noise_added_once():
    key = jax.random.key(3)
    alone = jax.jit(lambda k, m: descent(k, m))(key, DATA.member)
    with data_mesh(4):
        spread = jax.jit(lambda k, m: descent(k, m))
        text = spread.lower(key, DATA.member).compile().as_text()
        together = spread(key, DATA.member)
    assert "all-reduce" in text, "nothing was spread over devices"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, together
    )


def test_inside_shard_map_each_gradient_is_clipped_on_its_own():
    """With replicated parameters, JAX may sum gradients over devices before they are
    clipped: silently not private. Shadows are mapped in a way that does not."""
    member = jnp.broadcast_to(DATA.member, (4, 80))
    keys = jnp.stack([jax.random.key(3)] * 4)
    one = lambda shared, row: descent(*row)
    mapped = jax.device_get(map_shadows(one, "shard-map")(0, (keys, member)))
    alone = jax.jit(descent)(keys[0], DATA.member)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[2], b, atol=1e-5), mapped, alone
    )


def test_correlated_noise_costs_what_fewer_steps_do_and_is_erased_at_the_end():
    config = settings(noise_multiplier=1.0, batch_size=10, bands=4, num_steps=10)
    assert config.sampling_rate == 1.0
    assert config.guarantee.event.count == 3
    private = dp_gradient(loss, config)
    step = jax.jit(private.apply)
    state = private.init(PARAMS)
    secrets = []
    for t in range(10):
        key = jax.random.fold_in(jax.random.key(0), t)
        _, state = step(key, state, PARAMS, DATA)
        secrets.append(
            max(float(jnp.abs(x).max()) for x in jax.tree.leaves(state.noise))
        )
    assert all(x > 0 for x in secrets[:-1])
    assert secrets[-1] == 0


def test_correlated_noise_cancels_in_sums_over_steps():
    """What it is for: less noise in the sum of all steps, at the same marginal cost."""

    def summed(bands):
        strategy = engines.banded_strategy(bands)
        stream = engines.noise(1.0, strategy, 64)

        def one(key):
            state = stream.init(jnp.zeros(400))

            def step(state, key):
                noisy, state = stream.add(key, state, jnp.zeros(400))
                return state, noisy

            return jax.lax.scan(step, state, jax.random.split(key, 64))[1].sum(0)

        return float(jax.jit(one)(jax.random.key(0)).std())

    assert summed(1) == pytest.approx(8, rel=0.2)
    assert summed(8) < 0.6 * summed(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bands": 3}, "bands=3"),
        ({"clipping": "layer"}, "clipping='layer'"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"multiplicity": 0}, "multiplicity=0"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(options, message):
    fields = {"clip_norm": 1.0, "batch_size": 20, "num_steps": 10, **options}
    with pytest.raises(InputError, match=message):
        calibrated(SPEC, Budget(1.0, 1e-5), **fields)


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
