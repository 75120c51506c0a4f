"""Guarantees: how they are made, composed, and turned into an epsilon. Host, float64.

Only this file imports dp_accounting, and only where something private is made: its
import takes two seconds. Epsilons are those of its privacy-loss-distribution
accountant, whose discretised losses are rounded up: never too small.
"""

import enum
import functools
import math
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias, Union

from ppds_jax.types import Budget, Guarantee, InputError

if TYPE_CHECKING:
    import dp_accounting


class Known(enum.Enum):
    """Events whose epsilon is known without an accountant."""

    NON_PRIVATE = math.inf
    DATA_FREE = 0.0


class Neighbours(enum.Enum):
    """Relations between data sets, by dp_accounting's names, and what we call them."""

    ADD_OR_REMOVE_ONE = "add-or-remove"
    REPLACE_SPECIAL = "zero-out"
    REPLACE_ONE = "replace-one"


Event: TypeAlias = Union["dp_accounting.DpEvent", Known]

ADD_OR_REMOVE = Neighbours.ADD_OR_REMOVE_ONE
ZERO_OUT = Neighbours.REPLACE_SPECIAL
REPLACE = Neighbours.REPLACE_ONE
NAMES = {relation: relation.value for relation in Neighbours}

PUBLIC_COUNT = "the number of private images is public"
PUBLIC_COUNTS = "the number of private images of each class is public"

COARSE = 1e-2  # interval of the first grid on which a privacy loss is rounded
LEAST = 0.05  # no search for noise multipliers below


def _dp() -> ModuleType:
    import dp_accounting

    return dp_accounting


def non_private() -> Guarantee:
    """The guarantee of a method that promises nothing: epsilon is infinite."""
    return Guarantee(Known.NON_PRIVATE, ADD_OR_REMOVE)


def data_free() -> Guarantee:
    """The guarantee of a stage that reads no private data: it adds nothing."""
    return Guarantee(Known.DATA_FREE, ADD_OR_REMOVE)


def gaussian(noise_multiplier: float, neighbours: Neighbours, *notes: str) -> Guarantee:
    """One Gaussian release with standard deviation `noise_multiplier` x sensitivity.

    The sensitivity must be that of `neighbours`, except under replace-one: there it is
    that of leaving an image out, and is doubled here. A multiplier of 0 is not private.
    """
    if noise_multiplier == 0:
        return non_private()
    event = _dp().GaussianDpEvent(noise_multiplier)
    return Guarantee(event, neighbours, notes)


def pure(epsilon: float, *notes: str) -> Guarantee:
    """One release that is epsilon-DP with delta 0, under zero-out.

    It is charged as randomised response, the worst of all such mechanisms: outcomes of
    probability 1 / (1 + e^epsilon) and the rest, swapped between neighbours. In
    dp_accounting's terms, where one of two neighbours under zero-out answers uniformly,
    that is noise e^-epsilon over 1 + e^epsilon answers.
    """
    if math.isinf(epsilon):
        return non_private()
    if not epsilon > 0:
        raise InputError(f"epsilon={epsilon}: must be above 0; inf adds no noise")
    event = _dp().RandomizedResponseDpEvent(math.exp(-epsilon), 1 + math.exp(epsilon))
    return Guarantee(event, ZERO_OUT, notes)


def poisson_gaussian(
    *,
    noise_multiplier: float,
    sampling_rate: float,
    num_steps: int,
    num_members: int,
    capacity: int,
    notes: tuple[str, ...] = (),
) -> Guarantee:
    """`num_steps` Gaussian releases, each of a Poisson sample of the data.

    A sample above `capacity` rows is cut down to it at random, and that is accounted
    for (dp_accounting's truncated event, after arXiv 2508.15089).
    """
    if noise_multiplier == 0:
        return non_private()
    step = _dp().PoissonSampledDpEvent(
        sampling_rate, _dp().GaussianDpEvent(noise_multiplier)
    )
    if capacity < num_members:
        step = _dp().dp_event.TruncatedSubsampledGaussianDpEvent(
            num_members, sampling_rate, capacity, noise_multiplier
        )
    event = _dp().SelfComposedDpEvent(step, num_steps)
    return Guarantee(event, ADD_OR_REMOVE, notes)


