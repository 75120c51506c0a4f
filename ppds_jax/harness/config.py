"""Configs: their identity, and how a command line becomes one.

A config is a frozen dataclass that changes the result; its identity is a hash over its
values and over the source of the code that it runs. What does not change the result
(where to work, how to map) is `Runtime`.
"""

import ast
import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

import ppds_jax
from ppds_jax.devices import Layout, Mode
from ppds_jax.harness import hosts, signals, words
from ppds_jax.harness.source import code
from ppds_jax.types import InputError


class _Refused(Exception):
    """An InputError on its way through tyro."""


def _word(parse: Callable[[str], Any], show: Callable[[Any], str], metavar: str) -> Any:
    """A tyro annotation: one word, read by `parse`."""

    def checked(given: list[str]) -> Any:
        try:
            return parse(given[0])
        except InputError as error:  # tyro would fold a ValueError into a box
            raise _Refused(str(error)) from error

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=checked,
        is_instance=lambda value: value is not None,
        str_from_instance=lambda value: [show(value)],
    )


_Mesh = Annotated[
    tuple[int, int], _word(words.mesh, words.mesh_text, "shadow=N[,data=N]")
]
_Memory = Annotated[int, _word(words.memory, str, "BYTES")]


@dataclasses.dataclass(frozen=True)
class Runtime:
    """How an experiment runs; none of it changes the result beyond float rounding.

    On SLURM and on TPU pods `--distributed` is all that a process must be told; else
    also `--coordinator HOST:PORT --num-processes N --process-id I`, where I counts from
    0 and HOST is that of process 0, as in `localhost:12345` for several on one machine.

    Attributes:
      work_dir: where runs are kept; of a distributed run, common to all hosts.
      mode: how shadow models are mapped (see `ppds_jax.devices.Layout`).
      mesh: devices of each process, as shadow=4,data=2; by default all along the first.
      at_once: shadow models in one vmap on each device; by default what fits.
      memory: what may be in use, as 4GB: by the process on a CPU, else on each device.
      checkpoint_every: seconds of training between two checkpoints of the models in
        training; 0 writes one after each chunk of steps.
      distributed: this is one of several processes that share the work.
      coordinator: host and port on which process 0 listens.
      num_processes: of the distributed run.
      process_id: which of them this one is.
    """

    work_dir: Path = Path("runs")
    mode: Mode = "auto"
    mesh: _Mesh | None = None
    at_once: int | None = None
    memory: _Memory | None = None
    checkpoint_every: float = 60.0
    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @functools.cached_property
    def layout(self) -> Layout:
        """How shadow models lie on the devices of this process."""
        return Layout(self.mode, self.mesh, self.at_once, self.memory)

    def __post_init__(self) -> None:
        _ = self.layout  # checks it
        if not self.checkpoint_every >= 0:
            raise InputError(
                f"checkpoint_every={self.checkpoint_every}: seconds, at least 0"
            )
        named = ("coordinator", "num_processes", "process_id")
        given = [name for name in named if getattr(self, name) is not None]
        if given and (not self.distributed or len(given) < len(named)):
            raise InputError(
                f"{', '.join(given)}: give all of distributed, {', '.join(named)}, or "
                "distributed alone on SLURM and TPU pods"
            )
        if self.coordinator and not re.fullmatch(r".+:\d+", self.coordinator):
            raise InputError(f"coordinator={self.coordinator!r}: write HOST:PORT")
        if given and not 0 <= (self.process_id or 0) < (self.num_processes or 0):
            raise InputError(
                f"process_id={self.process_id}: from 0 to num_processes - 1; there are "
                f"{self.num_processes}"
            )
        path = self.work_dir
        while not path.exists():
            path = path.parent
        if not path.is_dir() or not os.access(path, os.W_OK):
            raise InputError(f"work_dir={self.work_dir}: {path} cannot be written into")


