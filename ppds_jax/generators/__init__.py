"""Generators: one file a method. The registry is computed from the union below.

Adding a method to the library: one file, and its config in the union. A method of your
own needs neither: pass its config wherever one of these goes.
"""

from typing import get_args

from ppds_jax.generators.class_mean import ClassMean
from ppds_jax.generators.controls import Independent, Memoriser
from ppds_jax.generators.diffusion import Diffusion
from ppds_jax.generators.dp_feta import DPFeta
from ppds_jax.generators.dp_gan import DPGAN
from ppds_jax.generators.dp_merf import DPMerf
from ppds_jax.generators.dp_vae import DPVAE
from ppds_jax.generators.dpdm import DPDM
from ppds_jax.generators.flow_matching import FlowMatching
from ppds_jax.generators.gan import GAN
from ppds_jax.generators.vae import VAE

AnyGenerator = (
    VAE
    | DPMerf
    | ClassMean
    | Memoriser
    | Independent
    | GAN
    | Diffusion
    | FlowMatching
    | DPVAE
    | DPGAN
    | DPDM
    | DPFeta
)
ALL = get_args(AnyGenerator)
