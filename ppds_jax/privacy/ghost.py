"""Sums of clipped per-example gradients, without the per-example gradients.

Works on the traced loss of one example, so on any library's layers. Wherever an
operation mixes parameters with data (a tap), its inputs and the cotangents of its
output hold the per-example gradient of these parameters: for a matrix product, one
small outer product an example. One forward and one backward pass give them for a whole
batch. Norms follow from them, often without any gradient; then one weighted sum each.

What is not a product or convolution of a parameter used once (a norm's scale, a shared
weight, a loop) has its per-example gradients made, for that tap alone: never wrong,
only slower. `explain` says which.
"""

from collections import ChainMap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float

from ppds_jax.privacy.taps import (
    Plan,
    Tap,
    exact,
    floating,
    outputs,
    plan_of,
    read,
    run,
)
from ppds_jax.types import PyTree

Norms = list[Float[Array, " b"]]  # squared, one for each leaf


def clipped_sum(
    loss: Callable[..., Float[Array, ""]],
    params: PyTree,
    examples: tuple,
    weigh: Callable[[Norms], Norms],
) -> PyTree:
    """The sum over examples i of w_i grad loss(params, example_i), in float32.

    Norms, weights and sums are float32 at highest precision, and from the same numbers,
    whatever the loss computes in.

    Args:
      loss: (params, *example) -> scalar, of one example.
      params: inside shard_map, each device's own (`engines.clipped_sum` sees to it).
      examples: arrays with a leading axis of b examples.
      weigh: from the squared norms of each leaf's gradient [b], in the order of
        `jax.tree.leaves`, to the weights of each leaf [b].

    Returns:
      A PyTree shaped like the parameters.

    **References:** Bu et al., Differentially Private Optimization on Large Model at
    Small Cost, 2022, arXiv 2210.00038 (book-keeping, and when a norm is cheaper from
    the gradient); Goodfellow, Efficient Per-Example Gradient Computations, 2015, arXiv
    1510.01799.
    """
    leaves, tree = jax.tree.flatten(params)
    # shapes alone: a slice of the examples' keys would count as a use of them
    first = jax.eval_shape(lambda rows: jax.tree.map(lambda x: x[0], rows), examples)
    plan = plan_of(loss, params, first)
    values = plan.shared(leaves)
    inputs, cotangents = _pass(plan, values, jax.tree.leaves(examples))

    gradients: list[Any] = [None] * len(leaves)  # of each example, where they are made
    squares: Norms = [jnp.zeros(())] * len(leaves)
    products: list[tuple] = []
    for tap, x, g in zip(plan.taps, inputs, cotangents, strict=True):
        if tap.ghost and tap.matrix:
            rows, out = tap.matrix.rows(x), tap.matrix.out(g[0])
            (leaf,) = plan.sources[tap.variables[0]]
            squares[leaf] = _norm(rows, out)
            products.append((tap.matrix.fold, tap.variables[0], leaf, rows, out))
            continue
        for variable, rows in zip(tap.variables, _each(tap, x, g), strict=True):
            pulled = jax.vmap(plan.pull(variable, leaves))(rows)
            for leaf, row in pulled.items():
                before = gradients[leaf]
                gradients[leaf] = row if before is None else before + row
    for leaf, rows in enumerate(gradients):
        if rows is not None:
            squares[leaf] = jnp.sum(jnp.square(rows).reshape(len(rows), -1), 1)

    weights = weigh(squares)
    total = [jnp.zeros(x.shape, jnp.float32) for x in leaves]
    for leaf, rows in enumerate(gradients):
        if rows is not None:  # a matrix product: XLA:CPU sums over rows far slower
            flat = rows.reshape(len(rows), -1)
            total[leaf] = _dot(weights[leaf], flat).reshape(rows.shape[1:])
    for fold, variable, leaf, rows, out in products:
        weighted = out * weights[leaf][:, None, None]
        flat = lambda x: x.reshape(-1, x.shape[-1])
        gradient = fold(_dot(flat(rows).T, flat(weighted)))
        total[leaf] = plan.pull(variable, leaves)(gradient)[leaf]
    return jax.tree.unflatten(tree, total)


