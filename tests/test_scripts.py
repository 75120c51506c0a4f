"""The restart loop of a TPU pod, with a stub in the place of gcloud."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"

# Two workers, each in its own folder; files say what state the pod is in.
GCLOUD = r"""#!/usr/bin/env bash
echo "${@:1:8}" >> "$POD/calls"
if [[ $4 == describe ]]; then
    tail -n 1 "$POD/state"
    echo READY >> "$POD/state"
    exit 0
fi
if [[ -e $POD/lost ]]; then
    rm "$POD/lost"
    exit 255
fi
command=${!#}
worst=0
for worker in 0 1; do
    mkdir -p "$POD/$worker"
    (cd "$POD/$worker" && bash -c "${command#--command=}") || worst=$?
done
exit "$worst"
"""
# Ends with the codes in its arguments, one after the other.
JOB = r"""#!/usr/bin/env bash
echo "$1" >> runs
tries=$(wc -l < runs)
shift
exit "${!tries}"
"""


@pytest.fixture
def pod(tmp_path):
    for name, text in (("gcloud", GCLOUD), ("job", JOB)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "state").write_text("PREEMPTED\n")
    return tmp_path


def run(pod, *codes, **more):
    """The script's exit code, and how often each worker ran the job."""
    settings = {"PATH": f"{pod}:{os.environ['PATH']}", "POD": str(pod), "ZONE": "z"}
    settings |= {"DIR": ".", "PAUSE": "0", "WAIT": "0"} | more
    command = [SCRIPTS / "tpu_pod.sh", "v4", "job", "two words; $HOME"]
    command += map(str, codes)
    done = subprocess.run(command, env=os.environ | settings, timeout=60)
    runs = [pod / worker / "runs" for worker in "01"]
    words = [path.read_text().splitlines() for path in runs if path.exists()]
    assert {line for lines in words for line in lines} <= {"two words; $HOME"}
    return done.returncode, [len(lines) for lines in words]


@pytest.mark.parametrize(
    ("codes", "code", "tries"),
    [((0,), 0, 1), ((75, 134, 138, 143, 0), 0, 5), ((75, 3, 0), 3, 2), ((2,), 2, 1)],
)
def test_every_worker_goes_on_at_75_and_stops_at_other_codes(pod, codes, code, tries):
    assert run(pod, *codes) == (code, [tries, tries])
    assert "--worker=all" in (pod / "calls").read_text()


def test_restarts_are_bounded(pod):
    assert run(pod, *[75] * 9, RESTARTS="3") == (75, [4, 4])


def test_after_preemption_all_go_on_when_the_pod_is_ready(pod):
    (pod / "lost").touch()
    assert run(pod, 75, 0) == (0, [2, 2])
    calls = [line.split()[3] for line in (pod / "calls").read_text().splitlines()]
    assert calls == ["ssh", "describe", "describe", "ssh"]


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sbatch"])
def test_scripts_parse(script):
    subprocess.run(["bash", "-n", SCRIPTS / script], check=True)


def test_without_arguments_it_says_how(pod):
    done = subprocess.run(
        [SCRIPTS / "tpu_pod.sh"], capture_output=True, text=True, env={"PATH": "/bin"}
    )
    assert done.returncode == 2
    assert "TPU_NAME COMMAND" in done.stderr
