"""Methods by name, identities of configs, and the command line's errors."""

import errno
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from experiments import survey
from ppds_jax.generators import ALL, VAE, DPMerf
from ppds_jax.harness import config
from ppds_jax.types import InputError

MINE = """
from dataclasses import dataclass
@dataclass(frozen=True, kw_only=True)
class Mine:
    size: int = 3
"""
MAKES = MINE + "    def make(self, spec, budget): ...\n"


def test_methods_by_name(tmp_path):
    assert config.method("vae", ALL) == VAE()
    assert config.method("dp_merf", ALL) == DPMerf()
    assert config.method("DPMerf(features=20, lengthscales=(0.5,))", ALL) == DPMerf(
        features=20, lengthscales=(0.5,)
    )
    path = tmp_path / "mine.py"
    path.write_text(MAKES)
    assert config.method(f"{path}:Mine(size=5)", ALL).size == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unet", "use one of VAE, GAN"),
        ("VAE(latents=3)", "latents.*options: latent, width"),
        ("VAE(3)", "write a name"),
        ("VAE(", "write a name"),
        ("nowhere.py:Mine", "no such file"),
        ("no.such.module:Mine", "No module"),
        ("json:Mine", "defines no Mine"),
        ("json:loads", "must be a frozen dataclass"),
    ],
)
def test_wrong_methods_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        config.method(text, ALL)


def test_descriptions_are_what_the_command_line_takes():
    for method in (VAE(), VAE(latent=3), DPMerf(lengthscales=(0.7, 0.7), features=20)):
        assert config.method(config.describe(method), ALL) == method


def test_identity_depends_on_values_and_on_out_of_tree_source(tmp_path):
    smoke = survey.PRESETS["smoke"][1]
    assert config.identity(smoke) == config.identity(replace(smoke))
    assert config.identity(smoke) != config.identity(replace(smoke, seed=1))
    path = tmp_path / "mine_too.py"
    path.write_text(MAKES)
    before = config.identity(config.method(f"{path}:Mine", ALL))
    path.write_text(MAKES + "# changed\n")
    assert config.identity(config.method(f"{path}:Mine", ALL)) != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data nowhere.npz", "no such file"),
        ("--epsilon 0", "epsilon=0.0: must be above 0"),
        ("--epsilon nan", "epsilon=nan"),
        ("--epsilon 1e-4", "epsilon=0.0001: must lie between"),
        ("--delta 1", "delta=1.0: must lie between"),
        ("--seed -1", "seed=-1"),
        ("--work-dir pyproject.toml/runs", "cannot be written into"),
        ("--num-shadows 5", "num_shadows=5: must be even"),
        ("--num-private 30", "num_private=30"),
        ("--num-private 1400", "has 1,437 distinct training images"),
        ("--num-population 0", "num_population=0"),
        ("--more-samples 0", "more_samples=0"),
        ("--at-once 0", "at_once=0"),
        ("--generators unet", "use one of VAE"),
        ("--generators VAE VAE", "VAE is there twice"),
        ("--generators VAE(epochs=0)", "VAE.epochs=0"),
        ("--generators VAE(latent=1.5)", "VAE.latent=1.5: must be whole"),
        ("--generators VAE(beta=-1)", "VAE.beta=-1: must be a number at least 0"),
        ("--generators ClassMean(spread='a')", "ClassMean.spread='a'"),
        ("--generators DPMerf(features=3)", "DPMerf.features=3: must be even"),
        ("--classifier.epochs 0", "CNN.epochs=0"),
        ("--dp-classifier.clip-norm -1", "DPCNN.clip_norm=-1"),
        ("--sampler.num-images 0", "Balanced.num_images=0"),
        ("--no-such-option 3", "no-such-option"),
        ("--seed x", "seed"),
    ],
)
def test_bad_input_stops_before_training_with_exit_code_2(
    arguments, message, tmp_path, capsys
):
    words = ["smoke", "--work-dir", str(tmp_path / "runs"), *arguments.split(" ")]
    refused(words, message, tmp_path, capsys)


