"""What an attacker sees in each release, and how useful the release is. JAX, pure.

An observer turns one model's release into signals on all audited and population images,
and into the test accuracy of the classifier that the release yields. Observers are
functions (key, artefact, questions) -> Observation, mapped over shadow models; what
comes before the last look has the same form, and yields the next artefact.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt8

from ppds_jax.attacks.density import (
    Components,
    log_density_ratio_reader,
    principal_components,
)
from ppds_jax.attacks.image_signals import (
    BLOCK,
    Reader,
    gan_leaks_calibrated_reader,
    gan_leaks_reader,
    k_nearest_reader,
    neighbourhood_reader,
    usual_distances,
)
from ppds_jax.attacks.signals import OF_LOGITS
from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.fit import fit
from ppds_jax.pipeline import as_dataset
from ppds_jax.types import (
    Classifier,
    Generator,
    InputError,
    Key,
    PyTree,
    Sampler,
    SignalFn,
    Synthetic,
)


class Known(NamedTuple):
    """What an attacker of images knows besides: public images, and what they tell."""

    reference: UInt8[Array, "r h w c"]  # of the private images' kind; none audited
    radius: Float[Array, " q"]  # usual distances between them
    components: Components  # their principal components


def known(reference: UInt8[Array, "r h w c"], dims: int = 16) -> Known:
    """Computed once from public images, of which there must be more than `dims`.

    Raises:
      InputError: too few of them.
    """
    if len(reference) <= dims:
        raise InputError(
            f"reference: {len(reference)} images; must be more than {dims}"
        )
    reference = jnp.asarray(reference)
    components = principal_components(decode(reference), dims)
    return Known(reference, usual_distances(reference), components)


class Questions(NamedTuple):
    """The images on which every model is asked, the same for all models."""

    image: UInt8[Array, "n h w c"]  # audited images, then the population
    label: Int32[Array, " n"]
    test_image: UInt8[Array, "t h w c"]
    test_label: Int32[Array, " t"]
    known: Any = None  # what `known` makes; needed by some of `OF_IMAGES`


class Observation(NamedTuple):
    phi: dict[str, Float[Array, "n q"]]  # by signal
    accuracy: Any  # float32 [], on the test images, in [0, 1]; None if not tried


Look = Callable[[Key, PyTree, Questions], PyTree]
Observer = Callable[[Key, PyTree, Questions], Observation]
Query = Callable[[Float[Array, "m h w c"]], Float[Array, "m h w c"]]
Queries = tuple[Query, ...]


def queries(count: int) -> Queries:
    """The first of 18 fixed ways to show an image: as it is, mirrored, then shifted.

    Shifts are by one pixel in the eight directions, each plain and mirrored; what comes
    in from outside is 0. They are the same for every model.

    Raises:
      InputError: a count outside 1 to 18.
    """
    if not 1 <= count <= 18:
        raise InputError(f"queries={count}: must lie in 1 to 18")
    places = sorted(
        ((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)), key=lambda p: p != (0, 0)
    )
    return tuple(_shown(*place, mirror) for place in places for mirror in (0, 1))[
        :count
    ]


def _shown(rows: int, columns: int, mirror: int) -> Query:
    def show(image):
        _, height, width, _ = image.shape
        image = image[:, :, ::-1] if mirror else image
        image = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
        return image[:, 1 - rows :, 1 - columns :][:, :height, :width]

    return show


def classifier_observer(
    classifier: Classifier,
    signals: Mapping[str, Callable] = OF_LOGITS,
    shown: Queries | None = None,
) -> Observer:
    """Reads the logits of a released classifier, on each image as it is `shown`."""

    def observe(key, state, questions):
        del key

        def read(image, label):
            image = decode(image)
            phi: dict[str, list] = {name: [] for name in signals}
            for show in shown or queries(1):
                logits = classifier.logits(state, show(image))
                for name, signal in signals.items():
                    phi[name].append(signal(logits, label))
            return {name: jnp.stack(columns, axis=1) for name, columns in phi.items()}

        def right(image, label):
            guess = classifier.logits(state, decode(image)).argmax(-1)
            return (guess == label).astype(jnp.float32)

        phi = in_blocks(read, questions.image, questions.label)
        accuracy = in_blocks(right, questions.test_image, questions.test_label).mean()
        return Observation(phi, accuracy)

    return observe


ImageReader = Callable[[Synthetic, Any], Reader]  # of `Questions.known`
OF_IMAGES: dict[str, ImageReader] = {
    "nearest": lambda s, known: k_nearest_reader(s, k=1),
    "nearest_in_pca": lambda s, known: k_nearest_reader(s, k=3, embed=known.components),
    "neighbourhood": lambda s, known: neighbourhood_reader(s, radius=known.radius),
    "gan_leaks": lambda s, known: gan_leaks_reader(s),
    "gan_leaks_calibrated": lambda s, known: gan_leaks_calibrated_reader(
        s, known.reference
    ),
    "log_density_ratio": lambda s, known: log_density_ratio_reader(
        s, known.reference, embed=known.components
    ),
}


def images_observer(
    classifier: Classifier,
    look: Observer,
    readers: Mapping[str, ImageReader] = OF_IMAGES,
) -> Observer:
    """Trains a classifier on the released images and looks at it; measures distances.

    The attacker's classifier has its own key: it is not the one that is released.

    Args:
      classifier: the one that is trained.
      look: its `classifier_observer`.
      readers: what is read from the images themselves.
    """

    def observe(key, synthetic, questions):
        state, _ = fit(key, classifier, as_dataset(synthetic))
        seen = look(key, state, questions)
        reading = {
            name: reader(synthetic, questions.known) for name, reader in readers.items()
        }

        def read(image, label):
            image = decode(image)
            return {name: reader(image, label) for name, reader in reading.items()}

        phi = in_blocks(read, questions.image, questions.label, size=BLOCK)
        return seen._replace(phi={**seen.phi, **phi})

    return observe


def more_samples(generator: Generator, sampler: Sampler) -> Look:
    """Black box: draws as many images as `sampler` does, for an observer to look at."""

    def draw(key, state, questions):
        del questions
        return sampler.draw(key, generator, state, None)

    return draw


def white_box(generator: Generator, signals: Mapping[str, SignalFn]) -> Observer:
    """Reads signals from a released generator's state.

    Their noise is query noise, from one key: the same for all models.
    """

    def observe(key, state, questions):
        del key
        noise = jax.random.key(0)

        def read(image, label):
            image = decode(image)
            return {
                name: signal(noise, state, image, label, generator.public)
                for name, signal in signals.items()
            }

        return Observation(in_blocks(read, questions.image, questions.label), None)

    return observe
