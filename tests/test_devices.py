"""Shadow models over devices and within memory: the same results, however they lie."""

import re
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppds_jax import devices, mapping
from ppds_jax.classifiers import CNN
from ppds_jax.devices import Layout
from ppds_jax.fit import fit
from ppds_jax.mapping import map_shadows
from ppds_jax.types import InputError
from tests.conftest import BUDGET, DIGITS

SHARED = np.linspace(0, 1, 60, dtype=np.float32).reshape(20, 3)


def one(shared, row):
    """A little training: a few steps of gradient descent on a masked data set."""
    key, member = row
    w = jax.random.normal(key, (3,))

    def loss(w):
        miss = jnp.tanh(devices.spread(shared) @ w) - 0.5
        return (miss**2 * member).sum()

    def step(w, _):
        return w - 0.1 * jax.grad(loss)(w), None

    return jax.lax.scan(step, w, None, length=10)[0]


def rows(count, some=slice(None)):
    """Keys and membership of `count` models, or of some of them."""
    member = np.arange(20) % (2 + np.arange(count)[:, None]) == 0
    keys = jax.random.split(jax.random.key(0), count)
    return keys[some], jnp.asarray(member, jnp.float32)[some]


LAYOUTS = {
    "map": Layout("map"),
    "vmap in chunks": Layout("vmap", at_once=2),
    "map on 4 devices": Layout("shard-map"),
    "vmap on 4 devices": Layout("shard-vmap"),
    "chunks of vmap on 2 devices": Layout("shard-vmap", (2, 1), at_once=1),
    "map on 2 by 2 devices": Layout("shard-map", (2, 2)),
    "vmap on 2 by 2 devices": Layout("shard-vmap", (2, 2)),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("count", [1, 5])
def test_any_number_of_rows_on_any_layout(layout, count):
    together = map_shadows(one, layout)(SHARED, rows(count))
    alone = [jax.jit(one)(SHARED, rows(count, i)) for i in range(count)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


@pytest.mark.parametrize("inner", ["map", "vmap"])
def test_one_and_four_devices_agree_to_the_bit_at_the_same_width(inner):
    at_once = 2 if inner == "vmap" else None
    single = map_shadows(one, Layout(inner, at_once=at_once))
    spread = map_shadows(one, Layout(f"shard-{inner}", (4, 1), at_once))
    parts = [single(SHARED, rows(8, slice(i, i + 2))) for i in range(0, 8, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), spread(SHARED, rows(8)))


@pytest.mark.parametrize("mode", ["shard-map", "shard-vmap"])
def test_networks_agree_to_the_bit_on_one_and_four_devices(mode, digits):
    """By the same mapper, one model on each device."""
    method = CNN(width=4, hidden=8, epochs=1, pool=True).make(DIGITS, BUDGET)

    def shadow(data, row):
        return fit(row[0], method, data._replace(member=row[1]))[0].params

    keys = jax.random.split(jax.random.key(0), 4)
    models = keys, jax.random.bernoulli(keys[0], 0.5, (4, digits.label.size))
    at_once = 1 if mode == "shard-vmap" else None
    spread = map_shadows(shadow, Layout(mode, (4, 1), at_once))(digits, models)
    single = map_shadows(shadow, Layout(mode, (1, 1), at_once))(digits, models)
    jax.tree.map(np.testing.assert_array_equal, single, spread)


def test_rows_of_different_lengths_are_refused():
    both = lambda shared, row: row[0] + row[1]
    with pytest.raises(InputError, match=r"rows of lengths \[3, 4\]"):
        map_shadows(both, "vmap", at_once=2)((), (jnp.ones(4), jnp.ones(3)))
    with pytest.raises(InputError, match="rows hold a scalar"):
        map_shadows(both, "vmap")((), (jnp.ones(4), 1.0))
    with pytest.raises(InputError, match=r"lengths \[\]"):
        map_shadows(both, "vmap")((), ())


COLLECTIVE = (
    r".* (?:all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)


def collectives(layout):
    text = map_shadows(one, layout).program(SHARED, rows(4)).as_text()
    return re.findall(COLLECTIVE + ".*", text)


@pytest.mark.parametrize("mode", ["shard-map", "shard-vmap"])
def test_shadows_never_talk_to_each_other(mode):
    assert collectives(Layout(mode)) == []
    found = collectives(Layout(mode, (2, 2)))
    assert found, "the batch was not spread over the data axis"
    for line in found:  # devices 0 and 1 hold one shadow, 2 and 3 another
        assert re.search(
            r"replica_groups=(\[2,2\]<=\[4\](?!T)|\{\{0,1\},\{2,3\}\})", line
        )


def test_a_collective_on_several_arrays_would_be_seen():
    mesh = jax.make_mesh((4,), ("shadow",), axis_types=(jax.sharding.AxisType.Auto,))
    both = jax.shard_map(
        lambda a, b: jax.lax.psum((a, b), "shadow"),
        mesh=mesh,
        in_specs=jax.P("shadow"),
        out_specs=jax.P(),
    )
    text = jax.jit(both).lower(jnp.ones((4, 3)), jnp.ones((4, 2, 2))).compile()
    assert re.findall(COLLECTIVE, text.as_text())


def test_shadows_of_a_network_never_talk_to_each_other(digits):
    """And no slow convolution is left in what is compiled."""
    method = CNN(width=4, hidden=8, epochs=1, pool=True).make(DIGITS, BUDGET)

    def shadow(data, row):
        return fit(row[0], method, data._replace(member=row[1]))[0]

    member = jnp.ones((4, digits.label.size), bool)
    keys = jax.random.split(jax.random.key(0), 4)
    text = map_shadows(shadow, "shard-map").program(digits, (keys, member)).as_text()
    assert not re.findall(COLLECTIVE, text)
    found = set(re.findall(r"dim_labels=(\S+?)(?:,|\s|$)", text))
    assert found <= {"b01f_01io->b01f"}


def test_rows_that_do_not_fit_go_in_chunks(monkeypatch):
    free = {"bytes": np.inf}
    monkeypatch.setattr(Layout, "free", lambda self, held: free["bytes"])
    mapped = map_shadows(one, "vmap", memory=10**9)
    whole = mapped(SHARED, rows(16))
    needs = [mapped._need(SHARED, rows(16), chunk)[0] for chunk in (1, 5, 16)]
    assert needs == sorted(needs)
    results = 2 * 20 * whole[0].nbytes  # kept, and joined; a call's last rows repeat
    free["bytes"] = needs[1] + results
    assert mapped.chunk(SHARED, rows(16)) == 16, "what is decided holds"
    small = map_shadows(one, "vmap", memory=10**9)
    assert small.chunk(SHARED, rows(16)) in (4, 5)
    np.testing.assert_allclose(small(SHARED, rows(16)), whole, atol=1e-5)
    free["bytes"] = needs[0] - 1
    with pytest.raises(InputError, match=r"memory=1GB: a shadow model on each of 1"):
        map_shadows(one, "vmap", memory=10**9)(SHARED, rows(16))


def test_few_are_compiled_to_learn_what_many_would_take(monkeypatch):
    """All 4,096 would be far too many: their program is never asked for."""
    free = {"bytes": np.inf}
    monkeypatch.setattr(Layout, "free", lambda self, held: free["bytes"])
    mapped, asked = map_shadows(one, "vmap"), []
    need, result = mapped._need(SHARED, rows(20), 20)
    free["bytes"] = need + 2 * 4096 / 20 * result
    compiled = mapped.program
    monkeypatch.setattr(
        mapped,
        "program",
        lambda *args: asked.append(len(args[1][0])) or compiled(*args),
    )
    assert 10 <= mapped.chunk(SHARED, rows(4096)) <= 30
    assert asked[0] == 8
    assert max(asked) <= 40


def test_results_of_all_calls_count_as_memory(monkeypatch):
    def copies(shared, row):
        return row * jnp.ones(10_000)

    mapped = map_shadows(copies, "vmap", memory=10**9)
    need, _ = mapped._need(0.0, jnp.ones(8), 8)
    monkeypatch.setattr(Layout, "free", lambda self, held: 3 * need)
    assert mapped.chunk(0.0, jnp.ones(16)) == 16
    with pytest.raises(InputError, match="of results"):
        mapped(0.0, jnp.ones(200))
    assert 8 < mapped.chunk(0.0, jnp.ones(200), joined=False) <= 24
    assert mapped.chunk(0.0, jnp.ones(200), need / 8, joined=False) <= 12
    with pytest.raises(InputError, match="no rows"):
        mapped(0.0, jnp.ones(0))


def test_where_compiling_runs_out_of_memory_fewer_go_at_once(monkeypatch):
    mapped = map_shadows(one, "vmap")
    compiled = mapped.program

    def program(shared, part):
        if len(part[0]) > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: planted")
        return compiled(shared, part)

    monkeypatch.setattr(mapped, "program", program)
    with pytest.warns(RuntimeWarning, match="compiling for 8 shadow models"):
        found = mapped(SHARED, rows(8))
    assert mapped.used == 2
    np.testing.assert_allclose(found, map_shadows(one, "vmap")(SHARED, rows(8)))


def test_a_model_that_fills_the_device_is_trained_on_its_own(monkeypatch):
    monkeypatch.setattr("ppds_jax.devices.default_mode", lambda: "vmap")
    assert map_shadows(one).chunk(SHARED, rows(4)) == 4
    monkeypatch.setattr(mapping, "FILLS", 8)
    assert map_shadows(one).chunk(SHARED, rows(4)) == 1
    assert map_shadows(one, "vmap").chunk(SHARED, rows(4)) == 4, "as it was asked for"
    assert map_shadows(one, steps=False).chunk(SHARED, rows(4)) == 4
    assert map_shadows(one, at_once=3).chunk(SHARED, rows(4)) == 2, "and here too"
    np.testing.assert_allclose(
        map_shadows(one)(SHARED, rows(4)),
        map_shadows(one, "vmap")(SHARED, rows(4)),
        atol=1e-5,
    )


def test_what_is_in_use_already_counts_on_a_cpu():
    with pytest.raises(InputError, match=r"memory=0.001GB.*0 GB are left"):
        map_shadows(one, "map", memory=10**6)(SHARED, rows(2))


@pytest.mark.parametrize("mode", ["map", "shard-map", "shard-vmap"])
def test_arguments_that_lie_there_are_counted_once(mode, monkeypatch):
    """On a CPU the process's memory has them, and the compiler counts them as well."""
    fn = lambda shared, row: shared[:3].sum() + row
    layout = Layout(mode, memory=10**9)
    given = map_shadows(fn, layout)
    shared = given._put(jnp.ones(10**6), "everywhere")
    row = given._put(jnp.ones((4, 10**5)), "rows")
    copies = layout.shape[0]
    monkeypatch.setattr(
        devices, "_resident", lambda: copies * shared.nbytes + row.nbytes
    )
    beside = copies * (given._need(shared, row, 4)[0] - shared.nbytes) - row.nbytes
    assert 0 < beside < row.nbytes + 10**5, "results, and little else"
    memory = int(devices._resident() + devices.SPARE + beside)
    assert map_shadows(fn, Layout(mode, memory=memory + 9))(shared, row).size
    with pytest.raises(InputError, match="memory="):
        map_shadows(fn, Layout(mode, None, None, memory - 9))(shared, row)


def test_on_an_accelerator_what_others_hold_is_not_free(monkeypatch):
    class Device:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 300}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert Layout("map").free() == 600
    assert Layout("map").free(held=200) == 800
    assert Layout("map").free(held=400) == 900
    assert Layout("map", memory=500).free(held=200) == 400


def test_where_memory_runs_out_half_as_many_go_on_and_it_is_said(monkeypatch):
    asked = []
    compiled = mapping.Mapped.program

    def program(self, shared, part):
        made, count = compiled(self, shared, part), len(part[0])

        class Greedy:
            memory_analysis = made.memory_analysis

            def __call__(self, *args):
                asked.append(count)
                if count > 2:
                    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")
                return made(*args)

        return Greedy()

    monkeypatch.setattr(mapping.Mapped, "program", program)
    mapped = map_shadows(one, "vmap")
    with pytest.warns(
        RuntimeWarning, match=r"out of memory with .* going on with"
    ) as w:
        mapped(SHARED, rows(7))
    said = [str(x.message) for x in w if "out of memory" in str(x.message)]
    assert [text.split()[-1] for text in said] == ["3", "1"]
    assert asked[:3] == [7, 3, 1]
    asked.clear()
    mapped(SHARED, rows(7))
    assert asked == [1] * 7, "what was learnt about memory is kept"


def test_one_row_that_does_not_fit_is_not_hidden():
    def fails(shared, row):
        return jnp.broadcast_to(row, (2**22, 2**22)).cumsum(0)  # 64 TiB

    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        map_shadows(fails, "map")(1.0, jnp.ones(1))


def test_work_side_by_side_has_a_device_each_and_keeps_its_order():
    meet = threading.Barrier(4, timeout=60)  # passed by four at once only

    def work(item):
        meet.wait()
        return item, jax.jit(jnp.sin)(1.0).device

    found = devices.side_by_side(work, range(8))
    assert [item for item, _ in found] == list(range(8))
    for four in (found[:4], found[4:]):
        assert {device for _, device in four} == set(jax.local_devices())


def test_nothing_is_begun_after_a_failure():
    """Even where one that was begun earlier is still at work."""
    begun, failed = [], threading.Event()

    def work(item):
        begun.append(item)
        if item == 1:
            failed.set()
            raise InputError(f"item {item}")
        if item == 0:
            failed.wait(60)
        time.sleep(0.05)

    with pytest.raises(InputError, match="item 1"):
        devices.side_by_side(work, range(400))
    assert len(begun) < 100


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"mode": "pmap"}, "mode='pmap': use one of auto, map"),
        ({"mode": "vmap", "mesh": (2, 1)}, "for a mesh, shard-vmap"),
        ({"mode": "map", "at_once": 2}, "at_once=2: mode='map' trains models in turn"),
    ],
)
def test_wrong_layouts_are_refused(layout, message):
    with pytest.raises(InputError, match=message):
        Layout(**layout)


