"""The demo itself, on real images: minutes, so only run by `make slow`."""

import pytest

from experiments import survey
from ppds_jax.harness import config


@pytest.mark.slow
def test_the_controls_of_the_demo(tmp_path):
    rows = survey.run(survey.PRESETS["demo"][1], config.Runtime(work_dir=tmp_path))
    for row in rows:
        if row["control"].startswith("returns") and row["signal"] == "nearest":
            assert row["auc"] >= 0.95
        if row["control"].startswith(("ignores", "membership")):
            assert row["auc_low"] <= 0.5 <= row["auc_high"], row
        if row["subject"] == "dp_classifier":
            # the noise must show: without it the same network reads above 0.6
            assert row["auc"] < 0.6