@pytest.mark.parametrize(
    ("module", "option", "named"),
    [
        ("generators", "--mesh shadow=2", "mesh=(2, 1)"),
        ("dp_sgd", "--memory 4GB", "memory=4000000000"),
        ("speed", "--mode vmap", "mode=vmap"),
        ("audit", "--checkpoint-every 5", "checkpoint_every=5.0"),
    ],
)
def test_an_option_that_an_experiment_makes_no_use_of_is_refused(module, option, named):
    command = [sys.executable, "-m", f"experiments.{module}", "smoke", *option.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{named}: this experiment makes no use of it" in done.stderr


def refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        config.main(survey.run, survey.PRESETS, words)
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert message in shown.err + shown.out
    assert "Traceback" not in shown.err
    assert not list((tmp_path / "runs").rglob("row-*.npz"))


X = np.random.default_rng(0).integers(0, 256, (200, 4, 4), np.uint8)
Y = np.arange(200) % 4
RARE = np.where(np.arange(200) == 7, 4, Y)  # one image of class 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": X[:, 0]}, "x_train has the shape"),
        ({"x_train": X.astype(np.int32)}, "x_train is int32"),
        ({"x_train": np.full(X.shape, np.nan)}, "NaN"),
        ({"y_train": Y - 1}, "label -1"),
        ({"y_train": RARE}, "class 4 has"),
    ],
)
def test_bad_arrays_stop_before_training_with_exit_code_2(
    changes, message, tmp_path, capsys
):
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:20], "y_test": Y[:20]}
    np.savez(tmp_path / "set.npz", **(arrays | changes))
    words = ["smoke", "--work-dir", str(tmp_path / "runs"), "--num-private", "100"]
    words += ["--data", str(tmp_path / "set.npz"), "--num-population", "20"]
    refused(words, message, tmp_path, capsys)


WRONG = {
    "def (": "does not load: SyntaxError",
    "import no_such_module": "does not load: ModuleNotFoundError",
    "class Mine: pass": "must be a frozen dataclass",
    MINE: "must be a frozen dataclass",
    MINE
    + """
    def make(self, spec, budget):
        from ppds_jax.generators import ClassMean
        return ClassMean().make(spec, budget)._replace(
            sample=lambda key, state, label, public: state)
""": "sample gives float32[10, 8, 8, 1] for 3 labels; must give float32[3, 8, 8, 1]",
    MINE
    + """
    def make(self, spec, budget):
        from ppds_jax.generators import ClassMean
        return ClassMean().make(spec, budget)._replace(
            sample=lambda key, state, label, public: state + missing)
""": "does not trace: NameError",
}


@pytest.mark.parametrize("code", WRONG)
def test_a_wrong_generator_file_stops_before_training(code, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(code)
    words = ["smoke", "--work-dir", str(tmp_path / "runs")]
    words += ["--generators", f"{tmp_path}/mine.py:Mine"]
    refused(words, WRONG[code], tmp_path, capsys)


def test_files_with_the_same_names_are_told_apart(tmp_path):
    made = """
    def make(self, spec, budget):
        return None
"""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "random.py").write_text(MINE + made + f"# {folder}\n")
    a, b = (config.method(f"{tmp_path}/{f}/random.py:Mine", ALL) for f in "ab")
    assert config.identity(a) != config.identity(b)
    before = config.identity(a)
    (tmp_path / "a" / "random.py").write_text(MINE + made + "# changed\n")
    assert config.identity(a) != before
    assert "tmp" not in sys.modules["random"].__file__


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "make room"),
        (KeyboardInterrupt(), 130, "goes on from here"),
    ],
)
def test_a_full_disk_or_an_interruption_is_said_in_one_line(
    error, code, message, capsys
):
    def run(cfg, runtime):
        raise error

    with pytest.raises(SystemExit) as stop:
        config.main(run, survey.PRESETS, ["smoke"])
    assert stop.value.code == code
    assert message in capsys.readouterr().err
