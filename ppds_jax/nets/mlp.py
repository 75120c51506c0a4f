"""Networks of dense layers, in haiku."""

import haiku as hk

from ppds_jax.nets import Net, from_haiku


def mlp(hidden: tuple[int, ...], num_classes: int) -> Net:
    """Images [n h w c] in [0, 1] -> logits [n num_classes]."""

    def network(image):
        x = 2 * image.reshape(image.shape[0], -1) - 1
        return hk.nets.MLP((*hidden, num_classes))(x)

    return from_haiku(hk.transform(network))
