"""What this project does, as contestants: shadows, private steps, whole methods."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppds_jax.classifiers import CNN, MLP
from ppds_jax.classifiers.supervised import cross_entropy, supervised
from ppds_jax.data.batches import decode, draw_batch
from ppds_jax.devices import Layout, Mode, loop_body, prepare
from ppds_jax.fit import fit
from ppds_jax.generators import DPDM, DPMerf
from ppds_jax.generators.dpdm import PRESETS
from ppds_jax.mapping import map_shadows
from ppds_jax.nets.cnn import cnn, pooled_cnn
from ppds_jax.nets.wide_resnet import wide_resnet
from ppds_jax.optimise import mean_gradient
from ppds_jax.privacy.dpsgd import DPSGD, dp_gradient
from ppds_jax.sampling.balanced import Balanced
from ppds_jax.types import Budget, Classifier, Dataset, DataSpec

Work = tuple[Callable[[], Any], dict[str, Any]]
SHAPES = {"mnist": (28, 28, 1), "cifar": (32, 32, 3)}
IMAGES, BATCH, CLASSES = 1000, 128, 10
PRIVATE_IMAGES, PRIVATE_BATCH = 5000, 256
FREE = Budget(float("inf"), 1e-5)
# the networks of every table; `rivals` and `Textbook` build the same
WIDTH, HIDDEN, DENSE = 16, 64, (256, 128)
CLASSIFIERS: dict[str, Any] = {
    "maxpool": CNN(width=WIDTH, hidden=HIDDEN, batch_size=BATCH, pool=True),
    "stride": CNN(width=WIDTH, hidden=HIDDEN, batch_size=BATCH),
    "mlp": MLP(hidden=DENSE, batch_size=BATCH, learning_rate=2e-3),
}


def images(shape: tuple[int, int, int], count: int = IMAGES) -> Dataset:
    """Random images: what they show costs no time."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (count, *shape), np.uint8)
    label = rng.integers(0, CLASSES, count).astype(np.int32)
    return Dataset(jnp.array(image), jnp.array(label), jnp.ones(count, bool))


def _classifier(net: str, shape: tuple[int, int, int], steps: int) -> Classifier:
    spec = DataSpec(shape, CLASSES, IMAGES)
    if net == "wrn16-4":
        options: dict[str, Any] = {"epochs": 1, "batch_size": BATCH}
        network = wide_resnet(16, 4, CLASSES)
        method = supervised(network, spec, learning_rate=2e-3, **options)
    else:
        method = CLASSIFIERS[net].make(spec, FREE)
    return method._replace(num_steps=steps)


def shadows(
    net: str,
    models: int,
    steps: int,
    mode: Mode = "auto",
    memory: int | None = None,
    size: str = "mnist",
    repeats: int = 1,
) -> Work:
    """Models trained through `map_shadows`, as the harness does, so many times."""
    layout = Layout(mode, memory=memory)
    prepare(layout)
    data = images(SHAPES[size])
    method = _classifier(net, SHAPES[size], steps)

    def one(shared, row):
        return fit(row[0], method, Dataset(shared[0], shared[1], row[1]))[0]

    mapped = map_shadows(one, layout)
    rows = jax.random.split(jax.random.key(0), models), jnp.ones((models, IMAGES), bool)
    shared = data.image, data.label

    def work() -> None:
        for _ in range(repeats):
            jax.block_until_ready(mapped(shared, rows))

    return work, layout.described() | {"flops": _flops(method, SHAPES[size])}


def _flops(method: Classifier, shape: tuple[int, int, int]) -> float:
    """Of the gradient of one batch, as the compiler counts them."""
    data = images(shape, BATCH)
    state = jax.eval_shape(lambda k: method.init(k, data, ()), jax.random.key(0))

    def loss(params):
        logits = method.logits(state._replace(params=params), decode(data.image))
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, data.label
        ).mean()

    with jax.default_device(jax.devices("cpu")[0]):  # others' kernels are not counted
        cost = jax.jit(jax.grad(loss)).lower(state.params).cost_analysis()
    return float((cost or {}).get("flops", float("nan")))


