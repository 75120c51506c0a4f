"""Generators: one file a method. The registry is computed from the union below.

Adding a method to the library: one file, and its config in the union. A method of your
own needs neither: pass its config wherever one of these goes.
"""

from typing import get_args

from ppds_jax.generators.class_mean import ClassMean
from ppds_jax.generators.class_pca import ClassPCA
from ppds_jax.generators.controls import Independent, Memoriser
from ppds_jax.generators.diffusion import Diffusion
from ppds_jax.generators.dp_feta import DPFeta
from ppds_jax.generators.dp_gan import DPGAN
from ppds_jax.generators.dp_kernel import DPKernel
from ppds_jax.generators.dp_kip import DPKip
from ppds_jax.generators.dp_mepf import DPMepf
from ppds_jax.generators.dp_merf import DPMerf
from ppds_jax.generators.dp_ntk import DPNTK
from ppds_jax.generators.dp_vae import DPVAE
from ppds_jax.generators.dpdm import DPDM
from ppds_jax.generators.flow_matching import FlowMatching
from ppds_jax.generators.gan import GAN
from ppds_jax.generators.k_same import KSame
from ppds_jax.generators.private_evolution import PrivateEvolution
from ppds_jax.generators.vae import VAE

AnyGenerator = (
    VAE
    | GAN
    | Diffusion
    | FlowMatching
    | ClassPCA
    | ClassMean
    | DPMerf
    | DPMepf
    | DPNTK
    | DPKernel
    | DPKip
    | PrivateEvolution
    | DPVAE
    | DPGAN
    | DPDM
    | DPFeta
    | KSame
    | Memoriser
    | Independent
)
ALL = get_args(AnyGenerator)
