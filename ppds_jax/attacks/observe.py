"""What an attacker sees in each release, and how useful the release is. JAX, pure.

An observer turns one model's release into signals on all audited and population images,
and into the test accuracy of the classifier that the release yields. Observers are
functions (key, artefact, questions) -> Observation, mapped over shadow models; what
comes before the last look has the same form, and yields the next artefact.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt8

from ppds_jax.attacks.signals import nearest, scaled_logit
from ppds_jax.data.batches import decode, in_blocks
from ppds_jax.fit import fit
from ppds_jax.pipeline import as_dataset
from ppds_jax.types import Classifier, Generator, Key, PyTree, Sampler


class Questions(NamedTuple):
    """The images on which every model is asked, the same for all models."""

    image: UInt8[Array, "n h w c"]  # audited images, then the population
    label: Int32[Array, " n"]
    test_image: UInt8[Array, "t h w c"]
    test_label: Int32[Array, " t"]


class Observation(NamedTuple):
    phi: dict[str, Float[Array, "n q"]]  # by signal
    accuracy: Float[Array, ""]  # on the test images, in [0, 1]


Look = Callable[[Key, PyTree, Questions], PyTree]
Observer = Callable[[Key, PyTree, Questions], Observation]


def classifier_observer(classifier: Classifier) -> Observer:
    """Reads the logits of a released classifier."""

    def observe(key, state, questions):
        del key

        def logits(image):
            return in_blocks(lambda x: classifier.logits(state, decode(x)), image)

        phi = scaled_logit(logits(questions.image), questions.label)
        guess = logits(questions.test_image).argmax(-1)
        accuracy = jnp.mean((guess == questions.test_label).astype(jnp.float32))
        return Observation({"logit": phi[:, None]}, accuracy)

    return observe


def images_observer(classifier: Classifier) -> Observer:
    """Trains a classifier on the released images, and measures distances to them.

    The attacker's classifier has its own key: it is not the one that is released.
    """
    look = classifier_observer(classifier)

    def observe(key, synthetic, questions):
        state, _ = fit(key, classifier, as_dataset(synthetic))
        seen = look(key, state, questions)
        distance = nearest(synthetic, decode(questions.image), questions.label)
        return seen._replace(phi={**seen.phi, "nearest": distance[:, None]})

    return observe


def more_samples(generator: Generator, sampler: Sampler) -> Look:
    """Black box: draws as many images as `sampler` does, for an observer to look at."""

    def draw(key, state, questions):
        del questions
        return sampler.draw(key, generator, state, None)

    return draw
