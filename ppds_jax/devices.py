"""Where programs run. Of all else only `mapping` names devices and meshes."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, TypeVar, get_args

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ppds_jax.convolution import canonical, stacked
from ppds_jax.types import InputError

Mode = Literal["auto", "map", "vmap", "shard-map", "shard-vmap"]
Item = TypeVar("Item")
Result = TypeVar("Result")
SHADOW_AXIS, DATA_AXIS = "shadow", "data"
BETWEEN_SAVES = 64  # models in one vmap on a device, where nothing else bounds them


def prepare(layout: "Layout | None" = None, *, threads: bool = False) -> None:
    """What every experiment does first: all cores, and a cache of compiled programs.

    `threads` says that several will start programs (`side_by_side`): on a CPU each then
    runs its own. Handed on to XLA's threads, two programs have been seen to end never:
    ClassPCA's on 60,000 images, with jaxlib 0.10.2.

    A CPU gets as many devices as the layout's mesh asks for, by default one a core. The
    cache lies in the user's cache folder, and serves later processes.
    """
    shape = layout.mesh if layout else None
    use_cores(None if shape is None else shape[0] * shape[1])
    if threads:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
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
    if count and count > MANY * cores:
        raise InputError(
            f"mesh: {count:,} devices on {cores} cores: each is simulated, and takes "
            f"memory; use at most {MANY * cores}"
        )
    with contextlib.suppress(RuntimeError):  # JAX has started: keep what there is
        jax.config.update("jax_num_cpu_devices", count or cores)


def loop_body(fn: Callable) -> Callable:
    """`fn`, made fit for the body of a compiled loop on the default backend."""
    forms = {"cpu": canonical, "gpu": stacked}
    return forms.get(jax.default_backend(), lambda fn: fn)(fn)


def spread(rows: jax.Array) -> jax.Array:
    """Rows of a batch, spread over the devices of `data_mesh`; unchanged without one.

    The number of rows must be a multiple of the number of devices.
    """
    if DATA_AXIS in jax.sharding.get_abstract_mesh().axis_names:
        return lax.with_sharding_constraint(rows, PartitionSpec(DATA_AXIS))
    return rows


MANY = 16  # simulated devices a core
GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
CACHE_ROWS = 32  # images whose activations stay in a CPU's cache
SPARE = 32 * 2**20  # bytes of a CPU, of those allowed: for programs yet to be compiled


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

    On an accelerator enough to fill it.
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


def side_by_side(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`work` of each item, as many at once as there are devices, each on one of them.

    Host code, in threads, after `prepare(threads=True)`: for work of which each part is
    a program of its own. After one that raises no other is begun; it is raised when
    those under way have ended.
    """
    free: SimpleQueue[jax.Device] = SimpleQueue()
    for device in jax.local_devices():
        free.put(device)

    def on_one(item: Item) -> Result:
        device = free.get()
        try:
            with jax.default_device(device):
                return work(item)
        finally:
            free.put(device)

    pool = ThreadPoolExecutor(jax.local_device_count())
    try:
        begun = [pool.submit(on_one, item) for item in items]
        done, _ = wait(begun, return_when=FIRST_EXCEPTION)
        for failed in (one for one in done if one.exception()):
            failed.result()
        return [one.result() for one in begun]
    finally:
        pool.shutdown(cancel_futures=True)


def default_mode() -> Mode:
    """Shadows in turn on each core of a CPU: the fastest tried, for 16 and more.

    The rows `mapper_ms` of `python -m experiments.speed full --parts mappers`.
    On an accelerator `vmap`: the same rows of `make bench-gpu PART=2`. A model that is
    large enough to fill it is trained on its own all the same (see `mapping`).
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
        memory. Where "auto" trains them in turn, it changes nothing.
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
        if self.at_once and self.mode in ("map", "shard-map"):
            raise InputError(
                f"at_once={self.at_once}: mode={self.mode!r} trains models in turn; "
                "for several at once, vmap or shard-vmap"
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

    def even(self, rows: int, most: int) -> int:
        """How many of `rows` go in one call: at most `most`, in calls of equal size.

        A multiple of the devices that share them, as `most` must be.
        """
        calls = -(-rows // most)
        return -(-rows // (calls * self.shape[0])) * self.shape[0]

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

    def free(self, held: int = 0) -> float:
        """Bytes on each device that a program may take.

        `held` of them are arguments that lie there: in use, and the program's too.
        """
        device = jax.local_devices()[0]
        stats = device.memory_stats() if device.platform != "cpu" else None
        if stats is not None:
            limit = min(0.9 * stats.get("bytes_limit", np.inf), self.memory or np.inf)
            return limit - max(stats.get("bytes_in_use", 0) - held, 0)
        if self.memory is not None:
            return (self.memory - _resident() - SPARE) / np.prod(self.shape) + held
        return 0.8 * _available() / np.prod(self.shape) + held

    def beside(self, host: float) -> float:
        """Bytes that so many of host memory take from each device: all, on a CPU."""
        on_cpu = jax.local_devices()[0].platform == "cpu"
        return host / np.prod(self.shape) if on_cpu else 0.0


def _resident() -> int:
    """Bytes of memory that this process has now."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _available() -> float:
    """Bytes that the machine and this process's group may still take, where told."""
    return min(_left_in_groups(), _left_on_machine())


def _left_in_groups() -> float:
    """What containers and job schedulers leave (cgroups, version 2)."""
    left = np.inf
    with contextlib.suppress(OSError):
        lines = GROUP.read_text().splitlines()
        mine = [Path(line.split("::")[1]) for line in lines if "::" in line]
        for group in (place for one in mine for place in (one, *one.parents)):
            folder = GROUPS / group.relative_to("/")
            with contextlib.suppress(OSError, ValueError):  # no limit is "max"
                limit = int((folder / "memory.max").read_text())
                used = int((folder / "memory.current").read_text())
                stat = (folder / "memory.stat").read_text().splitlines()
                counts = dict(map(str.split, stat))
                cached = int(counts["inactive_file"])  # files, given back when asked
                left = min(left, limit - used + cached)
    return left


def _left_on_machine() -> float:
    with contextlib.suppress(OSError), open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return np.inf
