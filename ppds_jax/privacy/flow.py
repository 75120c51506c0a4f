"""What a traced program does with private data: where they flow, what it releases.

Works on jaxprs, so on any function, and looks at all of it: no statistics.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend import core
from jaxtyping import Array

from ppds_jax.jaxprs import (
    INLINE,
    Rule,
    bodies,
    closed,
    contains,
    evaluate,
    scan_inputs,
)
from ppds_jax.privacy.release import NAME, Mechanism
from ppds_jax.types import InputError, PyTree


class Access(NamedTuple):
    """One marked release: leading axes are those of the scans that it stands in."""

    statistic: Array
    released: Array


class Program(NamedTuple):
    """A traced function.

    Attributes:
      leaks: the names of outputs that private data reach other than by a release.
      mechanisms: each marked release, and how often it runs.
      constants: the arrays that the function closes over.
      run: the compiled function (args) -> (output, list of Access).
    """

    leaks: list[str]
    mechanisms: list[tuple[Mechanism, int]]
    constants: list[Array]
    run: Callable[..., tuple[PyTree, list[Access]]]


def program(fn: Callable, private: tuple[int, ...], *args: Any) -> Program:
    """Traces `fn(*args)`, in which the arguments at `private` are secret.

    Raises:
      InputError: a release within a loop of unknown length or a branch: what it costs
        cannot be counted.
    """
    jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    secret = [i in private for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)]
    tainted = _taint(jaxpr.jaxpr, secret)
    paths, _ = jax.tree.flatten_with_path(shape)
    names = [jax.tree_util.keystr(path) or "output" for path, _ in paths]
    leaks = [name for name, bad in zip(names, tainted, strict=True) if bad]
    return Program(leaks, _count(jaxpr.jaxpr), jaxpr.consts, jax.jit(collect(fn)))


def collect(fn: Callable, rules: dict[str, Rule] | None = None) -> Callable:
    """`fn`, which returns besides its output a list with an Access for each release.

    `rules` replace further operations, as for `jaxprs.reinterpret`.
    """

    def wrapped(*args):
        return _evaluated(fn, args, rules or {}, None)

    return wrapped


def replay(fn: Callable) -> Callable:
    """(released, *args): `fn` with its releases replaced by those of another run.

    So each release of an adaptive run can be compared between neighbouring data sets,
    given the same releases before it. Returns the list of Access.
    """

    def wrapped(released, *args):
        return _evaluated(fn, args, {}, list(released))[1]

    return wrapped


def _evaluated(fn, args, rules: dict[str, Rule], given: list | None):
    jaxpr, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    found: list[Access] = []
    every = _recorder(found, rules, given)
    out = evaluate(jaxpr.jaxpr, jaxpr.consts, every, *jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), out), found


def _recorder(found: list[Access], rules: dict[str, Rule], given: list | None):
    """Rules that note each release, and let `given` values take its place."""

    def mark(eqn, inputs):
        found.append(Access(*inputs))
        return [inputs[1] if given is None else given.pop(0)]

    def scan(eqn, inputs):
        p, body = eqn.params, eqn.params["jaxpr"]
        fixed, carried = scan_inputs(p)
        consts, rows = inputs[:fixed], inputs[fixed + carried :]
        carry = inputs[fixed : fixed + carried]
        inside = None
        if given is not None:
            size = len(_count(body.jaxpr))
            inside, given[:size] = given[:size], []

        def step(carry, row):
            row, given = row
            nested: list[Access] = []
            inner = _recorder(nested, rules, None if given is None else list(given))
            out = evaluate(body.jaxpr, body.consts, inner, *consts, *carry, *row)
            return out[: len(carry)], (out[len(carry) :], nested)

        carry, (rows, nested) = lax.scan(
            step, carry, (rows, inside), length=p["length"], reverse=p["reverse"]
        )
        found.extend(nested)
        return [*carry, *rows]

    return {**rules, NAME: mark, "scan": scan}


def _count(jaxpr: core.Jaxpr) -> list[tuple[Mechanism, int]]:
    found = []
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == NAME:
            found.append((eqn.params["mechanism"], 1))
        for body in bodies(eqn):
            if name == "scan" or name in INLINE:
                times = eqn.params.get("length", 1) if name == "scan" else 1
                found += [(m, n * times) for m, n in _count(body.jaxpr)]
            elif contains(body.jaxpr, NAME):
                raise InputError(
                    f"release: stands within {name!r}, which runs it an unknown number "
                    "of times; use a scan of fixed length"
                )
    return found


def _taint(jaxpr: core.Jaxpr, secret: list[bool]) -> list[bool]:
    """Which outputs depend on secret inputs, where a release cuts the dependence."""
    known: dict[Any, bool] = dict(zip(jaxpr.invars, secret, strict=True))
    read = lambda atom: not isinstance(atom, core.Literal) and known.get(atom, False)
    for eqn in jaxpr.eqns:
        values = _outputs(eqn, [read(atom) for atom in eqn.invars])
        known.update(zip(eqn.outvars, values, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _outputs(eqn: Any, secret: list[bool]) -> list[bool]:
    name, p = eqn.primitive.name, eqn.params
    if name == NAME:
        return [False]
    if name == "scan":
        return _scan(p["jaxpr"], secret, *scan_inputs(p))
    if name == "while":
        test, body = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
        carried = _scan(
            p["body_jaxpr"], secret[test:], p["body_nconsts"], len(secret) - body
        )
        return _hidden(p["cond_jaxpr"], secret[:test] + carried, carried)
    if name == "cond":
        branches = [_taint(b.jaxpr, secret[1:]) for b in p["branches"]]
        either = [any(values) for values in zip(*branches, strict=True)]
        return [True] * len(either) if secret[0] else either
    inner = bodies(eqn)
    if name in INLINE:
        return _taint(closed(p[INLINE[name]]).jaxpr, secret)
    if len(inner) == 1 and len(inner[0].jaxpr.invars) == len(secret):
        return _taint(inner[0].jaxpr, secret)  # shard_map, checkpoint
    return [any(secret)] * len(eqn.outvars)


def _scan(body: Any, secret: list[bool], consts: int, carry: int) -> list[bool]:
    """A loop's outputs: what is carried is secret as soon as one round makes it so."""
    fixed, carried = secret[:consts], secret[consts : consts + carry]
    rows = secret[consts + carry :]
    while True:
        out = _taint(body.jaxpr, fixed + carried + rows)
        after = [a or b for a, b in zip(carried, out[:carry], strict=True)]
        if after == carried:
            return after + out[carry:]
        carried = after


def _hidden(test: Any, secret: list[bool], carried: list[bool]) -> list[bool]:
    """How often a loop runs tells what its condition depends on."""
    return [True] * len(carried) if any(_taint(test.jaxpr, secret)) else carried
