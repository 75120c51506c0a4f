"""Generation, sampling and classification, composed into one pure function.

The composition is written once, as a sequence of stages: `run_stages` runs it as one
pure function, and the shadow game maps the same stages over membership rows, in chunks
of steps.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ppds_jax.fit import Method, advance, begin, fit
from ppds_jax.privacy.accounting import compose
from ppds_jax.types import (
    Classifier,
    Dataset,
    DataSpec,
    Generator,
    InputError,
    Key,
    Published,
    PyTree,
    Sampler,
    Synthetic,
)


class Stage(NamedTuple):
    """One stage: it adds one release to what the stages before it have published.

    `begin(key, data, published, public)` makes its first state, and `advance(key,
    state, data, published, public, first, last)` takes it from step `first` to `last`,
    which may be traced. Both are pure, and take the same key; `public` is the stage's
    public arrays. The state after all `num_steps` is what the stage releases. One that
    does not train has no steps, and no `advance`.
    """

    release: str
    begin: Callable[[Key, Dataset, Published, PyTree], PyTree]
    advance: Callable[..., PyTree] | None = None
    num_steps: int = 0
    public: PyTree = ()

    def publish(self, published: Published, state: PyTree) -> Published:
        return published._replace(**{self.release: state})


def generation(generator: Generator) -> Stage:
    """Fits the generator to the private images."""
    return _training("generator", generator, lambda data, published: data)


def sampling(generator: Generator, sampler: Sampler) -> Stage:
    """Draws the synthetic images from the fitted generator."""

    def draw(key, data, published, public):
        source = generator._replace(public=public)
        return sampler.draw(key, source, published.generator, data)

    return Stage("images", draw, public=generator.public)


def classification(classifier: Classifier) -> Stage:
    """Trains the classifier on the synthetic images, or, without any, on the data."""

    def source(data, published):
        return data if published.images is None else as_dataset(published.images)

    return _training("classifier", classifier, source)


def _training(
    release: str, method: Method, source: Callable[[Dataset, Published], Dataset]
) -> Stage:
    """A stage that fits a method to what `source` takes from the data or releases."""

    def start(key, data, published, public):
        return begin(key, method, source(data, published), public)

    def go_on(key, state, data, published, public, first, last):
        data = source(data, published)
        return advance(key, method, state, data, first, last, public)

    return Stage(release, start, go_on, method.num_steps, method.public)


def as_dataset(images: Synthetic) -> Dataset:
    """Synthetic images as training data: all rows that were not dropped."""
    return Dataset(images.image, images.label, images.weight > 0)


def check_generator(name: str, generator: Generator, spec: DataSpec) -> None:
    """Traces a generator once, without computing, and checks what it samples.

    Raises:
      InputError: its functions do not fit together, or do not give images.
    """
    shape = (3, *spec.image_shape)
    label = jnp.zeros(3, jnp.int32)
    data = Dataset(jnp.zeros(shape, jnp.uint8), label, jnp.ones(3, bool))

    def trace(key):
        state, _ = fit(key, generator, data)
        return generator.sample(key, state, label, generator.public)

    try:
        image = jax.eval_shape(trace, jax.random.key(0))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise InputError(
            f"generator {name}: does not trace: {type(error).__name__}: {lines[0]}"
        ) from error
    if image.shape != shape or image.dtype != jnp.float32:
        raise InputError(
            f"generator {name}: sample gives {image.dtype}{list(image.shape)} for 3 "
            f"labels; must give float32{list(shape)}"
        )


def run_stages(key: Key, stages: Sequence[Stage], data: Dataset) -> Published:
    """Runs all stages: a pure function of key and data, to jit and vmap.

    Stage i uses `fold_in(key, i)`.
    """
    published = Published()
    for i, stage in enumerate(stages):
        stage_key = jax.random.fold_in(key, i)
        state = stage.begin(stage_key, data, published, stage.public)
        if stage.advance is not None:
            rest = data, published, stage.public, 0, stage.num_steps
            state = stage.advance(stage_key, state, *rest)
        published = stage.publish(published, state)
    return published


def guarantees(
    generator: Generator | None, sampler: Sampler | None, classifier: Classifier
) -> Published:
    """The guarantee of each release, as composed from those of the stages.

    A classifier trained on released images is post-processing: it adds nothing.
    """
    if generator is None or sampler is None:
        return Published(classifier=classifier.guarantee)
    images = compose(generator.guarantee, sampler.guarantee)
    return Published(generator.guarantee, images, images)
