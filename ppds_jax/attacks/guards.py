"""Mistakes that make an attack look strong, refused. Host, NumPy."""

import numpy as np
from jaxtyping import Bool, Float, Shaped
from numpy import ndarray as Array

from ppds_jax.types import InputError


def check_references(
    target_phi: Float[Array, "n q"], shadow_phi: Float[Array, "m n q"]
) -> None:
    """Refuses a target that is among its own references, whatever its number.

    It is known by its signals, equal on all images to those of a reference. Where all
    references are equal, or the target's signal is one constant, nothing can be told.

    Raises:
      InputError: saying which references are the target.
    """
    alike = (shadow_phi[:, 0] == target_phi[0]).all(-1)  # the first image: most differ
    same = [
        int(i) for i in np.flatnonzero(alike) if (shadow_phi[i] == target_phi).all()
    ]
    constant = (target_phi == target_phi[0, 0]).all()
    if same and len(same) < len(shadow_phi) and not constant:
        raise InputError(
            f"shadow_phi: references {same} are the target itself; leave them out"
        )


def check_population(
    audited: Shaped[Array, "n ..."], population: Shaped[Array, "z ..."]
) -> None:
    """Refuses a population that shares images with the audit set.

    An audited image that is compared with itself, or whose copies were trained on by
    half of the models, makes every rate of the population wrong.

    Args:
      audited, population: the images (not their signals), equal byte by byte where
        they are the same.

    Raises:
      InputError: saying how many images are in both.
    """
    audited, population = np.asarray(audited), np.asarray(population)
    if audited.dtype != population.dtype or audited.shape[1:] != population.shape[1:]:
        raise InputError(
            f"audited {audited.dtype} {audited.shape}, population {population.dtype} "
            f"{population.shape}: must be images of one kind"
        )
    known = {row.tobytes() for row in audited}
    shared = sum(row.tobytes() in known for row in population)
    if shared:
        raise InputError(
            f"population: {shared} of its {len(population)} images are audited too"
        )


def check_duplicates(
    audited: Shaped[Array, "n ..."], member: Bool[Array, "m n"]
) -> None:
    """Refuses equal images that differ in membership: a member beside its own copy.

    Copies that are always together, as those of one canary, are one image k times: what
    is measured is then the privacy of a group.

    Args:
      audited: the images, equal byte by byte where they are the same.
      member: which of them each model was trained on.

    Raises:
      InputError: saying how many images have such a copy.
    """
    first: dict[bytes, int] = {}
    rows = enumerate(np.asarray(audited))
    place = [first.setdefault(row.tobytes(), index) for index, row in rows]
    apart = (member != member[:, place]).any(0)
    if apart.any():
        raise InputError(
            f"audited: {apart.sum()} images have an equal one that is not in the same "
            "models; audit one of them, or put copies in together"
        )
