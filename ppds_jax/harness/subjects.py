"""What is attacked: who is private, and how each method's releases are seen.

The data's way: `Images` -> `split` -> indices of private, population and reference
images -> `Pipelines`, which turn a method's config into a `Subject`.
"""

from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int
from numpy import ndarray as Array

from ppds_jax.attacks.observe import (
    OF_IMAGES,
    ImageReader,
    Observer,
    classifier_observer,
    images_observer,
    more_samples,
    queries,
    white_box,
)
from ppds_jax.attacks.signals import OF_LOGITS
from ppds_jax.data.load import Images
from ppds_jax.harness.shadows import Subject
from ppds_jax.pipeline import (
    check_generator,
    classification,
    generation,
    guarantees,
    sampling,
)
from ppds_jax.types import (
    Budget,
    Classifier,
    DataSpec,
    Generator,
    InputError,
    Key,
    Published,
)


class Split(NamedTuple):
    """Which training images play which part; none plays two, and no two are equal."""

    private: Int[Array, " n"]
    population: Int[Array, " z"]
    reference: Int[Array, " r"]


def split(
    key: Key, images: Images, private: int, population: int, reference: int = 0
) -> Split:
    """Draws the parts from all distinct training images.

    Of equal images only the first is drawn from: a copy on the other side of the game,
    or in the population, would make its rates wrong.

    Raises:
      InputError: fewer distinct images than are asked for.
    """
    flat = images.x_train.reshape(len(images.x_train), -1)
    first = np.sort(np.unique(flat, axis=0, return_index=True)[1])
    sizes = [private, population, reference]
    if sum(sizes) > len(first):
        asked = " + ".join(f"{size:,}" for size in sizes if size)
        raise InputError(
            f"num_private, num_population, num_reference: {asked} images asked for; "
            f"{images.name} has {len(first):,} distinct training images"
        )
    order = first[np.asarray(jax.random.permutation(key, len(first)))]
    return Split(*np.split(order, np.cumsum(sizes))[:3])


def check_classes(label: Int[Array, " n"], num_classes: int) -> None:
    """Refuses private images with a class that some models would have no member of.

    Raises:
      InputError: naming the class.
    """
    count = np.bincount(label, minlength=num_classes)
    if count.min() < 2:
        raise InputError(
            f"num_private={len(label)}: class {count.argmin()} has {count.min()} "
            "private images, and so no members in some models; audit more images"
        )


class Attacker(NamedTuple):
    """How an attacker looks at releases.

    Attributes:
      more_samples: how many times the released number of images is drawn from a
        released generator.
      queries: in how many ways a classifier is shown each image, 1 to 18.
      of_logits, of_images: the signals that are read, by name.
    """

    more_samples: int = 4
    queries: int = 1
    of_logits: tuple[str, ...] = tuple(OF_LOGITS)
    of_images: tuple[str, ...] = tuple(OF_IMAGES)


class Pipelines:
    """Makes subjects that share their compiled sampling, classification and views."""

    def __init__(
        self,
        sampler: Any,
        classifier: Any,
        spec: DataSpec,
        budget: Budget,
        attacker: Attacker,
    ):
        self.sampler, self.classifier = sampler, classifier
        self.spec, self.budget, self.attacker = spec, budget, attacker
        self.num_released = sampler.num_images or spec.num_members

    @cached_property
    def _trained_on_images(self) -> Classifier:
        spec = replace(self.spec, num_members=self.num_released)
        return self.classifier.make(spec, self.budget)

    @cached_property
    def _classify(self):
        return classification(self._trained_on_images)

    @cached_property
    def _look(self) -> Observer:
        return self._observer(self._trained_on_images)

    @cached_property
    def _look_at_images(self) -> Observer:
        readers: dict[str, ImageReader] = {
            name: OF_IMAGES[name] for name in self.attacker.of_images
        }
        return images_observer(self._trained_on_images, self._look, readers)

    def _observer(self, classifier: Classifier) -> Observer:
        signals = {name: OF_LOGITS[name] for name in self.attacker.of_logits}
        return classifier_observer(classifier, signals, queries(self.attacker.queries))

    def subject(self, name: str, method: Any) -> Subject:
        """What `method` makes, under attack.

        Of a classifier, which is trained on the private images, itself; of a generator
        the generator, the images that it draws, and the classifier trained on those.

        Raises:
          InputError: a generator that does not trace, or does not sample images.
        """
        made = method.make(self.spec, self.budget)
        if isinstance(made, Generator):
            return self._of_generator(name, method, made)
        return Subject(
            name,
            (method, self.spec, self.budget),
            (classification(made),),
            Published(classifier=((self._observer(made),),)),
            guarantees(None, None, made),
            attacker=self.attacker,
        )

    def _of_generator(self, name: str, method: Any, generator: Generator) -> Subject:
        check_generator(name, generator, self.spec)
        sampler = self.sampler.make(self.spec)
        count = self.attacker.more_samples * self.num_released
        more = replace(self.sampler, num_images=count).make(self.spec)
        views: tuple = ((more_samples(generator, more), self._look_at_images),)
        if generator.signals:
            views += ((white_box(generator, generator.signals),),)
        return Subject(
            name,
            (method, self.sampler, self.classifier, self.spec, self.budget),
            (generation(generator), sampling(generator, sampler), self._classify),
            Published(views, ((self._look_at_images,),), ((self._look,),)),
            guarantees(generator, sampler, self._trained_on_images),
            attacker=self.attacker,
        )