def compose(*guarantees: Guarantee) -> Guarantee:
    """What all of them reveal together.

    Raises:
      InputError: guarantees under different neighbour relations; their epsilons do
        not add up to a statement about either relation.
    """
    parts = [g for g in guarantees if g.event is not Known.DATA_FREE]
    notes = tuple(dict.fromkeys(note for g in guarantees for note in g.notes))
    relations = sorted({NAMES[g.neighbours] for g in parts if promises(g)})
    if len(relations) > 1:
        raise InputError(
            f"neighbours={' and '.join(relations)}: guarantees under different "
            "relations cannot be added up; state all stages under one"
        )
    if not parts:
        return Guarantee(Known.DATA_FREE, ADD_OR_REMOVE, notes)
    neighbours = next((g.neighbours for g in parts if promises(g)), None)
    event = _together([g.event for g in parts])
    return Guarantee(event, neighbours or parts[0].neighbours, notes)


def _together(events: list[Event]) -> Event:
    """What several events, each of private data, reveal together."""
    if Known.NON_PRIVATE in events:
        return Known.NON_PRIVATE
    return events[0] if len(events) == 1 else _dp().ComposedDpEvent(events)


def total(events: Iterable[tuple[Event, int]], neighbours: Neighbours) -> Guarantee:
    """What events reveal together, each with the number of times that it happens."""
    some = [(e, n) for e, n in events if n and e is not Known.DATA_FREE]
    if not some:
        return Guarantee(Known.DATA_FREE, neighbours)
    if any(e is Known.NON_PRIVATE for e, _ in some):
        return Guarantee(Known.NON_PRIVATE, neighbours)
    repeated = [_dp().SelfComposedDpEvent(e, n) for e, n in some]
    return Guarantee(_dp().ComposedDpEvent(repeated), neighbours)


def sampling_rate(event: Event) -> float:
    """The rate of a Poisson-sampled event; 1 for one that reads all records."""
    if isinstance(event, _dp().SelfComposedDpEvent):
        return sampling_rate(event.event)
    return float(getattr(event, "sampling_probability", 1.0))


def promises(guarantee: Guarantee) -> bool:
    """Whether it is about private data at all, and bounds what they reveal."""
    return not isinstance(guarantee.event, Known)


def epsilon(guarantee: Guarantee, delta: float) -> float:
    """The epsilon at `delta`: an upper bound, infinite where nothing is promised.

    The privacy loss is rounded to a grid, and every release adds its own rounding: a
    grid that is fine for one release is coarse for 100,000. So it is made finer until
    that changes epsilon by little.

    Args:
      guarantee: what was run.
      delta: in (0, 1); below 1 / (number of images) to mean anything.

    Raises:
      InputError: a delta outside (0, 1).

    >>> round(epsilon(gaussian(3.73, ZERO_OUT), 1e-5), 2)
    1.0
    """
    _check_delta(delta)
    return _finest(lambda interval: _spent(guarantee, delta, interval))


def _spent(guarantee: Guarantee, delta: float, interval: float) -> float:
    if isinstance(guarantee.event, Known):
        return guarantee.event.value
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(_relation(guarantee), interval)
    accountant.compose(guarantee.event)
    return float(accountant.get_epsilon(delta))


def _relation(guarantee: Guarantee) -> "dp_accounting.NeighboringRelation":
    return _dp().NeighboringRelation[guarantee.neighbours.name]


def _finest(spent: Callable[[float], float]) -> float:
    """What is spent by the first grid that need not be made finer."""
    interval, coarse, fine = COARSE / 4, spent(COARSE), spent(COARSE / 4)
    while not _settled(coarse, fine):
        interval, coarse = interval / 4, fine
        fine = spent(interval)
    return fine


def _settled(coarse: float, fine: float) -> bool:
    """Whether a grid four times finer still would take off next to nothing.

    The excess falls at least in proportion to the interval, so that a third of what
    was taken off bounds what is left: 0.07 % of epsilon.
    """
    return math.isinf(fine) or coarse - fine <= 2e-3 * max(fine, 0.01)


