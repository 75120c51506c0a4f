"""Where private data flow in a program: loops, branches, calls; and what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ppds_jax.privacy.flow import program, replay
from ppds_jax.privacy.mechanisms import gaussian_release
from ppds_jax.types import InputError

KEY = jax.random.key(0)
SECRET, PUBLIC = jnp.arange(4.0), jnp.ones(4)


def noisy(key, x):
    return gaussian_release(key, x, sensitivity=1.0, noise_multiplier=2.0)


def leaks(fn, *args, private=(0,)):
    return program(fn, private, *args).leaks


@pytest.mark.parametrize(
    ("name", "fn", "expected"),
    [
        ("plain", lambda s, p: {"a": s + p, "b": p}, ["['a']"]),
        ("released", lambda s, p: noisy(KEY, s) + p, []),
        ("beside a release", lambda s, p: noisy(KEY, s) + s, ["output"]),
        ("call", lambda s, p: jax.jit(lambda x: x * 2)(s), ["output"]),
        (
            "branch on a secret",
            lambda s, p: lax.cond(s[0] > 0, lambda: p, lambda: -p),
            ["output"],
        ),
        (
            "branch on something public",
            lambda s, p: lax.cond(p[0] > 0, lambda: p, lambda: -p),
            [],
        ),
        (
            "loop that runs as often as a secret says",
            lambda s, p: lax.while_loop(lambda i: i < s[0], lambda i: i + 1, p[0]),
            ["output"],
        ),
        (
            "loop that runs as often as something public says",
            lambda s, p: lax.while_loop(lambda i: i < 5, lambda i: i + 1, p[0]),
            [],
        ),
        (
            "carried to the next round but one",
            lambda s, p: lax.scan(
                lambda c, _: ((s[0], c[0], c[1]), c[2]), (p[0], p[0], p[0]), length=9
            )[1],
            ["output"],
        ),
        (
            "carried beside a secret",
            lambda s, p: lax.scan(lambda c, x: (c + 1, x), p[0], s)[0],
            [],
        ),
        ("vmap", lambda s, p: jax.vmap(lambda x, y: y)(s, p), []),
        ("gradient", lambda s, p: jax.grad(lambda y: (y * s).sum())(p), ["output"]),
        ("rematerialised", lambda s, p: jax.checkpoint(jnp.sin)(s), ["output"]),
        ("only its shape", lambda s, p: jnp.zeros(s.shape), []),
    ],
)
def test_what_private_data_reach(name, fn, expected):
    assert leaks(fn, SECRET, PUBLIC) == expected


def test_releases_are_counted_through_scans_and_calls():
    def run(s):
        def step(carry, key):
            return carry + noisy(key, s), None

        out, _ = lax.scan(step, jnp.zeros(4), jax.random.split(KEY, 7))
        return out + jax.jit(noisy)(KEY, s)

    found = program(run, (0,), SECRET)
    assert found.leaks == []
    assert sorted(times for _, times in found.mechanisms) == [1, 7]
    _, accesses = found.run(SECRET)
    assert sorted(a.statistic.shape for a in accesses) == [(4,), (7, 4)]


@pytest.mark.parametrize("kind", ["while", "cond"])
def test_a_release_that_cannot_be_counted_is_refused(kind):
    def run(s):
        if kind == "cond":
            return lax.cond(True, lambda: noisy(KEY, s), lambda: jnp.zeros(4))
        return lax.while_loop(
            lambda x: x[0] < 9, lambda x: x + 1 + 0 * noisy(KEY, s), jnp.zeros(4)
        )

    with pytest.raises(InputError, match="an unknown number of times"):
        program(run, (0,), SECRET)


def test_a_replay_sees_the_releases_of_another_run():
    def run(s):
        first = noisy(KEY, s)
        return noisy(jax.random.key(1), s * first.sum())

    given = [jnp.full(4, 2.0), jnp.full(4, 3.0)]
    first, second = replay(run)(given, SECRET)
    np.testing.assert_array_equal(first.statistic, SECRET)
    np.testing.assert_array_equal(second.statistic, SECRET * 8.0)
