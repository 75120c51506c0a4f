"""What several releases cost together. Host, float64."""

from collections.abc import Mapping
from typing import NamedTuple

from ppds_jax.privacy.accounting import NAMES, compose, epsilon, promises
from ppds_jax.types import Guarantee


class Entry(NamedTuple):
    """One release: its epsilon, and that of all up to it together."""

    name: str
    neighbours: str
    epsilon: float
    total: float
    notes: tuple[str, ...]


def ledger(released: Mapping[str, Guarantee], delta: float) -> list[Entry]:
    """The releases that promise something, in order, with running totals.

    Name each mechanism once: what is computed from a release costs nothing more.
    Releases without a promise are left out: beside one of them, no total holds.

    Raises:
      InputError: guarantees under different neighbour relations (see `by_relation`).
    """
    entries, spent = [], []
    for name, guarantee in released.items():
        if promises(guarantee):
            spent.append(guarantee)
            total = epsilon(compose(*spent), delta)
            alone = epsilon(guarantee, delta)
            relation = NAMES[guarantee.neighbours]
            entries.append(Entry(name, relation, alone, total, guarantee.notes))
    return entries


def by_relation(released: Mapping[str, Guarantee], delta: float) -> list[Entry]:
    """One ledger for each neighbour relation, one after the other.

    Their totals are statements about different relations, and do not add up.
    """
    relations = dict.fromkeys(g.neighbours for g in released.values())
    return [
        entry
        for relation in relations
        for entry in ledger(
            {name: g for name, g in released.items() if g.neighbours == relation}, delta
        )
    ]
