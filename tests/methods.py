"""Every method of the registries, small enough to test; a new one is covered as is."""

from dataclasses import fields, replace
from typing import Any

from ppds_jax import classifiers, generators

SMALL = {"epochs": 2, "num_steps": 5, "features": 50, "batch_size": 20}
SMALL |= {"samples": 20, "per_class": 2, "tones": 4}
SMALL |= {"width": 4, "multipliers": (1,), "multiplicity": 2, "sampler_steps": 2}
SMALL |= {"critic_steps": 2, "central_images": 3, "pretrain_steps": 3}

# Networks that take long to compile: `make slow` has most of their tests. Each shares
# its loop with one that is not here (Diffusion, GAN, VAE, DPCNN).
HEAVY = {"FlowMatching", "DPVAE", "DPGAN", "DPDM", "DPFeta"}
# Methods whose whole pipeline is not slow either.
PIPELINES = {"VAE", "DPMerf", "Memoriser"}


def small(cls: type) -> Any:
    """A method's config with little work to do, whatever its options are called."""
    config = cls()
    names = {field.name for field in fields(config)}
    small = {k: v for k, v in SMALL.items() if k in names}
    return replace(config, **small)


GENERATORS = [small(cls) for cls in generators.ALL]
CLASSIFIERS = [small(cls) for cls in classifiers.ALL]
METHODS = GENERATORS + CLASSIFIERS


def name(config: Any) -> str:
    return type(config).__name__
