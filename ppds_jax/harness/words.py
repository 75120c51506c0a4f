"""Words of the command line that stand for sizes: `shadow=4,data=2`, `4GB`."""

import re

from ppds_jax.devices import DATA_AXIS, SHADOW_AXIS
from ppds_jax.types import InputError

_POWERS = {letter: power for power, letter in enumerate(["", "K", "M", "G", "T"])}


def mesh(text: str) -> tuple[int, int]:
    """Devices along the axes (shadow, data); an axis that is not named has one.

    >>> mesh("shadow=4,data=2"), mesh("data=2")
    ((4, 2), (1, 2))

    Raises:
      InputError: anything else.
    """
    sizes = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part)
        if not found or found[1] in sizes or int(found[2]) < 1:
            raise _no_mesh(text)
        sizes[found[1]] = int(found[2])
    if not set(sizes) <= {SHADOW_AXIS, DATA_AXIS}:
        raise _no_mesh(text)
    return sizes.get(SHADOW_AXIS, 1), sizes.get(DATA_AXIS, 1)


def mesh_text(shape: tuple[int, int]) -> str:
    return f"{SHADOW_AXIS}={shape[0]},{DATA_AXIS}={shape[1]}"


def memory(text: str) -> int:
    """Bytes.

    >>> memory("4GB"), memory("1.5 GiB"), memory("500000")
    (4000000000, 1610612736, 500000)

    Raises:
      InputError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.I)
    size = 0
    if found:
        base = 1024 if found[3] else 1000
        size = int(float(found[1]) * base ** _POWERS[found[2].upper()])
    if size < 1:
        raise InputError(f"memory={text!r}: write it as 4GB, 500MB or in bytes")
    return size


def _no_mesh(text: str) -> InputError:
    return InputError(
        f"mesh={text!r}: write it as shadow=4 or shadow=4,data=2, each at least 1"
    )
