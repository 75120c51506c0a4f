"""The table fault x check: `python -m tests.planted_faults.table` writes it anew."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax.attacks.audit import (
    distinguish,
    epsilon_clopper_pearson,
    error_bounds,
    player,
)
from ppds_jax.privacy.checks import CHECKS, check
from ppds_jax.types import Budget, Dataset
from tests.planted_faults.faults import FAULTS
from tests.planted_faults.sound import SPEC, dataset

TABLE = Path(__file__).parents[2] / "experiments" / "results" / "planted_faults.md"
# the faults that show in what is released, to whom one record is all there is
VISIBLE = (
    "noise detached from the gradient",
    "a diffusion's noise counted, and learned",
    "noise for the mean, on the sum",
    "real images as a start",
    "labels by a model of private images",
    "no noise at all",
)
CLAIM = Budget(1.0, 1e-5)


def audited(build, seed: int = 0, runs: int = 1000) -> float:
    """A lower bound on epsilon, 99.9 %, for one white image against none."""
    data = dataset()
    image = data.image.at[0].set(255)
    data = Dataset(image, data.label, jnp.zeros(80, bool).at[0].set(True))
    play = player(build(data, CLAIM), build(data, Budget(np.inf, 1e-5)), data)
    inside, outside = distinguish(
        play, jax.random.key(seed), np.zeros(80, bool), 0, runs
    )
    return epsilon_clopper_pearson(error_bounds(inside, outside), CLAIM.delta)


def marks(table: str) -> dict[str, set[str]]:
    """The checks that catch each fault, as a written table has them."""
    head, _, *rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    return {
        row[0]: {
            name for name, cell in zip(head[1:], row[1:], strict=True) if cell == "x"
        }
        for row in rows
    }


def main() -> None:
    names = [*CHECKS, "audit"]
    lines = [
        "Planted faults, and which check catches which "
        "(`python -m tests.planted_faults.table`).",
        "",
        "| fault | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for fault, (build, _) in FAULTS.items():
        found = check(build, SPEC, Budget(2.0, 1e-5), dataset())
        caught = {name for name, wrong in found.items() if wrong}
        if fault in VISIBLE and audited(build) > CLAIM.epsilon:
            caught.add("audit")
        cells = ["x" if name in caught else "" for name in names]
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
