"""Attack scoring: the calibrations of one target against all other models.

On signals drawn at random: online and offline LiRA, RMIA, every metric of each score,
and its bootstrap intervals. Beside them LiRA as a plain loop over images with scipy's
normal densities, in CPU time, which other work on the machine changes less.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import norm

from experiments.bench.contest import peak_memory
from ppds_jax.attacks.lira import lira
from ppds_jax.attacks.rmia import rmia, rmia_ratio
from ppds_jax.harness.run import Row
from ppds_jax.metrics import roc

FPRS, PRIORS = (0.001, 0.01), (0.01, 0.1, 0.5)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is scored.

    Attributes:
      num_models: the target and its shadows.
      num_images: audited images.
      num_queries: signals of each image.
      num_population: images that RMIA compares with.
      num_resamples: of each bootstrap.
      loop_images: how many images the plain loop scores.
      seed: of the signals.
    """

    num_models: int = 256
    num_images: int = 50_000
    num_queries: int = 2
    num_population: int = 2_500
    num_resamples: int = 200
    loop_images: int = 500
    seed: int = 0


def score_seconds(cfg: Scoring) -> list[Row]:
    """Rows of name, value, unit: seconds of each part and in all, memory, speed-up."""
    size = f"{cfg.num_models}x{cfg.num_images}x{cfg.num_queries}"
    phi, member, population = _signals(cfg)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    references = phi[0], phi[1:], member[1:]
    read = lambda: [_mean_sigmoid(x) for x in (phi, population)]
    prob, z = timed("probabilities", read)
    pairs = prob[0], prob[1:], member[1:]
    scores = {
        "lira_online": lambda: lira(*references),
        "lira_offline": lambda: lira(*references, online=False),
        "lira_shrunk": lambda: lira(*references, variance="shrunk"),
        "rmia_online": lambda: rmia(*pairs, z[0], z[1:], online=True),
        "rmia_offline": lambda: rmia(*pairs, z[0], z[1:]),
        "rmia_ratio": lambda: rmia_ratio(*pairs),
    }
    for name, attack in scores.items():
        score = timed(name, attack)
        timed(f"metrics_{name}", partial(_metrics, score, member[0]))
        interval = partial(roc.bootstrap, num_resamples=cfg.num_resamples)
        timed(f"bootstrap_{name}", partial(interval, score, member[0], _rates))
    ours, frozen, called = _seconds_per_image(references, cfg.loop_images)
    parts = {f"{part}_seconds/{size}": spent for part, spent in seconds.items()}
    return [
        row(f"score_seconds/{size}", sum(parts.values()), "s"),
        *(row(part, spent, "s") for part, spent in parts.items()),
        row(f"peak_memory/{size}", peak_memory(), "GiB"),
        row("lira_seconds_per_image", ours, "CPU s"),
        row("loop_seconds_per_image", frozen, "CPU s"),
        row("lira_speedup_vs_loop", frozen / ours, "times"),
        row("lira_speedup_vs_lean_loop", called / ours, "times"),
    ]


def _seconds_per_image(references, loop_images: int) -> list[float]:
    """CPU seconds of `lira` and of the two loops, which must agree; the best of 3."""
    phi, shadows, member = references
    some = slice(0, min(loop_images, len(phi)))
    rows = phi[some], shadows[:, some], member[:, some]
    seconds, scores = [], []
    for work, images in (
        (lambda: lira(*references, variance="per_example"), len(phi)),
        (lambda: loop_lira(*rows), len(rows[0])),
        (lambda: loop_lira(*rows, lean=True), len(rows[0])),
    ):
        times = []
        for _ in range(3):
            start = time.process_time()
            score = work()
            times.append(time.process_time() - start)
        seconds.append(min(times) / images)
        scores.append(score[some])
    for score in scores[1:]:
        np.testing.assert_allclose(score, scores[0], rtol=1e-9, atol=1e-9)
    return seconds


def loop_lira(phi, shadows, member, *, lean: bool = False) -> np.ndarray:
    """Online LiRA with per-example variances, image by image. See `lira`.

    Plain: a normal density of each side, asked for the target's signals. Lean: the same
    without the two objects, the least that scipy can be called for.
    """
    scores = []
    for j, value in enumerate(phi):
        inside = shadows[member[:, j], j].astype(np.float64)
        outside = shadows[~member[:, j], j].astype(np.float64)
        sides = [(x.mean(0), x.std(0)) for x in (inside, outside)]
        if lean:
            log_in, log_out = (norm.logpdf(value, *side) for side in sides)
        else:
            log_in, log_out = (norm(*side).logpdf(value) for side in sides)
        scores.append((log_in - log_out).mean())
    return np.array(scores)


def _signals(cfg: Scoring) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """phi [m n q], members one deviation higher; member [m n]; population [m z q]."""
    rng = np.random.default_rng(cfg.seed)
    draw = lambda rows: rng.standard_normal(
        (cfg.num_models, rows, cfg.num_queries), np.float32
    )
    member = rng.random((cfg.num_models, cfg.num_images)) < 0.5
    member[1:5] = np.array([True, True, False, False])[:, None]  # both sides, varied
    phi = draw(cfg.num_images)
    phi += member[..., None]
    return phi, member, draw(cfg.num_population)


def _mean_sigmoid(phi: np.ndarray) -> np.ndarray:
    """Probabilities [m n], model by model: no float64 copy of all signals."""
    rows = [np.exp(-np.logaddexp(0, -x.astype(np.float64))).mean(-1) for x in phi]
    return np.stack(rows)


def _metrics(score, member) -> list[float]:
    """AUC, rates, and what a threshold gives: here one of the same scores."""
    found = [roc.auc(score, member)]
    for fpr in FPRS:
        threshold = roc.threshold_at_fpr(score, member, fpr)
        found.append(roc.tpr_at_fpr(score, member, fpr))
        found.append(roc.balanced_accuracy(score, member, threshold))
        found += [
            roc.ppv(score, member, threshold=threshold, prior=prior) for prior in PRIORS
        ]
    return found


def _rates(score, member, weight) -> list[float]:
    curve = roc.roc(score, member, weight)
    return [roc.area(curve), *(roc.rate_at(curve, fpr) for fpr in FPRS)]


def row(name: str, value: float, unit: str) -> Row:
    return {"name": name, "value": float(f"{value:.4g}"), "unit": unit}
