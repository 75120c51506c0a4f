"""Where programs run. The only file that names backends, devices and meshes."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ppds_jax.convolution import canonical
from ppds_jax.types import InputError, PyTree

Mode = Literal["auto", "map", "vmap", "shard-map", "shard-vmap"]
SHADOW_AXIS, DATA_AXIS = "shadow", "data"
BETWEEN_SAVES = 64  # models in one vmap on a device, where nothing else bounds them


def prepare(layout: "Layout | None" = None) -> None:
    """What every experiment does first: all cores, and a cache of compiled programs.

    A CPU gets as many devices as the layout's mesh asks for, by default one a core. The
    cache lies in the user's cache folder, and serves later processes.
    """
    shape = layout.mesh if layout else None
    use_cores(None if shape is None else shape[0] * shape[1])
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


CACHE_ROWS = 32  # images whose activations stay in a CPU's cache


def block_rows(rows: int) -> int:
    """How many of a batch's rows a gradient is computed for at once: a divisor.

    On a CPU so few that what is computed for them stays in its cache; else all.
    """
    if jax.default_backend() != "cpu":
        return rows
    block = max(b for b in range(1, CACHE_ROWS + 1) if rows % b == 0)
    return block if 2 * block > CACHE_ROWS else rows


def ghost_rows() -> int:
    """How many images ghost clipping takes at once.

    On an accelerator, where nothing has been measured yet, enough to fill it.
    """
    return CACHE_ROWS if jax.default_backend() == "cpu" else 512


@contextlib.contextmanager
def data_mesh(count: int | None = None) -> Iterator[Mesh]:
    """Within it, compiled training spreads each private batch over `count` devices.

    Only the gradients are spread: the clipped sum is one, and so is its noise.
    """
    devices = np.array(jax.local_devices()[:count])
    mesh = Mesh(devices, (DATA_AXIS,), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        yield mesh


def default_mode() -> Mode:
    """Shadows in turn on each core of a CPU: the fastest there of those tried.

    On an accelerator, where nothing has been measured yet, `vmap` is expected to win.
    """
    if jax.default_backend() == "cpu":
        return "shard-map"
    return "shard-vmap" if jax.local_device_count() > 1 else "vmap"


@dataclass(frozen=True)
class Layout:
    """How shadow models lie on devices. It changes no result beyond float rounding.

    Attributes:
      mode: "vmap" batches models in one program; "map" runs them in turn within one
        program; "shard-..." first spreads them over the devices of this process.
        "auto" takes `default_mode()`.
      mesh: devices along the axes (shadow, data), or None for all along the first. Each
        private batch is spread over the devices of the second.
      at_once: models in one vmap on each device, or None for as many as fit into
        memory.
      memory: bytes that may be in use (by this process on a CPU, on each device
        elsewhere), or None for what is free.
    """

    mode: Mode = "auto"
    mesh: tuple[int, int] | None = None
    at_once: int | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            modes = ", ".join(get_args(Mode))
            raise InputError(f"mode={self.mode!r}: use one of {modes}")
        sizes = {"at_once": self.at_once, "memory": self.memory}
        sizes |= {"mesh": min(self.mesh or (1, 1))}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise InputError(f"{name}={value}: must be at least 1")
        if self.mesh and self.mode in ("map", "vmap"):
            raise InputError(
                f"mode={self.mode!r}: uses one device; for a mesh, shard-{self.mode}"
            )

    @cached_property
    def resolved(self) -> Mode:
        """The mode, with "auto" decided."""
        if self.mode != "auto":
            return self.mode
        mode = default_mode()
        return "shard-vmap" if self.mesh and mode == "vmap" else mode

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Devices along the axes (shadow, data) of this process's mesh.

        Raises:
          InputError: a mesh of more devices than there are.
        """
        if not self.resolved.startswith("shard"):
            return 1, 1
        here = jax.local_device_count()
        shadow, data = self.mesh or (here, 1)
        if shadow * data > here:
            raise InputError(
                f"mesh=shadow={shadow},data={data}: asks for {shadow * data} devices "
                f"of each process, which has {here}"
            )
        return shadow, data

    @cached_property
    def _mesh(self) -> Mesh:
        count = self.shape[0] * self.shape[1]
        devices = np.array(jax.local_devices()[:count]).reshape(self.shape)
        axes = (SHADOW_AXIS, DATA_AXIS)
        return Mesh(devices, axes, axis_types=(AxisType.Auto,) * 2)

    @property
    def rows(self) -> NamedSharding:
        """Models spread over the first axis."""
        return NamedSharding(self._mesh, PartitionSpec(SHADOW_AXIS))

    @property
    def everywhere(self) -> NamedSharding:
        """The same arrays on every device."""
        return NamedSharding(self._mesh, PartitionSpec())

    def width(self, rows: int) -> int:
        """How many of `rows` models are computed between two saves, memory permitting.

        One on each device where they are trained in turn; in one vmap as many as there
        are, up to a bound, so that work is saved now and then.
        """
        each = 1
        if self.resolved.endswith("vmap"):
            here = -(-rows // self.shape[0])
            each = self.at_once or max(1, min(here, BETWEEN_SAVES))
        return self.shape[0] * each

    def described(self, width: int | None = None) -> dict[str, Any]:
        """What the last bits of a result depend on, for records.

        `width` is the number of models in one call, where that is known.
        """
        each = self.at_once if self.resolved.endswith("vmap") else 1
        return {
            "mapper": self.resolved,
            "shadow_devices": self.shape[0],
            "data_devices": self.shape[1],
            "width_per_device": width // self.shape[0] if width else each,
            "device": jax.local_devices()[0].device_kind,
            "jax": jax.__version__,
        }

    def free(self) -> float:
        """Bytes that programs may take on each device."""
        device = jax.local_devices()[0]
        stats = device.memory_stats() if device.platform != "cpu" else None
        if stats is not None:
            limit = 0.9 * stats.get("bytes_limit", np.inf)
            return min(limit, self.memory or np.inf)
        if self.memory is not None:
            return (self.memory - _resident()) / np.prod(self.shape)
        return 0.8 * _available() / np.prod(self.shape)


class Mapped:
    """A function of (shared, row), mapped over rows in chunks that fit into memory.

    One program is compiled for each shape of its inputs, and its memory is known before
    it runs. Where that is too much, fewer rows go into one call; where memory runs out
    all the same, half as many, and a warning says so.
    """

    def __init__(self, fn: Callable[[Any, Any], Any], layout: Layout):
        self._fn, self.layout = fn, layout
        self._most: int | None = None  # rows in one call, once memory has set a bound
        self._programs: dict[Any, Any] = {}
        self._needs: dict[Any, float] = {}

    def __call__(self, shared: PyTree, rows: PyTree) -> PyTree:
        """Returns fn's results for all rows, with the leading axis of `rows`.

        Raises:
          InputError: one row on each device needs more than the memory asked for.
        """
        shared = self._put(shared, "everywhere")
        while True:
            chunk = self.chunk(shared, rows)
            try:
                return self._run(shared, rows, chunk)
            except jax.errors.JaxRuntimeError as error:
                devices = self.layout.shape[0]
                if "RESOURCE_EXHAUSTED" not in str(error) or chunk <= devices:
                    raise
                self._most = max(1, chunk // devices // 2) * devices
                warnings.warn(
                    f"out of memory with {chunk} shadow models at once: going on with "
                    f"{self._most}",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def program(self, shared: PyTree, rows: PyTree) -> Any:
        """The compiled program for these inputs, all rows in one call."""
        key = _kind((shared, rows))
        if key not in self._programs:
            self._programs[key] = self._jitted.lower(shared, rows).compile()
        return self._programs[key]

    @cached_property
    def _jitted(self) -> Any:
        fn, layout = self._fn, self.layout

        def in_turn(shared, rows):
            return lax.map(lambda row: fn(shared, row), rows)

        vmapped = layout.resolved.endswith("vmap")
        inner = jax.vmap(fn, in_axes=(None, 0)) if vmapped else in_turn
        if not layout.resolved.startswith("shard"):
            return jax.jit(inner)
        mapped = jax.shard_map(
            inner,
            mesh=layout._mesh,
            in_specs=(PartitionSpec(), layout.rows.spec),
            out_specs=layout.rows.spec,
            axis_names={SHADOW_AXIS},  # the data axis is left to `spread`
            check_vma=False,  # no collectives: each device trains its own rows
        )
        return jax.jit(
            mapped,
            in_shardings=(layout.everywhere, layout.rows),
            out_shardings=layout.rows,
        )

    def chunk(self, shared: PyTree, rows: PyTree) -> int:
        """Rows in one call: the most that fit, in calls of equal size.

        Of `rows` only shapes and types matter: they may be `jax.ShapeDtypeStruct`s.
        """
        devices, count = self.layout.shape[0], _count(rows)
        most = -(-count // devices) * devices
        if self.layout.at_once and self.layout.resolved.endswith("vmap"):
            most = min(most, self.layout.at_once * devices)
        most = min(most, self._most or most)
        while True:
            calls = -(-count // most)
            chunk = -(-count // (calls * devices)) * devices
            need, free = self._need(shared, rows, chunk), self.layout.free()
            if need <= free:
                return chunk
            if chunk == devices:
                if self.layout.memory is None:
                    return chunk  # an estimate is no reason not to try
                raise InputError(
                    f"memory={self.layout.memory / 1e9:.3g}GB: a shadow model on each "
                    f"of {devices} devices takes {need / 1e9:.3g} GB there, and "
                    f"{max(free, 0) / 1e9:.3g} GB are left: allow more memory, use "
                    "fewer devices (mesh) or smaller batches"
                )
            fits = int(chunk / devices * max(free, 0) / need)
            most = self._most = devices * min(max(fits, 1), chunk // devices - 1)

    def _need(self, shared: PyTree, rows: PyTree, chunk: int) -> float:
        """Bytes on each device, as the compiler counts them."""
        part = jax.tree.map(lambda x: _resized(x, chunk), rows)
        key = _kind((shared, part))
        if key not in self._needs:  # counting takes as long as many a short chunk
            used = self.program(shared, part).memory_analysis()
            self._needs[key] = 0 if used is None else _bytes(used)  # None: not told
        return self._needs[key]

    def _run(self, shared: PyTree, rows: PyTree, chunk: int) -> PyTree:
        count, results = _count(rows), []
        for first in range(0, count, chunk):
            part = self._part(rows, first, chunk)
            result = self.program(shared, part)(shared, part)
            results.append(jax.block_until_ready(result))  # memory runs out here
        if len(results) == 1 and count == chunk:
            return results[0]
        return jax.tree.map(lambda *x: jnp.concatenate(x)[:count], *results)

    def _part(self, rows: PyTree, first: int, chunk: int) -> PyTree:
        """`chunk` rows from `first` on; the last one is repeated to fill them up."""
        count = _count(rows)
        if (first, chunk) != (0, count):
            index = np.minimum(np.arange(first, first + chunk), count - 1)
            rows = jax.tree.map(lambda x: x[index], rows)
        return self._put(rows, "rows")

    def _put(self, tree: PyTree, where: Literal["rows", "everywhere"]) -> PyTree:
        if not self.layout.resolved.startswith("shard"):
            return tree
        return jax.device_put(tree, getattr(self.layout, where))


def map_shadows(
    fn: Callable[[Any, Any], Any], mode: Mode | Layout = "auto", **options: Any
) -> Mapped:
    """Maps `fn(shared, row)` over the leading axis of `row`, compiled.

    Args:
      fn: a pure function of a PyTree that all rows share (the data set) and of one
        row's PyTree (its key and membership).
      mode: a mode of `Layout`, or a whole one.
      options: further fields of `Layout`.

    Returns:
      `mapped(shared, rows)`, whose results have the leading axis of `rows`.

    Raises:
      InputError: an unknown mode.

    >>> import jax.numpy as jnp
    >>> double = map_shadows(lambda a, x: a * x, "vmap", at_once=2)
    >>> double(2.0, jnp.arange(3.0)).tolist()
    [0.0, 2.0, 4.0]
    """
    layout = mode if isinstance(mode, Layout) else Layout(mode, **options)
    return Mapped(fn, layout)


def _kind(args: PyTree) -> Any:
    """What a compiled program depends on."""
    kinds = [jax.typeof(x) for x in jax.tree.leaves(args)]
    return jax.tree.structure(args), tuple((x.shape, x.dtype) for x in kinds)


def _bytes(used: Any) -> float:
    sizes = used.argument_size_in_bytes + used.output_size_in_bytes
    return sizes + used.temp_size_in_bytes - used.alias_size_in_bytes


def _resized(x: Any, count: int) -> jax.ShapeDtypeStruct:
    kind = jax.typeof(x)
    return jax.ShapeDtypeStruct((count, *kind.shape[1:]), kind.dtype)


def _count(rows: PyTree) -> int:
    return len(jax.tree.leaves(rows)[0])


def _resident() -> int:
    """Bytes of memory that this process has now."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _available() -> float:
    """Bytes of memory that the machine has left, or infinity where it does not tell."""
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return np.inf
