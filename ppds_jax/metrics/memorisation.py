"""Are generated images copies of training images? Host work, NumPy in float64.

None of these is a measure of privacy. They look at distances of released images on
average: a generator may give away who was in its training set without one image close
to any of theirs, and images close to typical training images may give nothing away.
Attacks on membership say how much is given away; these say what a copy looks like.

Points are rows of features, [rows d], of one space for all arguments: pixels, or a
public embedding. Distances are Euclidean.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array
from scipy.stats import rankdata

from ppds_jax.types import InputError


def data_copying(
    training: Float[Array, "t d"],
    held_out: Float[Array, "p d"],
    generated: Float[Array, "g d"],
    *,
    held_out_cell: Int[Array, " p"] | None = None,
    generated_cell: Int[Array, " g"] | None = None,
    training_cell: Int[Array, " t"] | None = None,
    least_share: float = 0.0,
) -> float:
    """C_T, the data-copying test: well below 0, generated points are copies.

    In each cell of the space, distances to the nearest training point of the cell are
    ranked, those of generated and of held-out points together; Z is the
    Mann-Whitney statistic of the generated ones, standardised by its mean and variance
    under equal distributions. C_T is the mean of Z over cells, weighted by the held-out
    points in them. Around 0, generated points are as far as fresh ones; well above,
    they are further: underfitting. It is not a measure of privacy.

    Args:
      training, held_out, generated: points; held-out ones were not trained on.
      held_out_cell, generated_cell, training_cell: each point's cell (a label, or a
        cluster); all three or none. None: one cell.
      least_share: cells with a smaller share of the generated points are left out.

    Returns:
      C_T. With one cell and no copying, approximately standard normal.

    Raises:
      InputError: shapes that do not fit, or no cell with points of all three kinds.

    **References:** Meehan, Chaudhuri and Dasgupta, A Non-Parametric Test to Detect
    Data-Copying in Generative Models, 2020, arXiv 2004.05675.
    """
    points = _points(training=training, held_out=held_out, generated=generated)
    given = (training_cell, held_out_cell, generated_cell)
    if len({cell is None for cell in given}) > 1:
        raise InputError("training_cell, held_out_cell, generated_cell: all or none")
    cells = [
        np.zeros(len(x), int) if cell is None else np.asarray(cell)
        for x, cell in zip(points, given, strict=True)
    ]
    if any(len(x) != len(cell) for x, cell in zip(points, cells, strict=True)):
        raise InputError("cells: must be one number for each point")
    weights, scores = [], []
    for cell in np.unique(cells[1]):
        t, p, g = (x[c == cell] for x, c in zip(points, cells, strict=True))
        if len(t) and len(g) and len(g) >= least_share * len(generated):
            weights.append(len(p))
            scores.append(_mann_whitney(nearest(g, t), nearest(p, t)))
    if not weights:
        raise InputError("cells: none has training, held-out and generated points")
    return float(np.average(scores, weights=weights))


def _mann_whitney(x: Array, y: Array) -> float:
    """How far x lies above y, in standard deviations under equal distributions."""
    n, m = len(x), len(y)
    above = rankdata(np.append(x, y))[:n].sum() - n * (n + 1) / 2
    return (above - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)


def authenticity(
    training: Float[Array, "t d"], generated: Float[Array, "g d"]
) -> float:
    """The share of generated points that are no copies of their nearest training point.

    A point counts as a copy where it is closer to that training point than any other
    training point is. It is not a measure of privacy, nor is 1 its value for a perfect
    generator: fresh points of the same distribution are often closest, too.

    Raises:
      InputError: shapes that do not fit, or fewer than 2 training points.

    **References:** Alaa, van Breugel, Saveliev and van der Schaar, How Faithful is your
    Synthetic Data? Sample-level Metrics for Evaluating and Auditing Generative Models,
    2022, arXiv 2102.08921.
    """
    training, generated = _points(training=training, generated=generated)
    if len(training) < 2:
        raise InputError(f"training {training.shape}: must have at least 2 points")
    own = _nearest(training, training, skip_self=True)[0]
    distance, index = _nearest(generated, training)
    return float(np.mean(distance > own[index]))


def nearest_neighbour_ratio(
    training: Float[Array, "t d"],
    held_out: Float[Array, "t d"],
    generated: Float[Array, "g d"],
) -> float:
    """The median of (distance to training) / (distance to as many held-out points).

    About 1 where the generator treats both alike, which a held-out set of the same size
    and distribution makes sure of; towards 0 where it copies. It is not a measure of
    privacy.

    Raises:
      InputError: shapes that do not fit, or sets of different sizes.
    """
    training, held_out, generated = _points(
        training=training, held_out=held_out, generated=generated
    )
    if len(training) != len(held_out):
        raise InputError(
            f"held_out: {len(held_out)} points; must be as many as the "
            f"{len(training)} of training, or the nearer is the larger set"
        )
    near, far = nearest(generated, training), nearest(generated, held_out)
    tiny = np.finfo(np.float64).tiny  # a point in both sets has a ratio of 1
    return float(np.median(np.maximum(near, tiny) / np.maximum(far, tiny)))


def nearest(x: Float[Array, "n d"], points: Float[Array, "t d"]) -> Float[Array, " n"]:
    """The distance from each x to the nearest of the points."""
    return _nearest(x, points)[0]


def _nearest(x: Array, points: Array, *, skip_self: bool = False):
    """Distance to the nearest point and its index; `skip_self`: but for the own row."""
    distance, index = np.zeros(len(x)), np.zeros(len(x), int)
    norms, size = (points**2).sum(1), max(1, 2**22 // len(points))
    for start in range(0, len(x), size):
        block = x[start : start + size]
        rows = np.arange(len(block))
        square = norms - 2 * block @ points.T
        if skip_self:
            square[rows, start + rows] = np.inf
        nearest = square.argmin(1)
        index[start : start + size] = nearest
        # anew from the difference: the expanded square loses what copies differ by
        distance[start : start + size] = np.linalg.norm(block - points[nearest], axis=1)
    return distance, index


def _points(**named: Array) -> list[Array]:
    """The arguments as float64 points of one space, none of them empty."""
    points = [np.asarray(value, np.float64) for value in named.values()]
    one_space = len({x.shape[1:] for x in points}) == 1
    if not one_space or any(x.ndim != 2 or not len(x) for x in points):
        shapes = ", ".join(
            f"{name} {x.shape}" for name, x in zip(named, points, strict=True)
        )
        raise InputError(f"{shapes}: must be points [rows d] of one space")
    return points
