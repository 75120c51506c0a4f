"""Every engine gives the reference's sum of clipped gradients, on any network."""

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

from ppds_jax.classifiers import DPCNN, DPScatter
from ppds_jax.convolution import max_pool
from ppds_jax.generators import DPDM, DPGAN, DPVAE, DPFeta, DPKip
from ppds_jax.nets import from_haiku, from_linen
from ppds_jax.optimise import Trained
from ppds_jax.privacy import checks, engines, ghost
from ppds_jax.privacy.subject import Subject
from ppds_jax.types import Budget, InputError
from tests.conftest import BUDGET, DIGITS
from tests.methods import SMALL

FAST = ("microbatch", "ghost")
FREE = Budget(float("inf"), 1e-5)
METHODS = {
    "cnn": DPCNN(width=2, hidden=6, epochs=1, batch_size=24, clip_norm=0.3),
    "pooled tanh": DPCNN(
        width=2, hidden=6, epochs=1, batch_size=24, pool=True, activation="tanh"
    ),
    "layered": DPCNN(
        width=2, hidden=6, epochs=1, batch_size=24, clip_norm=0.3, clipping="per-layer"
    ),
    "scatter": DPScatter(epochs=1, batch_size=24),
}


def close(a, b, relative=1e-5):
    """Of each leaf, in the Euclidean norm."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.linalg.norm(x - y) <= relative * np.linalg.norm(y) + 1e-9


def one_step(config, engine, data):
    """The first step's gradient, without noise: what momentum starts with."""
    with engines.using(engine):
        method = config.make(DIGITS, FREE)
    key = jax.random.key(0)
    state = method.init(key, data, method.public)
    step = jax.jit(lambda key, state: method.step(key, state, data, method.public))
    after, _ = step(jax.random.key(1), state)
    return after.optimizer


@pytest.mark.parametrize("name", METHODS)
def test_all_engines_agree_on_every_private_network_of_the_registry(name, digits):
    reference = one_step(METHODS[name], "reference", digits)
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(reference))
    for engine in FAST:
        close(one_step(METHODS[name], engine, digits), reference)


@pytest.mark.parametrize(
    "cls",
    [
        DPVAE,
        DPKip,
        pytest.param(DPGAN, marks=pytest.mark.slow),
        pytest.param(DPDM, marks=pytest.mark.slow),
        pytest.param(DPFeta, marks=pytest.mark.slow),
    ],
)
def test_all_engines_agree_on_every_private_generator_of_the_registry(cls, digits):
    options = SMALL | {"critic_steps": 1, "epochs": 1}  # one private step in each
    config = cls(**{k: v for k, v in options.items() if k in cls.__dataclass_fields__})

    def first(engine):
        """Moments of what is trained by private gradients, after a step."""
        with engines.using(engine):
            method = config.make(DIGITS, FREE)
        state = jax.jit(method.init)(jax.random.key(0), digits, method.public)
        step = jax.jit(lambda k, state: method.step(k, state, digits, method.public)[0])
        after = step(jax.random.key(1), state)
        after = getattr(after, "discriminator", after)
        is_leaf = lambda x: isinstance(x, Trained)
        found = [x for x in jax.tree.leaves(after, is_leaf=is_leaf) if is_leaf(x)]
        return [x.optimizer for x in found]

    reference = first("reference")
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(reference))
    for engine in FAST:
        close(first(engine), reference)


@pytest.mark.parametrize("engine", ["reference", *FAST])
def test_no_neighbour_moves_a_sum_beyond_the_stated_sensitivity(engine, digits):
    def build(data, budget):
        with engines.using(engine):
            return METHODS["cnn"].make(DIGITS, budget)

    subject = Subject(build, DIGITS, BUDGET, digits)
    assert checks.sensitivity(subject) == ""
    assert checks.flow(subject) == ""


class Mixed(nn.Module):
    """Layers of many kinds: a norm's scale, a shared convolution, a transposed one."""

    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(2)(max_pool(nn.relu(nn.Conv(4, (3, 3))(x))))
        shared = nn.Conv(4, (3, 3))
        x = nn.ConvTranspose(2, (2, 2), strides=(2, 2))(shared(nn.tanh(shared(x))))
        return nn.Dense(10)(nn.tanh(nn.Dense(5)(x.reshape(x.shape[0], -1))))


@hk.transform
def attention(x):
    x = hk.Conv2D(4, 3, stride=2, data_format="NHWC")(x)
    x = hk.LayerNorm(-1, True, True)(x).reshape(x.shape[0], -1, 4)
    x = hk.MultiHeadAttention(2, 3, w_init_scale=1.0)(x, x, x)
    return hk.Linear(10)(x.reshape(x.shape[0], -1))


