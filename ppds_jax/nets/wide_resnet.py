"""A wide residual network with group normalisation."""

import flax.linen as nn

from ppds_jax.nets import Net, from_linen
from ppds_jax.types import InputError


class _Block(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        steps = (self.stride, self.stride)
        y = nn.relu(nn.GroupNorm(min(16, x.shape[-1]))(x))
        # where the shape changes, the skip connection starts behind the normalisation
        changes = self.stride > 1 or x.shape[-1] != self.width
        x = nn.Conv(self.width, (1, 1), steps, use_bias=False)(y) if changes else x
        y = nn.Conv(self.width, (3, 3), steps, use_bias=False)(y)
        y = nn.relu(nn.GroupNorm(16)(y))
        return x + nn.Conv(self.width, (3, 3), use_bias=False)(y)


class _WideResNet(nn.Module):
    depth: int
    widen: int
    num_classes: int

    @nn.compact
    def __call__(self, image):
        x = nn.Conv(16, (3, 3), use_bias=False)(2 * image - 1)
        for group in range(3):
            for i in range((self.depth - 4) // 6):
                stride = 2 if group and i == 0 else 1
                x = _Block(16 * 2**group * self.widen, stride)(x)
        x = nn.relu(nn.GroupNorm(16)(x)).mean((1, 2))
        return nn.Dense(self.num_classes)(x)


def wide_resnet(depth: int, widen: int, num_classes: int) -> Net:
    """WRN-`depth`-`widen` on images [n h w c] in [0, 1]: logits [n num_classes].

    Groups of 16 channels are normalised together, and no statistics are taken over the
    batch: the output for an image depends on that image alone.

    Args:
      depth: of all layers, 6 k + 4.
      widen: how many times 16, 32 and 64 channels the three stages have.

    Raises:
      InputError: another depth.

    **References:** Zagoruyko and Komodakis, Wide Residual Networks, 2016, arXiv
    1605.07146; Wu and He, Group Normalization, 2018, arXiv 1803.08494.
    """
    if depth < 10 or depth % 6 != 4:
        raise InputError(f"depth={depth}: must be 6 k + 4, as 16 or 28")
    return from_linen(_WideResNet(depth, widen, num_classes))