class Textbook(nn.Module):
    """The max-pool CNN as any JAX tutorial writes it."""

    @nn.compact
    def __call__(self, image):
        x = 2 * image - 1
        for features in (WIDTH, 2 * WIDTH):
            x = nn.relu(nn.Conv(features, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(HIDDEN)(x.reshape(x.shape[0], -1)))
        return nn.Dense(CLASSES)(x)


def textbook(models: int, steps: int, mode: str) -> Work:
    """The max-pool CNN without any of this project's means.

    Args:
      mode: "vmap": one step of all models by `jax.vmap`, jitted, in a Python loop;
        "loop": one model after the other, a jitted step in a Python loop; "scan": one
        model after the other, its steps in one `lax.scan`.
    """
    data = images(SHAPES["mnist"])  # no `prepare`: JAX as it comes
    net, optimizer = Textbook(), optax.adam(2e-3)

    def loss(params, image, label):
        logits = net.apply(params, image)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    def init(key):
        params = net.init(key, jnp.zeros((1, *SHAPES["mnist"])))
        return params, optimizer.init(params)

    def step(state, key):
        row = jax.random.randint(key, (BATCH,), 0, IMAGES)
        image = data.image[row].astype(jnp.float32) / 255
        gradient = jax.grad(loss)(state[0], image, data.label[row])
        update, kept = optimizer.update(gradient, state[1])
        return optax.apply_updates(state[0], update), kept

    keys = jax.random.split(jax.random.key(0), models)
    each = jax.vmap(jax.random.split, (0, None))(keys, steps)
    if mode == "vmap":
        begin_all, run = jax.jit(jax.vmap(init)), jax.jit(jax.vmap(step))

        def together():
            state = begin_all(keys)
            for t in range(steps):
                state = run(state, each[:, t])
            jax.block_until_ready(state)

        return together, {}
    begin_one, single = jax.jit(init), jax.jit(step)
    scan = jax.jit(
        lambda state, keys: jax.lax.scan(lambda s, k: (step(s, k), None), state, keys)
    )

    def in_turn():
        for m in range(models):
            state = begin_one(keys[m])
            if mode == "scan":
                state, _ = scan(state, each[m])
            else:
                for t in range(steps):
                    state = single(state, each[m, t])
            jax.block_until_ready(state)

    return in_turn, {}


def private(net: str, engine: Any, steps: int, size: str = "mnist") -> Work:
    """Steps of DP-SGD (batch 256, Poisson), or plain ones, as `engine` says."""
    prepare(Layout("map"))
    shape = SHAPES[size]
    data = images(shape, PRIVATE_IMAGES)
    make = {"maxpool": pooled_cnn, "stride": cnn}.get(net)
    network = make(WIDTH, HIDDEN, CLASSES) if make else wide_resnet(16, 4, CLASSES)
    optimizer = optax.sgd(0.1)
    params = network.init(jax.random.key(0), jnp.zeros((1, *shape)))
    state: tuple = params, optimizer.init(params), ()
    loss = cross_entropy(network)
    if engine == "plain":

        def gradient(key, past, params):
            batch = draw_batch(key, data, PRIVATE_BATCH)
            return mean_gradient(loss, params, *batch)[1], past

    else:
        settings = DPSGD(
            noise_multiplier=1.0,
            clip_norm=1.0,
            num_members=PRIVATE_IMAGES,
            batch_size=PRIVATE_BATCH,
            num_steps=10**9,
        )
        one = lambda key, params, image, label: loss(params, image, label)
        made = dp_gradient(one, settings, engine=engine)
        state = params, optimizer.init(params), made.init(params)
        gradient = lambda key, past, params: made.apply(key, past, params, data)

    def step(state, key):
        params, kept, past = state
        g, past = gradient(key, past, params)
        update, kept = optimizer.update(g, kept, params)
        return (optax.apply_updates(params, update), kept, past), None

    run = jax.jit(lambda state, keys: jax.lax.scan(loop_body(step), state, keys)[0])
    keys = jax.random.split(jax.random.key(1), steps)
    return lambda: jax.block_until_ready(run(state, keys)), {}


def dp_merf(steps: int) -> Work:
    """DP-MERF on 5,000 images: the release, then so many steps of its generator."""
    prepare()
    data = images(SHAPES["mnist"], PRIVATE_IMAGES)
    spec = DataSpec(SHAPES["mnist"], CLASSES, PRIVATE_IMAGES)
    generator = DPMerf().make(spec, Budget(1.0, 1e-5))._replace(num_steps=steps)
    run = jax.jit(lambda key, data: fit(key, generator, data)[0])
    return lambda: jax.block_until_ready(run(jax.random.key(0), data)), {}


def dpdm(steps: int, published: bool = False) -> Work:
    """Steps of DPDM: the small network on 64 images, or the published sizes."""
    prepare(Layout("map"))
    config, count = DPDM(batch_size=64, epochs=10), PRIVATE_IMAGES
    if published:
        config, count = PRESETS["mnist_published"], 60_000
    data = images(SHAPES["mnist"], count)
    spec = DataSpec(SHAPES["mnist"], CLASSES, count)
    generator = config.make(spec, Budget(10.0, 1e-5))
    key = jax.random.key(0)
    state = jax.jit(lambda key: generator.init(key, data, generator.public))(key)

    def step(state, key):
        return generator.step(key, state, data, generator.public)[0], None

    run = jax.jit(lambda state, keys: jax.lax.scan(loop_body(step), state, keys)[0])
    keys = jax.random.split(key, steps)
    return lambda: jax.block_until_ready(run(state, keys)), {}


def sampling(count: int) -> Work:
    """Images drawn from DP-MERF's generator, in one compiled program."""
    prepare()
    spec = DataSpec(SHAPES["mnist"], CLASSES, PRIVATE_IMAGES)
    generator = DPMerf().make(spec, Budget(float("inf"), 1e-5))
    data = images(SHAPES["mnist"], PRIVATE_IMAGES)
    key = jax.random.key(0)
    state = jax.jit(lambda key: generator.init(key, data, generator.public))(key)
    sampler = Balanced(num_images=count).make(spec)
    draw = jax.jit(lambda key, state: sampler.draw(key, generator, state, None))
    return lambda: jax.block_until_ready(draw(key, state)), {}


def matrix_product(size: int, repeats: int) -> Work:
    """Products of square matrices on every core: the peak to compare with."""
    prepare()

    def one(shared, row):
        body = lambda _, x: x @ shared
        return jax.lax.fori_loop(0, repeats, body, row)

    mapped = map_shadows(one)
    count = jax.local_device_count()
    rows = jnp.ones((count, size, size)) / size
    work = lambda: jax.block_until_ready(mapped(jnp.eye(size), rows))
    return work, {"flops": 2.0 * size**3 * repeats * count}


def first_step(net: str) -> None:
    """What a process does until its first step is done."""
    shadows(net, 2, 1)[0]()