def as_json(value: Any) -> Any:
    """A config as plain JSON values, each dataclass with the name of its class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"class": type(value).__qualname__} | as_json(fields)
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and value in (float("inf"), -float("inf")):
        return str(value)
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


def identity(*values: Any) -> str:
    """A short hash of configs, of arrays' bytes and of the code that configs name."""
    digest = hashlib.sha256()
    for value in values:
        if hasattr(value, "tobytes"):
            digest.update(str((value.dtype, value.shape)).encode() + value.tobytes())
        else:
            digest.update(json.dumps(as_json(value), sort_keys=True).encode())
    for path in sorted({path for value in values for path in _sources(value)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _sources(value: Any) -> Iterable[Path]:
    """The files, outside this package, that define the classes of a config."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _sources(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        if not type(value).__module__.startswith(ppds_jax.__name__ + "."):
            yield Path(inspect.getfile(type(value)))
        for field in dataclasses.fields(value):
            yield from _sources(getattr(value, field.name))


def method(text: str, registry: Iterable[type]) -> Any:
    """A method's config from its name: `vae`, `VAE(latent=8)`, `my_file.py:Mine(a=1)`.

    Names are those of the registry's classes, whatever their case; a class of your own
    is given by its file or module. Arguments are Python literals.

    Raises:
      InputError: an unknown name, file, class or argument.
    """
    place, _, call = text.rpartition(":")
    try:
        tree = ast.parse(call.strip(), mode="eval").body
        name, words = _call(tree)
    except (SyntaxError, ValueError):
        raise InputError(
            f"method={text!r}: write a name, NAME(option=value) or FILE.py:NAME(...)"
        ) from None
    known = {cls.__name__.lower(): cls for cls in registry}
    if place:
        cls: Any = getattr(_module(place, text), name, None)
        if cls is None:
            raise InputError(f"method={text!r}: {place} defines no {name}")
        if not dataclasses.is_dataclass(cls) or not hasattr(cls, "make"):
            raise InputError(
                f"method={text!r}: {name} must be a frozen dataclass with a method make"
            )
    else:
        cls = known.get(name.lower().replace("_", ""))
        if cls is None:
            names = ", ".join(cls.__name__ for cls in registry)
            raise InputError(f"method={text!r}: use one of {names}, or FILE.py:NAME")
    try:
        return cls(**words)
    except TypeError as error:
        options = ", ".join(inspect.signature(cls).parameters) or "none"
        raise InputError(f"method={text!r}: {error}; options: {options}") from None


def describe(config: Any) -> str:
    """A config in the words of a command line, without what is at its default."""
    given = [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    ]
    name = type(config).__name__
    return f"{name}({', '.join(given)})" if given else name


def names(methods: Sequence[Any]) -> list[str]:
    """The class of each method, with its options where a class comes twice."""
    short = [type(method).__name__ for method in methods]
    long = [describe(method) for method in methods]
    place = [type(method).__module__ for method in methods]
    return [
        a if short.count(a) == 1 else b if long.count(b) == 1 else f"{c}.{b}"
        for a, b, c in zip(short, long, place, strict=True)
    ]


def _call(tree: ast.expr) -> tuple[str, dict[str, Any]]:
    if isinstance(tree, ast.Call) and not tree.args:
        words = {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
        return _call(tree.func)[0], words
    if isinstance(tree, ast.Name):
        return tree.id, {}
    raise ValueError(ast.dump(tree))


def _module(place: str, text: str) -> Any:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ImportError as error:
            raise InputError(f"method={text!r}: {error}") from None
    path = Path(place).resolve()
    if not path.is_file():
        raise InputError(f"method={text!r}: no such file")
    unique = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:12]
    name = f"_{path.stem}_{unique}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"method={text!r}: {place} does not load: {type(error).__name__}: {error}"
        ) from error
    return module


def methods_from(registry: Iterable[type]) -> Any:
    """A tyro annotation: a tuple of methods, given by name on the command line."""

    def parse(words: list[str]) -> tuple[Any, ...]:
        try:
            return tuple(method(word, registry) for word in words)
        except InputError as error:  # tyro would fold a ValueError into a box
            raise _Refused(str(error)) from error

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="METHOD [METHOD ...]",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [describe(item) for item in value],
    )


def main(
    run: Callable[[Any, Runtime], Any],
    presets: dict[str, tuple[str, Any]],
    arguments: list[str] | None = None,
    *,
    spreads: bool = False,
    ignores: Sequence[str] = (),
) -> Any:
    """The command line of an experiment: a preset, then options that override it.

    `spreads` says that `run` shares its work between processes, `ignores` which options
    of `Runtime` it makes no use of: they are refused. A wrong input ends the
    process with exit code 2 and one line that says what to do; a full disk with 1;
    SIGTERM and SIGUSR1 with 75, Ctrl-C with 130. Finished work is kept in each case,
    after a signal also the models in training, and the same command goes on from there.
    """

    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        subcommands = {
            name: (text, _command(config)) for name, (text, config) in presets.items()
        }
        command = tyro.extras.overridable_config_cli(subcommands, args=given)
        if command.runtime.distributed and not spreads:
            raise InputError("distributed: this experiment runs in one process")
        for name in ignores:
            if (value := getattr(command.runtime, name)) != getattr(Runtime, name):
                raise InputError(f"{name}={value}: this experiment makes no use of it")
        work = identity(run.__module__, command.config, code())
        together = hosts.together(command.runtime, work)
        with signals.watched(), _brief_warnings(), together:
            return run(command.config, command.runtime)
    except hosts.Left:
        return None
    except (InputError, _Refused) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except signals.Stopped as stop:
        kept = "what was last saved" if stop.hasty else "what was computed"
        print(
            f"stopped by {stop.name}: {kept} is kept, and the same command goes on "
            "from there",
            file=sys.stderr,
        )
        raise SystemExit(stop.code) from None
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        raise SystemExit(signals.INTERRUPTED) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"error: {error}; what was finished is kept: make room, and the same "
            "command goes on from there",
            file=sys.stderr,
        )
        raise SystemExit(1) from None


@contextlib.contextmanager
def _brief_warnings() -> Iterator[None]:
    """Warnings of this package as one line each; others as they are."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message, category, filename, *rest):
            if category is RuntimeWarning and ppds_jax.__name__ in filename:
                print(f"warning: {message}", file=sys.stderr)
            else:
                usual(message, category, filename, *rest)

        warnings.showwarning = show
        yield


def _command(config: Any) -> Any:
    """The config and the runtime side by side, as flat options."""
    flat = tyro.conf.arg(name="")
    cls = dataclasses.make_dataclass(
        "Command",
        [
            (
                "config",
                Annotated[type(config), flat],
                dataclasses.field(default=config),
            ),
            ("runtime", Annotated[Runtime, flat], dataclasses.field(default=Runtime())),
        ],
        frozen=True,
    )
    return cls()
