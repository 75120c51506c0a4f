"""A small convolutional classifier, without normalisation over the batch."""

import flax.linen as nn

from ppds_jax.convolution import im2col
from ppds_jax.nets import Net, from_linen


class _CNN(nn.Module):
    width: int
    hidden: int
    num_classes: int

    @nn.compact
    def __call__(self, image):
        x = 2 * image - 1
        for features in (self.width, 2 * self.width):
            conv = nn.Conv(features, (3, 3), (2, 2), conv_general_dilated=im2col)
            x = nn.relu(conv(x))
        x = nn.relu(nn.Dense(self.hidden)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


def cnn(width: int, hidden: int, num_classes: int) -> Net:
    """Two 3x3 convolutions of stride 2, a hidden layer, logits [n num_classes].

    Takes images [n h w c] in [0, 1]. Strides instead of pooling: faster on a CPU,
    and each convolution is one matrix product.
    """
    return from_linen(_CNN(width, hidden, num_classes))
