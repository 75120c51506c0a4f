"""All that attacks need of finished shadow models, in one file: no model, no training.

`phi.npz` holds signals of every release of every subject on all models, who was in
which model, public features, and some released images to look at. Every calibration,
interval and figure is made from it again in minutes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray as Array

from ppds_jax.attacks.score import Case
from ppds_jax.attacks.signals import SIGNALS, Signal, of_logit
from ppds_jax.harness.store import replacing
from ppds_jax.types import InputError


class Audited(NamedTuple):
    """Whose membership is asked for, on the first axis of all signals."""

    image: UInt8[Array, "n h w c"]
    label: Array
    kind: Array  # of canary; "" for images as they are
    member: Bool[Array, "m n"]
    feature: Float[Array, "n f"]
    population_feature: Float[Array, "z f"]


class Release(NamedTuple):
    """One release of one subject, and what is said of it: plain values for a row."""

    subject: str
    release: str
    method: str
    control: str
    epsilon: float
    neighbours: str
    notes: tuple[str, ...]


class Released(NamedTuple):
    """What some models published, to look at: models first."""

    image: UInt8[Array, "k s h w c"]
    label: Array


class Evidence:
    """A file of evidence, read as it is asked for.

    Attributes:
      facts: about all models: data, design, num_targets, num_members, ...
      audited: see `Audited`.
      releases: in the order in which they were observed.

    Raises:
      InputError: a file that is not there, or is none of this kind.
    """

    def __init__(self, path: Path):
        try:
            self._file = np.load(path, allow_pickle=False)
            self.facts = json.loads(str(self._file["facts"]))
            self.audited = Audited(
                *(self._file[f"audited|{name}"] for name in Audited._fields)
            )
        except (OSError, KeyError, ValueError) as error:
            raise InputError(
                f"phi={str(path)!r}: not the phi.npz of a finished run ({error})"
            ) from None
        self.releases = [
            Release(**{**item, "notes": tuple(item["notes"])})
            for item in self.facts["releases"]
        ]
        for i, item in enumerate(self.releases):
            self.releases[i] = item._replace(epsilon=float(item.epsilon))

    def accuracy(self, release: Release) -> Float[Array, " m"]:
        return self._file[f"accuracy|{release.subject}|{release.release}"]

    def cases(self, release: Release) -> Iterator[tuple[str, Case]]:
        """Each signal of the release, by name."""
        start = f"phi|{release.subject}|{release.release}|"
        audited = self.audited
        for entry in self._file.files:
            if entry.startswith(start):
                name = entry.removeprefix(start)
                phi = self._file[entry]
                own, population = np.split(phi, [len(audited.label)], axis=1)
                signal = SIGNALS.get(name) or Signal(name, of_logit)
                features = audited.feature, audited.population_feature
                yield name, Case(signal, own, audited.member, population, *features)

    def released(self, subject: str) -> Released | None:
        """What the first two models published; they are complementary."""
        entry = f"released|{subject}|"
        if f"{entry}image" not in self._file.files:
            return None
        return Released(self._file[f"{entry}image"], self._file[f"{entry}label"])


def write_evidence(
    path: Path,
    facts: Mapping[str, Any],
    audited: Audited,
    releases: Mapping[Release, tuple[Float[Array, " m"], Mapping[str, Any]]],
    released: Mapping[str, Released],
) -> None:
    """Writes the file, whole or not at all.

    Args:
      path: where.
      facts: plain values.
      audited: see there.
      releases: the accuracy of each model, and phi [m n+z q] of each signal.
      released: by subject.
    """
    said = [{**item._asdict(), "epsilon": str(item.epsilon)} for item in releases]
    arrays: dict[str, Array] = {
        "facts": np.array(json.dumps({**facts, "releases": said}))
    }
    for name, value in audited._asdict().items():
        arrays[f"audited|{name}"] = value
    for item, (accuracy, phi) in releases.items():
        place = f"{item.subject}|{item.release}"
        arrays[f"accuracy|{place}"] = accuracy
        for name, value in phi.items():
            arrays[f"phi|{place}|{name}"] = value
    for subject, seen in released.items():
        arrays[f"released|{subject}|image"] = seen.image
        arrays[f"released|{subject}|label"] = seen.label
    with replacing(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
