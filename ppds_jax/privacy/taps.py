"""What a traced loss does with its parameters: where they meet the data.

An operation on both is a tap. Its inputs, and the cotangents of its output, hold the
per-example gradients of the parameters that it takes: see `ppds_jax.privacy.ghost`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array

from ppds_jax.convolution import patches
from ppds_jax.jaxprs import bodies, reinterpret
from ppds_jax.types import InputError, PyTree

VIEWS = {"reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p"}
VIEWS |= {"broadcast_in_dim", "convert_element_type"}


class Matrix(NamedTuple):
    """A tap as out [b t d] = rows [b t k] @ weight [k d].

    Attributes:
      rows, out: from the tap's data and its output's cotangents, both with a leading
        axis, to these arrays, in float32.
      fold: from [k d] to the tapped variable's shape.
      cheap: whether a norm costs less than a gradient.
    """

    rows: Callable[[list], Array]
    out: Callable[[Array], Array]
    fold: Callable[[Array], Array]
    cheap: bool


class Tap(NamedTuple):
    """An operation on both data and parameters.

    Attributes:
      places: which of its inputs are made from parameters alone.
      variables: these inputs.
      data: which of its inputs come from data.
      ghost: whether its norms are found without gradients.
    """

    eqn: Any
    places: tuple[int, ...]
    variables: tuple[Any, ...]
    data: tuple[int, ...]
    matrix: Matrix | None
    ghost: bool


class Plan(NamedTuple):
    """A traced loss, its operations sorted by what they depend on.

    Attributes:
      sources: the leaves from which each variable made of parameters alone comes.
      uses: how many tapped inputs come from each leaf.
    """

    jaxpr: core.ClosedJaxpr
    before: list[Any]  # operations on parameters and constants
    after: list[Any]  # operations on data
    sources: dict[Any, frozenset[int]]
    uses: list[int]
    taps: list[Tap]

    def shared(self, leaves: list) -> dict:
        """The values of all that comes from parameters and constants alone."""
        values = self._constants() | dict(
            zip(self.jaxpr.jaxpr.invars[: len(leaves)], leaves, strict=True)
        )
        for eqn in self.before:
            out = run(eqn, [read(values, atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, out, strict=True))
        return values

    def pull(self, variable: Any, leaves: list) -> Callable[[Array], dict[int, Array]]:
        """From the cotangent of a variable to those of its leaves, in float32."""
        chosen = sorted(self.sources[variable])
        needed = _slice(self.before, {variable})

        def derive(parts):
            invars = self.jaxpr.jaxpr.invars
            values = dict(zip(invars, leaves, strict=False)) | self._constants()
            values |= {invars[leaf]: part for leaf, part in parts.items()}
            for eqn in needed:
                out = exact(eqn, [read(values, atom) for atom in eqn.invars])
                values.update(zip(eqn.outvars, out, strict=True))
            return values[variable].astype(jnp.float32)

        parts = {leaf: leaves[leaf].astype(jnp.float32) for leaf in chosen}
        back = jax.vjp(derive, parts)[1]
        return lambda cotangent: back(cotangent)[0]

    def _constants(self) -> dict:
        return dict(zip(self.jaxpr.jaxpr.constvars, self.jaxpr.consts, strict=True))


def plan_of(loss: Callable, params: PyTree, example: tuple) -> Plan:
    """Traces loss(params, *example) and finds its taps.

    Raises:
      InputError: a loss that does not depend on the example.
    """
    inlined = reinterpret(
        lambda params, example: loss(params, *example),
        dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), run),
    )
    closed = jax.make_jaxpr(inlined)(params, example)
    jaxpr, size = closed.jaxpr, len(jax.tree.leaves(params))
    sources = {v: frozenset([i]) for i, v in enumerate(jaxpr.invars[:size])}
    data = set(jaxpr.invars[size:])
    before, after = [], []
    is_variable = lambda atom: not isinstance(atom, core.Literal)
    for eqn in _slice(jaxpr.eqns, set(filter(is_variable, jaxpr.outvars))):
        variables = [v for v in eqn.invars if is_variable(v)]
        if any(v in data for v in variables):
            after.append(eqn)
            data.update(eqn.outvars)
            continue
        before.append(eqn)
        union = frozenset().union(*(sources.get(v, frozenset()) for v in variables))
        sources.update(dict.fromkeys(eqn.outvars, union))
    if jaxpr.outvars[0] not in data:
        raise InputError("loss: does not depend on the image, its label or the key")

    def tapped(eqn) -> tuple[int, ...]:
        return tuple(
            i
            for i, v in enumerate(eqn.invars)
            if is_variable(v) and sources.get(v) and floating(v.aval)
        )

    found = [(eqn, tapped(eqn)) for eqn in after if outputs(eqn)]
    found = [(eqn, places) for eqn, places in found if places]
    uses = [0] * size
    for eqn, places in found:
        for place in places:
            for leaf in sources[eqn.invars[place]]:
                uses[leaf] += 1

    def tap(eqn, places) -> Tap:
        matrix = _matrix(eqn, places)
        variables = tuple(eqn.invars[i] for i in places)
        single = all(uses[leaf] == 1 for v in variables for leaf in sources[v])
        plain = all(_is_view(jaxpr.invars, v, before, sources) for v in variables)
        ghost = matrix is not None and matrix.cheap and single and plain
        rows = tuple(
            i for i, v in enumerate(eqn.invars) if is_variable(v) and v in data
        )
        return Tap(eqn, places, variables, rows, matrix, ghost)

    return Plan(closed, before, after, sources, uses, [tap(*one) for one in found])


def _matrix(eqn: Any, places: tuple[int, ...]) -> Matrix | None:
    """A product or a convolution with one parameter as a matrix product."""
    if len(places) != 1:
        return None
    if eqn.primitive.name == "dot_general":
        return _product(eqn, places[0])
    if eqn.primitive.name == "conv_general_dilated" and places == (1,):
        return _convolution(eqn)
    return None


def _product(eqn: Any, place: int) -> Matrix | None:
    contract, batch = eqn.params["dimension_numbers"]
    if batch[0] or batch[1]:
        return None
    weight, data = eqn.invars[place].aval.shape, eqn.invars[1 - place].aval.shape
    contract = [tuple(c) for c in contract]
    kept = [i for i in range(len(data)) if i not in contract[1 - place]]
    free = [i for i in range(len(weight)) if i not in contract[place]]
    order = (*contract[place], *free)
    t, k = math.prod(data[i] for i in kept), math.prod(weight[i] for i in order)
    d = math.prod(weight[i] for i in free)
    k //= max(d, 1)

    def rows(inputs):
        x = inputs[1 - place].astype(jnp.float32)
        axes = (0, *(i + 1 for i in (*kept, *contract[1 - place])))
        return x.transpose(axes).reshape(-1, t, k)

    def out(g):
        g = g.astype(jnp.float32)
        return (
            g.reshape(-1, t, d) if place else g.reshape(-1, d, t).transpose((0, 2, 1))
        )

    def fold(gradient):
        ordered = gradient.reshape([weight[i] for i in order])
        return ordered.transpose([order.index(i) for i in range(len(order))])

    return Matrix(rows, out, fold, t == 1 or 2 * t * t < k * d)


def _convolution(eqn: Any) -> Matrix | None:
    p, (image, kernel) = eqn.params, (v.aval.shape for v in eqn.invars)
    plain = len(image) == 4 and p["feature_group_count"] == p["batch_group_count"] == 1
    dilated = {*p["lhs_dilation"], *p["rhs_dilation"]} != {1}
    if not plain or dilated or any(min(pad) < 0 for pad in p["padding"]):
        return None
    lhs, rhs, result = p["dimension_numbers"]
    kh, kw, channels, features = (kernel[i] for i in (*rhs[2:], rhs[1], rhs[0]))
    places = eqn.outvars[0].aval.shape
    t = math.prod(places) // features

    def rows(inputs):
        x = inputs[0].astype(jnp.float32)
        x = x.transpose((0, *(i + 1 for i in (lhs[0], *lhs[2:], lhs[1]))))
        flat = x.reshape(-1, *x.shape[2:])
        seen = patches(flat, (kh, kw), p["window_strides"], p["padding"])
        return seen.reshape(len(x), t, -1)

    def out(g):
        axes = (0, *(i + 1 for i in (result[0], *result[2:], result[1])))
        return g.astype(jnp.float32).transpose(axes).reshape(-1, t, features)

    def fold(gradient):
        shaped = gradient.reshape(kh, kw, channels, features)
        order = (*rhs[2:], rhs[1], rhs[0])
        return shaped.transpose([order.index(i) for i in range(4)])

    return Matrix(rows, out, fold, 2 * t * t < kh * kw * channels * features)


def _is_view(invars, variable, before, sources) -> bool:
    """Whether a variable is one leaf in another shape: its norm is the leaf's."""
    if len(sources[variable]) != 1:
        return False
    (leaf,) = sources[variable]
    steps = _slice(before, {variable})
    size = lambda v: math.prod(v.aval.shape)
    return all(
        eqn.primitive.name in VIEWS and size(eqn.outvars[0]) == size(invars[leaf])
        for eqn in steps
    )


