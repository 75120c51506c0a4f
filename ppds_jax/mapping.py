"""Shadow models mapped over devices and within memory, by one function."""

import math
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from ppds_jax.devices import SHADOW_AXIS, Layout, Mode
from ppds_jax.jaxprs import largest
from ppds_jax.types import InputError, PyTree

# bytes of an array; a model with a larger one is taken to fill an accelerator. Between
# the CNNs that gain by vmap there and WRN-16-4, whose modes await `bench-gpu PART=6`
FILLS = 16 * 2**20
FEW, MANY = 8, 16  # rows to learn from; arrays as large as the largest in a program


class Mapped:
    """A function of (shared, row), mapped over rows in chunks that fit into memory.

    One program is compiled for each shape of its inputs, and its memory is known before
    it runs. Where that is too much, fewer rows go into one call; where memory runs out
    all the same, half as many, and a warning says so.
    """

    def __init__(self, fn: Callable[[Any, Any], Any], layout: Layout, steps: bool):
        self._fn, self.layout, self._steps = fn, layout, steps
        self._most: int | None = None  # rows in one call, once memory ran out
        self.used = 0  # rows in one call, the last time
        self._programs: dict[Any, Any] = {}
        self._needs: dict[Any, tuple[float, float]] = {}
        self._sizes: dict[Any, int] = {}
        self._chunks: dict[Any, int] = {}

    def __call__(
        self, shared: PyTree, rows: PyTree, at_most: int | None = None
    ) -> PyTree:
        """Returns fn's results for all rows, with the leading axis of `rows`.

        `at_most` rows go in one call, where `chunk` has decided that before, in this
        process or another: memory is not counted again.

        Raises:
          InputError: no rows; leaves of different lengths; one row on each device, with
            the results of all, needs more than the memory asked for.
        """
        shared = self._put(shared, "everywhere")
        while True:
            if at_most is None:
                chunk = self.chunk(shared, rows)
            else:
                most = min(at_most, self._most or at_most)
                chunk = self.layout.even(_count(rows), most)
            try:
                return self._run(shared, rows, chunk)
            except jax.errors.JaxRuntimeError as error:
                devices = self.layout.shape[0]
                if not _out_of_memory(error) or chunk <= devices:
                    raise
                self._most = max(1, chunk // devices // 2) * devices
                self._chunks.clear()
                warnings.warn(
                    f"out of memory with {chunk} shadow models at once; in a vmap last "
                    f"bits depend on how many: going on with {self._most}",
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

    def chunk(
        self, shared: PyTree, rows: PyTree, host: float = 0.0, joined: bool = True
    ) -> int:
        """Rows in one call: the most that fit, in calls of equal size.

        For each of them `host` bytes of host memory are taken besides. `joined` says
        whether all calls' results are kept and joined; else each call's are done with
        before the next. Of `rows` only shapes and types matter: they may be
        `jax.ShapeDtypeStruct`s.

        What is decided for some shapes holds until memory runs out: a long run keeps
        its width, whatever else takes memory meanwhile.
        """
        if not _count(rows):
            raise InputError("map_shadows: no rows; give at least one")
        key = _kind((shared, rows)), host, joined
        if key not in self._chunks:
            self._chunks[key] = self._fitting(shared, rows, host, joined)
        return self._chunks[key]

    def _fitting(self, shared: PyTree, rows: PyTree, host: float, joined: bool) -> int:
        devices, count = self.layout.shape[0], _count(rows)
        most = -(-count // devices) * devices
        if self.layout.resolved.endswith("vmap"):
            here = self._vmapped(shared, rows, most // devices, joined)
            most = min(most, here * devices)
        most = min(most, self._most or most)
        while True:
            calls = -(-count // most)
            chunk = self.layout.even(count, most)
            need, result = self._need(shared, rows, chunk)
            # results of all calls, and all of them once more as they are joined
            kept = 2 * calls * result if joined and calls > 1 else 0
            kept += self.layout.beside(host * (count if joined else chunk))
            held = self._held(shared, "everywhere")
            if chunk == count:  # else parts of them are copied
                held += self._held(rows, "rows")
            free = self.layout.free(held) - kept
            if need <= free:
                return chunk
            if chunk == devices:
                if self.layout.memory is None:
                    return chunk  # an estimate is no reason not to try
                raise InputError(
                    f"memory={self.layout.memory / 1e9:.3g}GB: a shadow model on each "
                    f"of {devices} devices takes {need / 1e9:.3g} GB there, and "
                    f"{max(free, 0) / 1e9:.3g} GB are left beside {kept / 1e9:.3g} GB "
                    "of results and copies and what is in use by now: allow more "
                    "memory, use fewer devices or smaller batches, map fewer models "
                    "in one call, or, if much has been computed, start again: what "
                    "is done is kept"
                )
            fits = chunk // devices // 2  # where not even compiling had room
            if math.isfinite(need):
                fits = int(chunk / devices * max(free, 0) / need)
            most = devices * min(max(fits, 1), chunk // devices - 1)

    def _vmapped(self, shared: PyTree, rows: PyTree, most: int, joined: bool) -> int:
        """Rows in a vmap on each device, of at most `most`, before memory is counted.

        A model that fills an accelerator by itself is trained on its own there. Where
        all at once might be far too many, a few are compiled to learn what one needs.
        """
        if self.layout.at_once:
            most = min(most, self.layout.at_once)
        if most == 1 or self._most:
            return most
        size = self._largest(shared, rows)
        is_free = self.layout.mode == "auto" and self.layout.at_once is None
        if self._steps and is_free and size >= FILLS:
            return 1
        free = self.layout.free(self._held(shared, "everywhere"))
        if most > FEW and MANY * size * most > free:
            need, result = self._need(shared, rows, FEW * self.layout.shape[0])
            if most * need > FEW * free:  # several calls, as `chunk` has it
                free -= 2 * most / FEW * result if joined else 0
                most = min(most, max(FEW, int(FEW * max(free, 0) / max(need, 1))))
        return most

    def _largest(self, shared: PyTree, rows: PyTree) -> int:
        """Bytes of the largest array that one row's program makes."""
        part = jax.tree.map(lambda x: _resized(x, 1), rows)
        key = _kind((shared, part))
        if key not in self._sizes:
            row = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), part
            )
            self._sizes[key] = largest(jax.make_jaxpr(self._fn)(shared, row).jaxpr)
        return self._sizes[key]

    def _need(self, shared: PyTree, rows: PyTree, chunk: int) -> tuple[float, float]:
        """Bytes on each device, as the compiler counts them: in all, and of results.

        Infinitely many, if compiling itself runs out of memory, as it may on TPUs.
        """
        part = jax.tree.map(lambda x: _resized(x, chunk), rows)
        key = _kind((shared, part))
        if key not in self._needs:  # counting takes as long as many a short chunk
            try:
                used = self.program(shared, part).memory_analysis()
            except jax.errors.JaxRuntimeError as error:
                if not _out_of_memory(error) or chunk <= self.layout.shape[0]:
                    raise
                warnings.warn(
                    f"out of memory in compiling for {chunk} shadow models at once: "
                    "going on with fewer",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self._needs[key] = math.inf, 0.0
                return self._needs[key]
            # None: not told
            told = (_bytes(used), used.output_size_in_bytes) if used else (0.0, 0.0)
            self._needs[key] = told
        return self._needs[key]

    def _held(self, tree: PyTree, where: Literal["rows", "everywhere"]) -> int:
        """Bytes on each device of what lies there already, as a program takes it."""
        arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
        if self.layout.resolved.startswith("shard"):
            to = getattr(self.layout, where)
            arrays = [x for x in arrays if x.sharding.is_equivalent_to(to, x.ndim)]
        return sum(x.nbytes for x in arrays) // (
            self.layout.shape[0] if where == "rows" else 1
        )

    def _run(self, shared: PyTree, rows: PyTree, chunk: int) -> PyTree:
        count, results, self.used = _count(rows), [], chunk
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
    fn: Callable[[Any, Any], Any],
    mode: Mode | Layout = "auto",
    *,
    steps: bool = True,
    **options: Any,
) -> Mapped:
    """Maps `fn(shared, row)` over the leading axis of `row`, compiled.

    Args:
      fn: a pure function of a PyTree that all rows share (the data set) and of one
        row's PyTree (its key and membership).
      mode: a mode of `Layout`, or a whole one.
      steps: whether `fn` is work enough that rows which fill an accelerator are better
        done one by one, by default; else as many as fit are done at once.
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
    return Mapped(fn, layout, steps)


def _out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


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
    shapes = [jax.typeof(leaf).shape for leaf in jax.tree.leaves(rows)]
    if not all(shapes):
        raise InputError("map_shadows: rows hold a scalar; give an array, a row each")
    lengths = sorted({shape[0] for shape in shapes})
    if len(lengths) != 1:
        raise InputError(
            f"map_shadows: rows of lengths {lengths}; give one of each leaf"
        )
    return lengths[0]
