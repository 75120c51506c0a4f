"""The membership game: who is in which model, and each model as the target in turn."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from ppds_jax.attacks.guards import check_references
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


def canary_design(
    key: Key,
    label: Int[Array, " n"],
    canary: Bool[Array, " n"],
    num_shadows: int,
) -> Bool[Array, "m n"]:
    """Membership where canaries alone vary, and all other images are in every model.

    Models are then trained on all data but half of the canaries. Canaries follow a
    `half_design`; they alone can be audited, as other images have no OUT model.

    Raises:
      InputError: as `half_design`, of the canaries.

    **References:** Aerni, Zhang and Tramer, Evaluations of Machine Learning Privacy
    Defenses are Misleading, 2024, arXiv 2404.17399.
    """
    label, canary = np.asarray(label), np.asarray(canary, bool)
    if canary.shape != label.shape:
        raise InputError(f"canary {canary.shape}: must be bool {label.shape}")
    member = np.ones((num_shadows, label.size), bool)
    member[:, canary] = half_design(key, label[canary], num_shadows)
    return member


def partners(member: Bool[Array, "m n"]) -> Int[Array, " m"]:
    """For each model the one with exactly the other images, or -1.

    Images that are in all models, or in none, are not looked at.
    """
    member = np.asarray(member, bool)
    varied = member[:, member.any(0) & ~member.all(0)]
    if not varied.size:
        return np.full(len(member), -1)
    place = {row.tobytes(): index for index, row in enumerate(varied)}
    return np.array([place.get((~row).tobytes(), -1) for row in varied])


class Pool(NamedTuple):
    """Models that are targets only, and models that are references only."""

    target: Int[Array, " t"]
    reference: Int[Array, " r"]


def target_pool(member: Bool[Array, "m n"], num_targets: int) -> Pool:
    """The first models as targets; the others, less the targets' partners, to refer to.

    Attacks may be chosen and set up on the references alone, and then meet targets
    that nothing was chosen on. With more shadows the targets stay the same.

    Raises:
      InputError: no target, or fewer than 2 references left.
    """
    target = np.arange(max(num_targets, 0))
    used = np.union1d(target, partners(member)[: target.size])
    reference = np.setdiff1d(np.arange(len(member)), used)
    if num_targets < 1 or len(reference) < 2:
        raise InputError(
            f"num_targets={num_targets}: must be at least 1, and leave 2 of the "
            f"{len(member)} models as references; it leaves {len(reference)}"
        )
    return Pool(target, reference)


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
      InputError: shapes that do not fit, or a model that is there twice.
    """
    partner, models = partners(member), np.arange(len(member))
    rest = [np.setdiff1d(models, [model, partner[model]]) for model in models]
    return _scores(calibration, phi, member, population, models, rest)


def score_pool(
    calibration: Calibration,
    phi: Float[Array, "m n q"],
    member: Bool[Array, "m n"],
    pool: Pool,
    population: Float[Array, "m z q"] | None = None,
) -> Float[Array, "t n"]:
    """Scores of a pool's targets against its references. See `leave_one_out`.

    Raises:
      InputError: shapes that do not fit, or a target among the references.
    """
    if shared := np.intersect1d(*pool).tolist():
        raise InputError(f"pool: models {shared} are both targets and references")
    rest = [pool.reference] * len(pool.target)
    return _scores(calibration, phi, member, population, pool.target, rest)


def _scores(calibration, phi, member, population, targets, rest) -> Array:
    if phi.shape[:2] != member.shape:
        raise InputError(
            f"phi {phi.shape}, member {member.shape}: must be [m n q], [m n]"
        )
    if population is not None and population.shape[0] != phi.shape[0]:
        raise InputError(
            f"population {population.shape}: must have the {phi.shape[0]} models of phi"
        )
    scores = []
    for target, keep in zip(targets, rest, strict=True):
        references = phi[keep]
        check_references(phi[target], references)
        extra = () if population is None else (population[target], population[keep])
        scores.append(calibration(phi[target], references, member[keep], *extra))
    return np.stack(scores)
