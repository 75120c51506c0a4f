"""Generators: one file a method. The registry is computed from the union below.

Adding a method to the library: one file, and its config in the union. A method of your
own needs neither: pass its config wherever one of these goes.
"""

from typing import get_args

from ppds_jax.generators.class_mean import ClassMean
from ppds_jax.generators.class_pca import ClassPCA
from ppds_jax.generators.controls import Independent, Memoriser
from ppds_jax.generators.dp_kernel import DPKernel
from ppds_jax.generators.dp_kip import DPKip
from ppds_jax.generators.dp_mepf import DPMepf
from ppds_jax.generators.dp_merf import DPMerf
from ppds_jax.generators.dp_ntk import DPNTK
from ppds_jax.generators.vae import VAE

AnyGenerator = (
    VAE
    | DPMerf
    | ClassMean
    | ClassPCA
    | DPMepf
    | DPNTK
    | DPKernel
    | DPKip
    | Memoriser
    | Independent
)
ALL = get_args(AnyGenerator)
