"""One model trained from the host: it says how far it is, and survives being stopped.

Many models at once are `ppds_jax.harness.training`'s.
"""

import time
from pathlib import Path
from typing import NamedTuple

import jax

from ppds_jax.fit import Method, fit_chunks
from ppds_jax.harness import signals
from ppds_jax.harness.checkpoints import Checkpoints
from ppds_jax.harness.progress import progress
from ppds_jax.types import Dataset, Key, PyTree


class Fitted(NamedTuple):
    """A last state, what it took, and whether that was in one go.

    Attributes:
      state: of `fit_chunks`.
      seconds: of all runs together, compilation included.
      resumed: whether it went on from a checkpoint: with a fresh key, a note belongs to
        the guarantee (see `ppds_jax.privacy.keys.noted`).
    """

    state: PyTree
    seconds: float
    resumed: bool


def fit_kept(
    key: Key,
    method: Method,
    data: Dataset,
    *,
    name: str,
    folder: Path,
    chunk: int,
    every: float,
) -> Fitted:
    """Runs `fit_chunks` from the newest checkpoint on, or from the start.

    Args:
      key, method, data: as for `fit_chunks`, the same as those of the checkpoint.
      name: of the method, in messages.
      folder: of the checkpoint; gone when the training is done.
      chunk: steps between two looks.
      every: seconds between two checkpoints.

    Raises:
      FloatingPointError: a state that is not finite; the checkpoint is removed.
      Stopped: a signal came; what was trained is in the checkpoint.
    """
    kept, resume, before = Checkpoints(folder), None, 0.0
    record = kept.record()
    if record is not None:
        like = jax.eval_shape(method.init, key, data, method.public, None)
        resume, before = (record["step"], kept.load(like)), record["seconds"]
    begun = saved = time.monotonic()
    done, unsaved = record["step"] if record else 0, None

    def save(step: int, state: PyTree) -> None:
        seconds = before + time.monotonic() - begun
        kept.save_alone(step, {"step": step, "seconds": seconds}, state)

    with progress(method.num_steps, name) as report:
        report.found(done)

        def callback(step: int, state: PyTree, info: PyTree) -> None:
            nonlocal done, unsaved, saved
            fresh, done, unsaved = step - done, step, state
            report(fresh)  # it looks for a signal
            if time.monotonic() - saved >= every and step < method.num_steps:
                unsaved, saved = None, time.monotonic()  # a number is saved once
                save(step, state)

        try:
            state = fit_chunks(
                key, method, data, chunk=chunk, resume=resume, callback=callback
            )
        except signals.Stopped:
            if unsaved is not None:
                save(done, unsaved)
            raise
        except FloatingPointError:
            kept.remove()
            raise
        finally:
            kept.close()
    jax.block_until_ready(state)
    kept.remove()
    seconds = before + time.monotonic() - begun
    return Fitted(state, seconds, record is not None)
