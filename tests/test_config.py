"""Methods by name, identities of configs, and the command line's errors."""

import errno
from dataclasses import replace

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


def test_methods_by_name(tmp_path):
    assert config.method("vae", ALL) == VAE()
    assert config.method("dp_merf", ALL) == DPMerf()
    assert config.method("DPMerf(features=20, hidden=(5,))", ALL) == DPMerf(
        features=20, hidden=(5,)
    )
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    assert config.method(f"{path}:Mine(size=5)", ALL).size == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gan", "use one of VAE, DPMerf"),
        ("VAE(latents=3)", "latents.*options: latent, width"),
        ("VAE(3)", "write a name"),
        ("VAE(", "write a name"),
        ("nowhere.py:Mine", "no such file"),
        ("no.such.module:Mine", "No module"),
        ("json:Mine", "defines no Mine"),
    ],
)
def test_wrong_methods_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        config.method(text, ALL)


def test_descriptions_are_what_the_command_line_takes():
    for method in (VAE(), VAE(latent=3), DPMerf(hidden=(7, 7), features=20)):
        assert config.method(config.describe(method), ALL) == method


def test_identity_depends_on_values_and_on_out_of_tree_source(tmp_path):
    smoke = survey.PRESETS["smoke"][1]
    assert config.identity(smoke) == config.identity(replace(smoke))
    assert config.identity(smoke) != config.identity(replace(smoke, seed=1))
    path = tmp_path / "mine_too.py"
    path.write_text(MINE)
    before = config.identity(config.method(f"{path}:Mine", ALL))
    path.write_text(MINE + "# changed\n")
    assert config.identity(config.method(f"{path}:Mine", ALL)) != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data nowhere.npz", "no such file"),
        ("--epsilon 0", "epsilon=0.0: must be above 0"),
        ("--epsilon nan", "epsilon=nan"),
        ("--delta 1", "delta=1.0: must lie between 0 and 1"),
        ("--num-shadows 5", "num_shadows=5: must be even"),
        ("--num-private 30", "num_private=30"),
        ("--num-private 1400", "has only 1437 training images"),
        ("--num-population 0", "num_population=0"),
        ("--more-samples 0", "more_samples=0"),
        ("--at-once 0", "at_once=0"),
        ("--generators gan", "use one of VAE"),
        ("--generators VAE VAE", "VAE is there twice"),
        ("--generators VAE(epochs=0)", "VAE.epochs=0"),
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
    with pytest.raises(SystemExit) as stop:
        config.main(survey.run, survey.PRESETS, words)
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert message in shown.err + shown.out
    assert "Traceback" not in shown.err
    assert not list((tmp_path / "runs").rglob("row-*.npz"))


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
