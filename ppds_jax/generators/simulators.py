"""Public programs that draw images: fonts, shapes, a generator fitted to public data.

A simulator's images have latents: numbers to draw at random, to render, and to vary.
All three are JAX; a font's outlines are read on the host when the simulator is made.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from ppds_jax.types import DataSpec, Generator, InputError, Key, PyTree

Latent = PyTree  # arrays with a leading axis of images


class Simulator(NamedTuple):
    """What Private Evolution needs of a public source of images.

    Attributes:
      random: (key, label [m], public) -> latent.
      render: (latent, label, public) -> images [m h w c] in [0, 1].
      vary: (key, latent, label, degree, public) -> latent; nearly the same at degree 0,
        as good as a new draw at degree 1, and distributed as a random draw if the
        latent is.
      public: arrays, passed in.
    """

    random: Callable[[Key, Int32[Array, " m"], PyTree], Latent]
    render: Callable[[Latent, Int32[Array, " m"], PyTree], Float[Array, "m h w c"]]
    vary: Callable[[Key, Latent, Int32[Array, " m"], Any, PyTree], Latent]
    public: PyTree = ()


class Mixed(NamedTuple):
    """A choice among some, and standard normal numbers."""

    choice: Int32[Array, " m"]
    normal: Float[Array, "m d"]


def _mixed(choices: int, size: int) -> tuple[Callable, Callable]:
    """`random` and `vary` for latents of a choice and `size` numbers."""

    def random(key, label, public):
        choice_key, normal_key = jax.random.split(key)
        choice = jax.random.randint(choice_key, label.shape, 0, choices)
        return Mixed(choice, jax.random.normal(normal_key, (label.size, size)))

    def vary(key, latent, label, degree, public):
        coin_key, key = jax.random.split(key)
        new = random(key, label, public)
        other = jax.random.uniform(coin_key, label.shape) < degree
        kept = jnp.sqrt(1 - jnp.square(jnp.float32(degree)))
        normal = kept * latent.normal + degree * new.normal
        return Mixed(jnp.where(other, new.choice, latent.choice), normal)

    return random, vary


def _grid(shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """Coordinates of pixels in [-1/2, 1/2], each [1 h w]."""
    y, x = ((np.arange(n) + 0.5) / n - 0.5 for n in shape[:2])
    y, x = np.meshgrid(y, x, indexing="ij")
    return jnp.asarray(y[None], jnp.float32), jnp.asarray(x[None], jnp.float32)


# how far one standard deviation goes, of the images' size
SCALE, TURN, SLANT, SHIFT, WEIGHT, WARP = 0.15, 0.12, 0.2, 0.03, 0.02, 0.02
WAVES = ((1, 0), (0, 1), (1, 1))  # of the warp, each as sine and cosine
SANS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique")
SERIF = ("DejaVuSerif", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralItalic")
OTHER = ("DejaVuSansMono", "DejaVuSansMono-Oblique", "STIXGeneralBol", "cmr10")
FONTS = (*SANS, *SERIF, *OTHER, "cmss10", "cmtt10", "cmb10", "cmti10")
SIDE = 40  # pixels of a glyph's square
FILL = 0.72  # of the square, by the longer side of a glyph
UPPER, LOWER = string.ascii_uppercase, string.ascii_lowercase
DIGITS = ("0O", "1I|/", "2Z", "3", "4y", "5S", "6b", "7", "8", "9qg")


@dataclass(frozen=True, kw_only=True)
class Fonts:
    """Characters of common fonts, scaled, turned, slanted, moved, bent, and bolder.

    Each glyph is kept as its distance field, so that strokes can be of any weight. The
    fonts are those that matplotlib brings.

    Attributes:
      characters: for each class, those that may stand for it.
    """

    characters: tuple[str, ...] = DIGITS

    def make(self, spec: DataSpec) -> Simulator:
        if len(self.characters) < spec.num_classes:
            raise InputError(
                f"Fonts.characters: {len(self.characters)} for {spec.num_classes} "
                "classes; give characters for each, or use another simulator"
            )
        classes = self.characters[: spec.num_classes]
        choices = max(map(len, classes)) * len(FONTS)
        fields = [np.resize(_glyphs(c), (choices, SIDE, SIDE)) for c in classes]
        field = jnp.asarray(np.stack(fields), jnp.float32)
        y, x = _grid(spec.image_shape)
        random, vary = _mixed(choices, 8 + 4 * len(WAVES))

        def render(latent, label, public):
            z = [v[:, None, None] for v in latent.normal.T]
            down, right = y - SHIFT * z[0], x - SHIFT * z[1]
            for i, (p, q) in enumerate(WAVES):
                a, b, c, d = (WARP * v for v in z[8 + 4 * i : 12 + 4 * i])
                phase = 2 * np.pi * (p * y + q * x)
                down = down + a * jnp.sin(phase) + b * jnp.cos(phase)
                right = right + c * jnp.sin(phase) + d * jnp.cos(phase)
            cos, sin = jnp.cos(TURN * z[2]), jnp.sin(TURN * z[2])
            down, right = cos * down - sin * right, sin * down + cos * right
            right = (right + SLANT * z[3] * down) * jnp.exp(SCALE * z[4])
            down = down * jnp.exp(SCALE * z[5])
            outside = _bilinear(public, label, latent.choice, down, right)
            soft = 0.012 * jnp.exp(0.3 * z[6])
            image = jax.nn.sigmoid((WEIGHT * z[7] - outside) / soft)[..., None]
            return jnp.broadcast_to(image, (*image.shape[:3], spec.image_shape[2]))

        return Simulator(random, render, vary, field)


@cache
def _glyphs(characters: str) -> np.ndarray:
    """Distances to the outline [k SIDE SIDE], negative inside, for all fonts."""
    import matplotlib  # here, and scipy below: they take a while, and few need them
    from matplotlib.ft2font import FT2Font

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fields = []
    for font in FONTS:
        face = FT2Font(str(folder / f"{font}.ttf"))
        face.set_size(72, 72)
        for character in characters:
            face.clear()
            face.set_text(character)
            face.draw_glyphs_to_bitmap()
            fields.append(_field(np.asarray(face.get_image()) > 127))
    return np.stack(fields)


def _field(ink: np.ndarray) -> np.ndarray:
    """The distance field of a glyph, centred by mass in a square that it fills."""
    from scipy import ndimage

    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    unit = max(ink.shape) / FILL  # the square's side in pixels
    ink = np.pad(ink, int(unit))
    far = ndimage.distance_transform_edt
    field = (far(~ink) - far(ink)) / unit
    centre = np.array(ndimage.center_of_mass(ink))
    line = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) * unit
    place = np.meshgrid(line + centre[0], line + centre[1], indexing="ij")
    return ndimage.map_coordinates(field, place, order=1, mode="nearest")


def _bilinear(field, label, choice, down, right):
    """The fields' values at places in [-1/2, 1/2], continued by their edges."""

    def split(x):
        x = jnp.clip((x + 0.5) * SIDE - 0.5, 0, SIDE - 1.001)
        low = x.astype(jnp.int32)
        return low, x - low.astype(jnp.float32)

    (i, s), (j, t) = split(down), split(right)
    flat = field.reshape(-1)
    first = (label * field.shape[1] + choice)[:, None, None] * SIDE**2 + i * SIDE + j
    upper = (1 - t) * flat[first] + t * flat[first + 1]
    lower = (1 - t) * flat[first + SIDE] + t * flat[first + SIDE + 1]
    return (1 - s) * upper + s * lower


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Silhouettes: the union of rounded, tapered boxes, each with its mirror image.

    Labels play no part: which shapes look like a class is left to the votes.

    Attributes:
      parts: boxes in an image.
    """

    parts: int = 4

    def make(self, spec: DataSpec) -> Simulator:
        if self.parts < 1:
            raise InputError(f"Shapes.parts={self.parts}: must be at least 1")
        channels, each = spec.image_shape[2], 7 + spec.image_shape[2]
        y, x = _grid(spec.image_shape)
        random, vary = _mixed(2, 2 + self.parts * each)  # mirrored, or not

        def render(latent, label, public):
            z = latent.normal
            mirrored = (latent.choice == 1)[:, None, None]
            axis = 0.04 * z[:, 0, None, None]
            soft = 0.02 * jnp.exp(0.5 * z[:, 1, None, None])
            image = jnp.zeros((*axis.shape[:1], *y.shape[1:], channels))
            for i in range(self.parts):
                part = z[:, 2 + i * each : 2 + (i + 1) * each]
                place = [v[:, None, None] for v in part.T]
                right = jnp.where(mirrored, jnp.abs(x - axis), x - axis)
                right, down = right - 0.15 * place[0], y - 0.2 * place[1]
                turn = 0.4 * place[2]
                u = jnp.cos(turn) * right + jnp.sin(turn) * down
                v = jnp.cos(turn) * down - jnp.sin(turn) * right
                wide = 0.14 * jnp.exp(0.5 * place[3] + place[4] * v)
                high = 0.2 * jnp.exp(0.6 * place[5])
                power = 2 + 4 * jax.nn.sigmoid(place[6])
                size = (jnp.abs(u / wide) ** power + jnp.abs(v / high) ** power) ** (
                    1 / power
                )
                inside = jax.nn.sigmoid((1 - size) * jnp.minimum(wide, high) / soft)
                colour = jax.nn.sigmoid(1.5 * part[:, 7:])[:, None, None]
                image = jnp.maximum(image, inside[..., None] * colour)
            return image

        return Simulator(random, render, vary)


def fitted(generator: Generator, state: PyTree) -> Simulator:
    """The samples of a generator that was fitted to public data.

    A latent is the key of one sample, so that a variation is the same or a new sample.

    **Privacy:** that `state` knows nothing of the private images is the caller's claim.
    """

    def random(key, label, public):
        return jax.random.key_data(jax.random.split(key, label.size))

    def render(latent, label, public):
        def one(row):
            key, label = jax.random.wrap_key_data(row[0]), row[1]
            return generator.sample(key, public[1], label[None], public[0])[0]

        return jax.lax.map(one, (latent, label), batch_size=100)

    def vary(key, latent, label, degree, public):
        coin_key, key = jax.random.split(key)
        other = jax.random.uniform(coin_key, label.shape) < degree
        return jnp.where(other[:, None], random(key, label, public), latent)

    return Simulator(random, render, vary, (generator.public, state))


SIMULATORS = {
    "digits": Fonts(),
    "letters": Fonts(characters=tuple(map(str.__add__, UPPER, LOWER))),
    "shapes": Shapes(),
}
