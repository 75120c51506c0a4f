"""Where programs run. The only file that names backends, devices and meshes."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec

from ppds_jax.convolution import canonical
from ppds_jax.types import InputError

Mode = Literal["auto", "map", "vmap", "shard-map", "shard-vmap"]
DATA_AXIS = "data"


def prepare() -> None:
    """What every experiment does first: all cores, and a cache of compiled programs.

    The cache lies in the user's cache folder, and serves later processes.
    """
    use_cores()
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
        path = os.path.join(cache, "ppds_jax", "compiled")
        jax.config.update("jax_compilation_cache_dir", path)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def use_cores(count: int | None = None) -> None:
    """Makes a CPU `count` single-threaded devices, one a core (default: all).

    Two devices that each train a shadow model make better use of two cores than one
    device that splits each operation in two: the operations of small networks are so
    short that handing them out can cost more than they take. Has an effect only
    before JAX has computed anything, and none on other backends.
    """
    os.environ.setdefault("NPROC", "1")  # read by XLA:CPU for its thread pool
    if hasattr(os, "sched_getaffinity"):  # not on every system
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    with contextlib.suppress(RuntimeError):  # JAX has started: keep what there is
        jax.config.update("jax_num_cpu_devices", count or cores)


def loop_body(fn: Callable) -> Callable:
    """`fn`, made fit for the body of a compiled loop on the default backend."""
    return canonical(fn) if jax.default_backend() == "cpu" else fn


def spread(rows: jax.Array) -> jax.Array:
    """Rows of a batch, spread over the devices of `data_mesh`; unchanged without one.

    The number of rows must be a multiple of the number of devices.
    """
    if DATA_AXIS in jax.sharding.get_abstract_mesh().axis_names:
        return lax.with_sharding_constraint(rows, PartitionSpec(DATA_AXIS))
    return rows


def ghost_rows() -> int:
    """How many images ghost clipping takes at once.

    So few that their activations stay in a CPU's cache; on an accelerator, where
    nothing has been measured yet, enough to fill it.
    """
    return 32 if jax.default_backend() == "cpu" else 512


@contextlib.contextmanager
def data_mesh(count: int | None = None) -> Iterator[Mesh]:
    """Within it, compiled training spreads each private batch over `count` devices.

    Only the gradients are spread: the clipped sum is one, and so is its noise.
    """
    devices = np.array(jax.devices()[:count])
    mesh = Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        yield mesh


def default_mode() -> Mode:
    """Shadows in turn on each core of a CPU: the fastest there of those tried.

    On an accelerator, where nothing has been measured yet, `vmap` is expected to win.
    """
    return "shard-map" if jax.default_backend() == "cpu" else "vmap"


def map_shadows(fn: Callable[[Any, Any], Any], mode: Mode = "auto") -> Callable:
    """Maps `fn(shared, row)` over the leading axis of `row`, compiled.

    Args:
      fn: a pure function of a PyTree that all rows share (the data set) and of one
        row's PyTree (its key and membership).
      mode: "vmap" batches all rows in one program; "map" runs them in turn within one
        program; "shard-..." first spreads the rows over all devices. "auto" takes
        `default_mode()`.

    Returns:
      `mapped(shared, rows)`, whose results have the leading axis of `rows`. A sharded
      map needs a number of rows that the number of devices divides.

    Raises:
      InputError: an unknown mode.

    >>> import jax.numpy as jnp
    >>> map_shadows(lambda a, x: a * x, "vmap")(2.0, jnp.arange(3.0)).tolist()
    [0.0, 2.0, 4.0]
    """
    if mode not in get_args(Mode):
        raise InputError(f"mode={mode!r}: use one of {', '.join(get_args(Mode))}")
    mode = default_mode() if mode == "auto" else mode

    def in_turn(shared, rows):
        return lax.map(lambda row: fn(shared, row), rows)

    inner = jax.vmap(fn, in_axes=(None, 0)) if mode.endswith("vmap") else in_turn
    if not mode.startswith("shard"):
        return jax.jit(inner)
    mesh = Mesh(np.array(jax.devices()), ("shadow",), axis_types=(AxisType.Auto,))
    row = PartitionSpec("shadow")
    return jax.jit(
        jax.shard_map(
            inner,
            mesh=mesh,
            in_specs=(PartitionSpec(), row),
            out_specs=row,
            check_vma=False,  # no collectives: each device trains its own rows
        )
    )


def width(mode: Mode = "auto", at_once: int = 16) -> int:
    """How many rows one call of a mapped program should take.

    A vmap takes `at_once` on each device; a map one, so that work is saved often.
    """
    mode = default_mode() if mode == "auto" else mode
    devices = jax.device_count() if mode.startswith("shard") else 1
    return devices * (at_once if mode.endswith("vmap") else 1)
