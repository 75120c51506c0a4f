"""Programs as data: run a traced function anew, with some of its operations changed."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core

# calls that only name a part of the program: read through, they leave no trace
INLINE = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
INLINE |= {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}

Rule = Callable[..., list]


def reinterpret(fn: Callable, rules: Mapping[str, Rule]) -> Callable:
    """`fn` with each operation that a rule names done by the rule instead.

    A rule is (equation, inputs) -> outputs, traced like any function. Bodies of loops
    and branches are entered, calls are inlined.
    """

    def wrapped(*args):
        closed, out_shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        out = evaluate(closed.jaxpr, closed.consts, rules, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out_shape), out)

    return wrapped


def evaluate(
    jaxpr: core.Jaxpr, consts: Any, rules: Mapping[str, Rule], *args: Any
) -> list:
    """Runs a jaxpr under `rules`."""
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        name, params = eqn.primitive.name, eqn.params
        if name in rules:
            outputs = rules[name](eqn, inputs)
        elif name in INLINE:
            inner = closed(params[INLINE[name]])
            outputs = evaluate(inner.jaxpr, inner.consts, rules, *inputs)
        else:
            outputs = bind(eqn, inputs, rules)
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def scan_inputs(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many inputs of a scan are constants, and how many are carried."""
    if "ft_in" in params:  # from jax 0.12 on
        consts, carry, _ = params["ft_in"].unpack()
        return len(list(consts)), len(list(carry))
    return params["num_consts"], params["num_carry"]


def bind(eqn: Any, inputs: list, rules: Mapping[str, Rule]) -> list:
    """One operation as it is, with the bodies of loops and branches under `rules`."""
    params = {key: _rewrite(value, rules) for key, value in eqn.params.items()}
    params = eqn.primitive.get_bind_params(params)
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def closed(jaxpr: Any) -> core.ClosedJaxpr:
    """A jaxpr without constants as one with an empty list of them."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        return jaxpr
    return core.ClosedJaxpr(jaxpr, ())


def bodies(eqn: Any) -> list[core.ClosedJaxpr]:
    """The programs within an equation: bodies of loops, branches and calls."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, (core.ClosedJaxpr, core.Jaxpr)):
                found.append(closed(item))
    return found


def contains(jaxpr: core.Jaxpr, name: str) -> bool:
    """Whether an operation of this name occurs in a program, at any depth."""
    return any(
        eqn.primitive.name == name
        or any(contains(inner.jaxpr, name) for inner in bodies(eqn))
        for eqn in jaxpr.eqns
    )


def largest(jaxpr: core.Jaxpr) -> int:
    """Bytes of the largest array that a program makes, at any depth."""
    found = [0]
    for eqn in jaxpr.eqns:
        found += [largest(body.jaxpr) for body in bodies(eqn)]
        kinds: list[Any] = [x.aval for x in eqn.outvars]
        found += [math.prod(kind.shape) * kind.dtype.itemsize for kind in kinds]
    return max(found)


def _rewrite(value: Any, rules: Mapping[str, Rule]) -> Any:
    if isinstance(value, core.ClosedJaxpr) and hasattr(value, "in_avals"):
        shapes = [
            jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
            for aval in value.in_avals
        ]
        body = lambda *args: evaluate(value.jaxpr, value.consts, rules, *args)
        return jax.make_jaxpr(body)(*shapes)
    if isinstance(value, core.Jaxpr):  # of `jax.checkpoint`; it has no constants
        made = _rewrite(closed(value), rules)
        return value if made.consts else made.jaxpr
    if isinstance(value, tuple) and any(isinstance(v, core.ClosedJaxpr) for v in value):
        return tuple(_rewrite(item, rules) for item in value)
    return value
