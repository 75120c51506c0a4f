"""What a user would pick instead: the same networks and steps in PyTorch and Opacus.

Needs the extra `bench`.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from experiments.bench.ours import (
    BATCH,
    CLASSES,
    DENSE,
    HIDDEN,
    IMAGES,
    PRIVATE_BATCH,
    PRIVATE_IMAGES,
    SHAPES,
    WIDTH,
)

Work = tuple[Callable[[], Any], dict[str, Any]]


class _Block(nn.Module):
    """Of a wide residual network: see `ppds_jax.nets.wide_resnet`."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(16, before), nn.GroupNorm(16, after)])
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        changes = stride > 1 or before != after
        self.skip = nn.Conv2d(before, after, 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norms[0](x))
        x = x if self.skip is None else self.skip(y)
        return x + self.second(F.relu(self.norms[1](self.first(y))))


def _wide_resnet(channels: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    before = 16
    for group in range(3):
        for i in range(2):
            after = 64 * 2**group
            layers.append(_Block(before, after, 2 if group and i == 0 else 1))
            before = after
    layers += [nn.GroupNorm(16, before), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before, CLASSES))


def network(net: str, shape: tuple[int, int, int]) -> nn.Module:
    """The network of the same name in `ours`."""
    h, w, channels = shape
    if net == "wrn16-4":
        return _wide_resnet(channels)
    if net == "mlp":
        sizes = (h * w * channels, *DENSE)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES))
    layers = []
    for before, after in ((channels, WIDTH), (WIDTH, 2 * WIDTH)):
        stride = 2 if net == "stride" else 1
        layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if net == "maxpool" else []
    layers += [nn.Flatten(), nn.Linear(h // 4 * (w // 4) * 2 * WIDTH, HIDDEN)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def _device() -> str:
    """The fastest there is, its products as precise as JAX's are by default there."""
    if not torch.cuda.is_available():
        return "cpu"
    torch.set_float32_matmul_precision("high")  # tf32, as for convolutions
    return "cuda"


def _images(shape: tuple[int, int, int], count: int, device: str) -> tuple:
    rng = np.random.default_rng(0)
    h, w, channels = shape
    image = rng.random((count, channels, h, w), np.float32) * 2 - 1
    label = rng.integers(0, CLASSES, count)
    return torch.tensor(image, device=device), torch.tensor(label, device=device)


def shadows(
    net: str,
    models: int,
    steps: int,
    threads: int = 1,
    tuned: bool = False,
    compiled: bool = False,
    size: str = "mnist",
) -> Work:
    """One model after the other, each a plain loop over steps of Adam.

    `tuned` takes PyTorch's fused Adam, and its channels-last layout for convolutions;
    `compiled` also its compiler, with CUDA graphs, for one model whose weights are
    drawn anew.
    """
    torch.set_num_threads(threads)
    device = _device()
    image, label = _images(SHAPES[size], IMAGES, device)
    layout = torch.channels_last if tuned else torch.contiguous_format
    image = image.contiguous(memory_format=layout)

    def fresh() -> Any:
        model: Any = network(net, SHAPES[size]).to(device)
        return model.to(memory_format=layout)

    kept = fresh()
    fast = torch.compile(kept, mode="reduce-overhead") if compiled else None

    def work() -> None:
        for _ in range(models):
            model = fresh()
            if fast is not None:
                kept.load_state_dict(model.state_dict())
                model = fast
            adam = torch.optim.Adam(model.parameters(), 2e-3, fused=tuned or None)
            for _ in range(steps):
                row = torch.randint(0, IMAGES, (BATCH,), device=device)
                adam.zero_grad()
                F.cross_entropy(model(image[row]), label[row]).backward()
                adam.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return work, {"device": device, "torch": torch.__version__}


def together(
    net: str, models: int, steps: int, threads: int = 1, size: str = "mnist"
) -> Work:
    """All models at once, by `torch.func`: `vmap` of `grad` over stacked parameters."""
    from torch.func import functional_call, grad, stack_module_state, vmap

    torch.set_num_threads(threads)
    device = _device()
    image, label = _images(SHAPES[size], IMAGES, device)
    shape = network(net, SHAPES[size]).to("meta")

    def loss(params: dict, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(shape, params, (image,)), label)

    gradient = vmap(grad(loss))

    def work() -> None:
        made = [network(net, SHAPES[size]).to(device) for _ in range(models)]
        params, _ = stack_module_state(made)
        adam = torch.optim.Adam(params.values(), 2e-3)
        for _ in range(steps):
            row = torch.randint(0, IMAGES, (models, BATCH), device=device)
            fixed = {name: x.detach() for name, x in params.items()}
            for name, slope in gradient(fixed, image[row], label[row]).items():
                params[name].grad = slope
            adam.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return work, {"device": device, "torch": torch.__version__}


class _Decoders(nn.Module):
    """A dense network for each class, as of DP-MERF here; code [c m l]."""

    def __init__(self, pixels: int, latent: int = 20, width: int = 100):
        super().__init__()
        normal = lambda *shape: nn.Parameter(torch.randn(CLASSES, *shape))
        self.linear, self.bias = normal(latent, pixels), normal(1, pixels)
        self.hidden, self.hidden_bias = normal(latent, width), normal(1, width)
        self.out, self.latent = normal(width, pixels), latent

    def forward(self, code: torch.Tensor) -> torch.Tensor:
        unit = F.relu(torch.baddbmm(self.hidden_bias, code, self.hidden))
        logits = torch.baddbmm(self.bias, code, self.linear)
        return torch.sigmoid(torch.baddbmm(logits, unit, self.out))

    def draw(self, each: int) -> torch.Tensor:
        """So many images of each class."""
        device = self.bias.device
        return self(torch.randn(CLASSES, each, self.latent, device=device))


def dp_merf(steps: int, threads: int = 1) -> Work:
    """DP-MERF on 5,000 images: one noisy embedding, then so many steps of Adam."""
    torch.set_num_threads(threads)
    device = _device()
    image, label = _images(SHAPES["mnist"], PRIVATE_IMAGES, device)
    rows, pixels, half = image.flatten(1) / 2 + 0.5, image[0].numel(), 500
    scale = torch.tensor([0.2, 0.4], device=device).repeat(half // 2)
    frequencies = torch.randn(pixels, half, device=device) / (scale * pixels**0.5)

    def embed(x: torch.Tensor) -> torch.Tensor:
        angle = x @ frequencies
        return torch.cat([angle.cos(), angle.sin()], -1) / half**0.5

    def work() -> None:
        chosen = F.one_hot(label, CLASSES).T.float()
        sums = chosen @ embed(rows)
        target = (sums + torch.randn_like(sums)) / chosen.sum(1, keepdim=True)
        model = _Decoders(pixels).to(device)
        adam = torch.optim.Adam(model.parameters(), 5e-3, fused=True)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for _ in range(steps):
            adam.zero_grad()
            mean = embed(model.draw(10)).mean(1)
            (mean - target).square().sum(1).mean().backward()
            adam.step()
            decay.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return work, {"device": device, "torch": torch.__version__}


def sampling(count: int, threads: int = 1) -> Work:
    """Images of DP-MERF's generator as bytes, a thousand at a time."""
    torch.set_num_threads(threads)
    device = _device()
    h, w, channels = SHAPES["mnist"]
    model = _Decoders(h * w * channels).to(device)

    @torch.no_grad()
    def work() -> None:
        for _ in range(count // 1000):
            (255 * model.draw(100)).round().to(torch.uint8)
        if device == "cuda":
            torch.cuda.synchronize()

    return work, {"device": device, "torch": torch.__version__}


def private(net: str, mode: str, steps: int, threads: int = 1) -> Work:
    """Steps of Opacus: `mode` is "hooks" (per-example gradients) or "ghost"."""
    from opacus import PrivacyEngine

    torch.set_num_threads(threads)
    device = _device()
    image, label = _images(SHAPES["mnist"], PRIVATE_IMAGES, device)
    model = network(net, SHAPES["mnist"]).to(device)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    criterion: Any = nn.CrossEntropyLoss()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(image, label), batch_size=PRIVATE_BATCH
    )
    made = PrivacyEngine().make_private(
        module=model,
        optimizer=sgd,
        data_loader=loader,
        criterion=criterion,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode=mode,
    )
    wrapped, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else criterion

    def work() -> None:
        for _ in range(steps):
            row = torch.randint(0, PRIVATE_IMAGES, (PRIVATE_BATCH,), device=device)
            optimizer.zero_grad()
            criterion(wrapped(image[row]), label[row]).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return work, {"device": device, "torch": torch.__version__}