def _slice(eqns: list, wanted: set) -> list:
    """Those operations that the wanted variables depend on."""
    wanted, needed = set(wanted), []
    for eqn in reversed(eqns):
        if any(v in wanted for v in eqn.outvars):
            needed.append(eqn)
            wanted.update(v for v in eqn.invars if not isinstance(v, core.Literal))
    return needed[::-1]


def run(eqn: Any, inputs: Any) -> list:
    """One operation as it is, custom derivatives and all."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*inputs, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def exact(eqn: Any, inputs: list) -> list:
    """One operation in float32 at highest precision, whatever it was written for."""
    if bodies(eqn):
        cast = [
            x.astype(v.aval.dtype) if floating(v.aval) else x
            for x, v in zip(inputs, eqn.invars, strict=True)
        ]
        return run(eqn, cast)
    inputs = [
        jnp.asarray(x).astype(jnp.float32) if floating(v.aval) else x
        for x, v in zip(inputs, eqn.invars, strict=True)
    ]
    params = dict(eqn.params)
    if eqn.primitive.name == "convert_element_type" and floating(eqn.outvars[0].aval):
        return [inputs[0].astype(jnp.float32)]
    if "precision" in params:
        params["precision"] = lax.Precision.HIGHEST
    if "preferred_element_type" in params:
        params["preferred_element_type"] = jnp.dtype("float32")
    return run(eqn.replace(params=params), inputs)


def read(values: Mapping, atom: Any) -> Any:
    return atom.val if isinstance(atom, core.Literal) else values[atom]


def floating(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.floating)


def outputs(eqn: Any) -> list:
    return [v for v in eqn.outvars if floating(v.aval)]