def explain(loss: Callable, params: PyTree, example: tuple) -> dict[str, str]:
    """How each parameter's norm is found: "" where no per-example gradient is made.

    Otherwise the operation for whose sake it is, such as "mul" for the scale of a
    normalisation, or a reason. `example` has no leading axis.
    """
    plan = plan_of(loss, params, example)
    paths, _ = jax.tree.flatten_with_path(params)
    found: dict[int, str] = {}
    for tap in plan.taps:
        for leaf in set().union(*(plan.sources[v] for v in tap.variables)):
            why = tap.eqn.primitive.name
            if tap.ghost:
                why = ""
            elif tap.matrix and plan.uses[leaf] > 1:
                why = f"{why} of a shared parameter"
            elif tap.matrix and not tap.matrix.cheap:
                why = f"{why} at many places"
            found[leaf] = "; ".join(filter(None, (found.get(leaf, ""), why)))
    name = lambda path: jax.tree_util.keystr(path)
    return {name(path): found.get(i, "unused") for i, (path, _) in enumerate(paths)}


def _pass(plan: Plan, shared: dict, examples: list) -> tuple[list, list]:
    """Forward and backward through a batch: the taps' data, their cotangents."""
    size = len(examples[0])
    start = len(plan.jaxpr.jaxpr.invars) - len(examples)
    tapped = {id(tap.eqn): i for i, tap in enumerate(plan.taps)}
    # inside shard_map what a device differentiates by must be its own: see engines
    sign = shared[plan.jaxpr.jaxpr.invars[0]].ravel()[0] > 0
    zero = jnp.where(sign, 0.0, 0.0)
    probes = [
        [
            jnp.zeros((size, *v.aval.shape), v.aval.dtype) + zero.astype(v.aval.dtype)
            for v in outputs(tap.eqn)
        ]
        for tap in plan.taps
    ]

    def forward(probes):
        values = dict(zip(plan.jaxpr.jaxpr.invars[start:], examples, strict=True))
        known = ChainMap(values, shared)
        inputs: list[Any] = [None] * len(probes)

        for eqn in plan.after:
            rows = [read(known, atom) for atom in eqn.invars]
            axes = [
                None if isinstance(v, core.Literal) or v not in values else 0
                for v in eqn.invars
            ]
            out = jax.vmap(lambda *x, eqn=eqn: run(eqn, x), axes)(*rows)
            if id(eqn) in tapped:
                i = tapped[id(eqn)]
                inputs[i] = rows
                added = iter(probes[i])
                out = [
                    x + next(added) if floating(v.aval) else x
                    for x, v in zip(out, eqn.outvars, strict=True)
                ]
            values.update(zip(eqn.outvars, out, strict=True))
        return jnp.sum(values[plan.jaxpr.jaxpr.outvars[0]]), inputs

    cotangents, inputs = jax.grad(forward, has_aux=True)(probes)
    return inputs, cotangents


def _each(tap: Tap, inputs: list, cotangents: list) -> list[Array]:
    """The per-example cotangents of a tap's parameters, in float32."""
    if tap.matrix is not None:
        rows, out = tap.matrix.rows(inputs), tap.matrix.out(cotangents[0])
        each = jnp.einsum("btk,btd->bkd", rows, out, precision="highest")
        return [jax.vmap(tap.matrix.fold)(each)]

    def one(rows, cotangents):
        atoms = dict(enumerate(inputs)) | dict(zip(tap.data, rows, strict=True))

        def mixed(*shared):
            mine = atoms | dict(zip(tap.places, shared, strict=True))
            out = exact(tap.eqn, [mine[i] for i in range(len(inputs))])
            return [
                x.astype(jnp.float32)
                for x, v in zip(out, tap.eqn.outvars, strict=True)
                if floating(v.aval)
            ]

        shared = [inputs[i].astype(jnp.float32) for i in tap.places]
        return jax.vjp(mixed, *shared)[1]([g.astype(jnp.float32) for g in cotangents])

    return list(jax.vmap(one)([inputs[i] for i in tap.data], cotangents))


def _norm(rows: Array, out: Array) -> Array:
    """||rows_i^T out_i||^2 of each example, never too small by rounding."""
    size = jnp.sum(rows**2, 2), jnp.sum(out**2, 2)
    if rows.shape[1] == 1:
        return size[0][:, 0] * size[1][:, 0]
    gram = [jnp.einsum("btk,bsk->bts", x, x, precision="highest") for x in (rows, out)]
    bound = jnp.sum(jnp.sqrt(size[0] * size[1]), 1) ** 2  # of the sum's terms
    return jnp.sum(gram[0] * gram[1], (1, 2)) + 1e-6 * bound


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
