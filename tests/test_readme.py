"""The README says what is there: its table, and the generator that it shows."""

import re
import subprocess
import sys
from pathlib import Path

from ppds_jax.harness.catalogue import table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_of_methods_is_that_of_the_registries():
    assert table() in README, "paste the output of python -m ppds_jax.harness.catalogue"


def test_the_generator_shown_goes_through_the_survey(tmp_path):
    """As a user would: the file of the README, its command, and nothing else."""
    (code,) = re.findall(r"```python\n# my_generator.py\n(.*?)```", README, re.S)
    (tmp_path / "my_generator.py").write_text(code)
    (line,) = re.findall(
        r"^    python -m (experiments.survey smoke.*my_gen.*)$", README, re.M
    )
    command = [sys.executable, "-m", *line.split()]
    command[command.index("--generators") + 1] = f"{tmp_path}/my_generator.py:Blurred"
    tiny = "--num-private 100 --num-population 40 --num-resamples 10 --more-samples 1"
    tiny += " --classifier.epochs 1 --dp-classifier.epochs 1"
    done = subprocess.run(
        [*command, *tiny.split(), "--work-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (rows,) = tmp_path.glob("survey-*/rows.csv")
    assert "Blurred,images,nearest,lira" in rows.read_text()
