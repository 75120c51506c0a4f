"""The membership game: who is in which model, and each model as the target in turn."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from ppds_jax.types import InputError, Key


def half_design(
    key: Key, label: Int[Array, " n"], num_shadows: int
) -> Bool[Array, "m n"]:
    """Membership with each image in exactly half of the models.

    Models 2p and 2p + 1 are complementary, and each has half of the images of each
    class (to within one). Pair p depends on `fold_in(key, p)` alone: more shadows leave
    the memberships of those that are there already as they are.

    Raises:
      InputError: an odd number of shadows or of images, or fewer than 4 shadows (with
        fewer, a target has no reference of each side left).
    """
    label = np.asarray(label)
    if num_shadows < 4 or num_shadows % 2:
        raise InputError(f"num_shadows={num_shadows}: must be even and at least 4")
    if label.size % 2:
        raise InputError(f"audited images: {label.size} is odd; audit one fewer")
    rows = []
    for pair in range(num_shadows // 2):
        shuffle = np.asarray(
            jax.random.permutation(jax.random.fold_in(key, pair), label.size)
        )
        order = shuffle[np.argsort(label[shuffle], kind="stable")]
        member = np.zeros(label.size, bool)
        member[order[::2]] = True
        rows += [member, ~member]
    return np.stack(rows)


def partners(member: Bool[Array, "m n"]) -> Int[Array, " m"]:
    """For each model the one with exactly the other images, or -1."""
    different = (member[:, None] != member[None]).all(-1)
    return np.where(different.any(1), different.argmax(1), -1)


Calibration = Callable[..., Array]


def leave_one_out(
    calibration: Calibration,
    phi: Float[Array, "m n q"],
    member: Bool[Array, "m n"],
    population: Float[Array, "m z q"] | None = None,
) -> Float[Array, "m n"]:
    """Scores of all models, each the target once and a reference otherwise.

    The target is never among its own references, nor is its complementary partner:
    with the partner left in, an image's share of IN references would tell whether the
    target had it, and a target of pure noise would be "attacked" with success.

    Args:
      calibration: (target_phi [n q], shadow_phi [m' n q], shadow_member [m' n]) ->
        scores [n]; with a population, also (population_target [z q],
        population_shadow [m' z q]).
      phi: signals of all models on the audited images.
      member: which audited images each model was trained on.
      population: signals of all models on images outside all training sets.

    Raises:
      InputError: shapes that do not fit.
    """
    if phi.shape[:2] != member.shape:
        raise InputError(
            f"phi {phi.shape}, member {member.shape}: must be [m n q], [m n]"
        )
    if population is not None and population.shape[0] != phi.shape[0]:
        raise InputError(
            f"population {population.shape}: must have the {phi.shape[0]} models of phi"
        )
    partner = partners(member)
    scores = []
    for target in range(len(phi)):
        keep = np.setdiff1d(np.arange(len(phi)), [target, partner[target]])
        extra = () if population is None else (population[target], population[keep])
        scores.append(calibration(phi[target], phi[keep], member[keep], *extra))
    return np.stack(scores)