@hk.transform
def looped(x):
    """A weight in a loop and outside it, and a table of rows to look up."""
    normal = hk.initializers.RandomNormal(0.3)
    w = hk.get_parameter("w", (10, 10), init=normal)
    h = hk.Linear(10)(x.reshape(x.shape[0], -1))
    h, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), h, None, length=3)
    table = hk.get_parameter("table", (300, 10), init=normal)
    row = (x[:, 3, 3, 0] * 255).astype(jnp.int32)
    return h @ jnp.tanh(w) + jax.nn.relu(table)[row]


def dense(x):
    return hk.nets.MLP((8, 10))(x.reshape(x.shape[0], -1))


def wide(x):
    """Few places, many weights: norms from products of pairs of places."""
    x = hk.Linear(96)(x.reshape(x.shape[0], 4, -1))
    return hk.Linear(10)(jnp.tanh(hk.Linear(96, with_bias=False)(x)).mean(1))


NETS = {
    "mixed": from_linen(Mixed()),
    "attention": from_haiku(attention),
    "looped": from_haiku(looped),
    "dense": from_haiku(hk.transform(dense)),
    "wide": from_haiku(hk.transform(wide)),
}


def loss_of(net, noise=0.0):
    def loss(key, params, image, label):
        image = image + noise * jax.random.normal(key, image.shape)
        return -jax.nn.log_softmax(net.apply(params, image))[0, label[0]]

    return loss


def total(net, engine, data, layered=False, multiplicity=1, clip_norm=0.5):
    params = net.init(jax.random.key(2), jnp.zeros((1, 8, 8, 1)))
    summed = engines.clipped_sum(
        loss_of(net, 0.1 * (multiplicity > 1)),
        clip_norm=clip_norm,
        layered=layered,
        multiplicity=multiplicity,
        microbatch=8,
        engine=engine,
    )
    index = jnp.pad(jnp.arange(0, 40, 2, dtype=jnp.int32), (0, 20), constant_values=-1)
    flat = jax.jit(summed)(jax.random.key(3), params, data, index)
    return engines.unravel(params, flat)


@pytest.mark.parametrize("layered", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_all_engines_agree_on_layers_of_any_library(name, layered, digits):
    reference = total(NETS[name], "reference", digits, layered)
    for engine in FAST:
        close(total(NETS[name], engine, digits, layered), reference)


def test_all_engines_draw_the_same_noises_of_each_image(digits):
    reference = total(NETS["dense"], "reference", digits, multiplicity=3)
    for engine in FAST:
        close(total(NETS["dense"], engine, digits, multiplicity=3), reference)


def test_what_ghost_clipping_cannot_do_is_named(digits):
    def why(name):
        net = NETS[name]
        params = net.init(jax.random.key(2), jnp.zeros((1, 8, 8, 1)))
        one = lambda params, x, y: loss_of(net)(jax.random.key(0), params, x, y)
        return ghost.explain(one, params, (jnp.zeros((1, 8, 8, 1)), digits.label[:1]))

    assert why("dense")["['mlp/~/linear_0']['w']"] == ""
    assert why("wide")["['linear_1']['w']"] == ""
    mixed = why("mixed")
    assert mixed["['GroupNorm_0']['scale']"] == "mul"
    assert "shared parameter" in mixed["['Conv_1']['kernel']"]
    assert "many places" in mixed["['Conv_0']['kernel']"]
    assert "scan" in why("looped")["['~']['w']"]


def test_parameters_in_loops_are_left_to_the_other_engine(digits, monkeypatch):
    def refuse(*_):
        raise AssertionError("ghost clipping was chosen")

    monkeypatch.setitem(engines.SUMS, "ghost", refuse)
    with pytest.warns(RuntimeWarning, match=r"\['w'\]: inside a loop"):
        total(NETS["looped"], "auto", digits)
    with pytest.raises(AssertionError, match="ghost clipping was chosen"):
        total(NETS["dense"], "auto", digits)


@pytest.mark.parametrize("engine", ["reference", *FAST])
def test_replicated_parameters_are_not_summed_over_devices_before_clipping(
    engine, digits
):
    """JAX does so inside shard_map where it checks what varies: silently not private"""
    net = NETS["dense"]
    params = net.init(jax.random.key(2), jnp.zeros((1, 8, 8, 1)))
    summed = engines.clipped_sum(
        loss_of(net),
        clip_norm=0.3,
        layered=False,
        multiplicity=1,
        microbatch=8,
        engine=engine,
    )
    index = jnp.arange(8, dtype=jnp.int32)
    key = jax.random.key(0)
    alone = lambda params, data: summed(key, params, data, index)[None]
    mesh = Mesh(np.array(jax.devices()), ("part",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("part")
    spread = jax.shard_map(
        alone, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows
    )
    together = jax.jit(spread)(params, digits)
    part = lambda i: jax.tree.map(lambda x: x[30 * i : 30 * i + 30], digits)
    for i in range(4):
        close(together[i], jax.jit(alone)(params, part(i))[0])


def test_an_unknown_engine_is_refused():
    with pytest.raises(InputError, match="engine='fast'"), engines.using("fast"):
        pass
