"""Where the keys of private runs come from: a recorded seed, or the operating system.

A key decides which images are drawn and which noise is added. Whoever has it can undo
both: an epsilon is about those who have not.
"""

import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ppds_jax.privacy.accounting import Guarantee, promises
from ppds_jax.types import Key

RECORDED = "the seed is recorded: whoever has it can remove the noise"
SECRET = (
    "keys came from the operating system (64 bits each) and are stored nowhere, and "
    "what an interrupted model had put out must stay unpublished"
)
RESUMED = (
    "the run was interrupted and went on with fresh keys: outputs of the part that was "
    "lost must stay unpublished"
)


def secret_key() -> Key:
    """A fresh key from the operating system; kept by nobody but the caller.

    A key of JAX's threefry generator has 64 bits, so this is not cryptography: who can
    try 2^64 keys finds it.
    """
    words = jnp.asarray(np.frombuffer(os.urandom(8), np.uint32))
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def noted(guarantee: Guarantee, *, secret: bool, resumed: bool = False) -> Guarantee:
    """A run's guarantee, with what its reader must know about the run's keys.

    Args:
      guarantee: of the method.
      secret: whether the keys were `secret_key()`s; else their seed is recorded.
      resumed: whether a run with secret keys was interrupted, and went on from a
        checkpoint with fresh ones.
    """
    if not promises(guarantee):
        return guarantee
    notes = (SECRET if secret else RECORDED,) + (RESUMED,) * (secret and resumed)
    return replace(guarantee, notes=(*guarantee.notes, *notes))