def test_more_simulated_devices_than_a_machine_bears_are_refused():
    with pytest.raises(InputError, match=r"mesh: 20,000 devices on \d+ cores"):
        devices.prepare(Layout("shard-map", (20_000, 1)))


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    """Of a group and of those around it; files that are only cached do not count."""
    job = tmp_path / "groups" / "job"
    (job / "step").mkdir(parents=True)
    limits = {job: (3_000, 2_000, 400), job / "step": ("max", 1_500, 0)}
    for folder, (limit, used, cached) in limits.items():
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cached}\n")
    (tmp_path / "mine").write_text("0::/job/step\n")
    monkeypatch.setattr(devices, "GROUP", tmp_path / "mine")
    monkeypatch.setattr(devices, "GROUPS", tmp_path / "groups")
    assert Layout("map").free() == pytest.approx(0.8 * 1_400)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(InputError, match=r"mesh=shadow=8,data=2: asks for 16"):
        map_shadows(one, Layout("shard-map", (8, 2)))(SHARED, rows(2))


# Shadow models of about 100 MB, of which 32 together would need 3 GB.
WITHIN = """
import sys
import jax, jax.numpy as jnp
from ppds_jax.devices import Layout
from ppds_jax.mapping import map_shadows

def one(shared, key):
    w = jax.random.normal(key, (64, 4000))
    loss = lambda w: (jnp.tanh(shared @ w) ** 2).mean()
    return jax.grad(loss)(w).sum()

count, limit = int(sys.argv[1]), int(sys.argv[2])
shared, keys = jnp.ones((3000, 64)), jax.random.split(jax.random.key(0), count)
layout = Layout("vmap", memory=limit)
mapped = map_shadows(one, layout)
whole = map_shadows(one, layout)._need(shared, keys, count)[0]
assert mapped(shared, keys).shape == (count,)
status = open("/proc/self/status").read()  # of this program alone
peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
print(peak, whole)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_under_its_limit_however_many_models():
    limit, needs = 900_000_000, {}
    for count in (4, 32):
        command = [sys.executable, "-c", WITHIN, str(count), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        peak, needs[count] = map(float, done.stdout.split())
        assert peak < limit
    assert needs[32] > limit, "too little work for the limit to matter"


def test_threads_run_their_own_programs():
    """In a process of its own: it must be said before JAX starts."""
    program = """
import jax
from ppds_jax import devices
devices.prepare(threads=True)
def work(count):
    x = jax.numpy.ones((count, count))
    return float(jax.numpy.linalg.eigh(x)[0].max()), jax.numpy.zeros(1).devices()
found = devices.side_by_side(work, [200, 300, 400, 500])
assert [round(largest) for largest, _ in found] == [200, 300, 400, 500]
assert jax.config.values["jax_cpu_enable_async_dispatch"] is False
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