def rdp_epsilon(guarantee: Guarantee, delta: float) -> float:
    """The epsilon at `delta` by Renyi DP: looser than `epsilon`, for comparison.

    Raises:
      InputError: a delta outside (0, 1), or releases that this accountant does not
        cover: batches cut down to a capacity, and replace-one.
    """
    _check_delta(delta)
    if isinstance(guarantee.event, Known):
        return guarantee.event.value
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=_relation(guarantee))
    # it takes Gaussians under replace-one, and forgets that the sensitivity doubles
    allowed = guarantee.neighbours != REPLACE and accountant.supports(guarantee.event)
    if not allowed:
        raise InputError(
            f"guarantee={guarantee.event} under {NAMES[guarantee.neighbours]}: Renyi "
            "DP covers Gaussians, and Poisson samples of them that are never cut down "
            "to a capacity, under add-or-remove and zero-out; use epsilon"
        )
    accountant.compose(guarantee.event)
    return float(accountant.get_epsilon(delta))


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise InputError(f"delta={delta}: must lie between 0 and 1")


def calibrate(run: Callable[[float], Guarantee], budget: Budget) -> float:
    """The smallest noise multiplier with which `run` keeps within the budget.

    Args:
      run: the guarantee of the whole run as a function of its noise multiplier.
      budget: epsilon and delta. An infinite epsilon asks for no noise.

    Returns:
      A multiplier whose epsilon is at most the budget's and at least 0.997 of it, or
      less where delta alone covers the chance that a record is ever drawn: there the
      search ends near 0.05.

    Raises:
      InputError: an epsilon outside [0.01, 100] that is not inf, or a delta outside
        [1e-12, 0.1].

    >>> sigma = calibrate(lambda s: gaussian(s, ZERO_OUT), Budget(1.0, 1e-5))
    >>> round(sigma, 2)
    3.73
    """
    check_budget(budget)
    if math.isinf(budget.epsilon):
        return 0.0
    low, high, interval = 0.5, 1.0, COARSE
    spent = functools.cache(
        lambda sigma, interval: _spent(run(sigma), budget.delta, interval)
    )
    while True:
        # most of the search on coarse grids: the finer ones take their time
        rough = functools.partial(spent, interval=interval)
        high = _least(rough, budget.epsilon, 0.999, low, high)
        low = high / 1.5
        if _settled(rough(high), spent(high, interval / 4)):
            break
        interval /= 4
    final = lambda sigma: _finest(functools.partial(spent, sigma))
    return _least(final, budget.epsilon, 0.997, low, high)


def _least(
    spent: Callable[[float], float],
    budget: float,
    share: float,
    low: float,
    high: float,
) -> float:
    """A sigma, looked for between low and high first, that spends [share, 1] of it."""
    while spent(high) > budget:
        low, high = high, high * high / low
    while spent(high) < share * budget and spent(low) <= budget:
        if low < LEAST:
            return high
        low, high = low * low / high, low
    # where delta covers all, epsilon is 0; where it nearly does, epsilon is a cliff
    log = lambda sigma: math.log(max(spent(sigma), budget / 100))
    while spent(high) < share * budget and high > (1 + 1e-5) * low:
        # epsilon falls about as a power of sigma: interpolate between logarithms,
        # but move each end by a twentieth of the way at least
        x = (log(low) - math.log(budget * (1 + share) / 2)) / (log(low) - log(high))
        x = min(max(x, 0.05), 0.95)
        middle = math.exp((1 - x) * math.log(low) + x * math.log(high))
        if spent(middle) > budget:
            low = middle
        else:
            high = middle
    return high


def check_budget(budget: Budget) -> None:
    """Refuses a budget that means nothing, by the name of the field."""
    if not budget.epsilon > 0:
        raise InputError(
            f"epsilon={budget.epsilon}: must be above 0; inf asks for no privacy"
        )
    if not (0.01 <= budget.epsilon <= 100 or math.isinf(budget.epsilon)):
        raise InputError(
            f"epsilon={budget.epsilon}: must lie between 0.01 and 100, or be inf: the "
            "accountant does not resolve others in reasonable time"
        )
    if not 1e-12 <= budget.delta <= 0.1:
        raise InputError(
            f"delta={budget.delta}: must lie between 1e-12 and 0.1; below 1 / (number "
            "of private images) to mean anything"
        )
