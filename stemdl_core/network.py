"""Fully convolutional networks that give every pixel a probability for each class.

Two architectures by name:

``paper``
    Encoder-decoder without skip connections: 3x3 convolutions with ReLU, 8/16/32 filters (one convolution on the
    first level, two on the deeper ones), 2x2 max-pooling; a decoder with the same filters in reverse order and
    un-pooling to the remembered positions of the maxima; a linear 3x3 and a 1x1 convolution; softmax [1]_ [2]_.
``unet``
    The default: a small U-Net [3]_ with batch normalisation. Its skips keep positions sharp, its deeper
    level sees several unit cells, which finds the lattice where single atoms drown in noise.

References
----------
.. [1] Ziatdinov et al., ACS Nano 2017, 11, 12742, Methods.
.. [2] Badrinarayanan et al., IEEE Trans. Pattern Anal. Mach. Intell. 2017, 39, 2481 (SegNet un-pooling).
.. [3] Ronneberger et al., MICCAI 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import ModelError


class PaperNet(nn.Module):
    """The paper's encoder-decoder. Input (B, 1, H, W), output logits (B, C, H, W); H and W multiples of 4."""

    multiple = 4

    def __init__(self, classes: int, filters: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        first, second, third = filters
        self.down1 = nn.Conv2d(1, first, 3, padding=1)
        self.down2 = _relu_pair(first, second)
        self.bottom = _relu_pair(second, third)
        self.up2 = _relu_pair(third, second)
        self.up1 = nn.Conv2d(second, first, 3, padding=1)
        self.last = nn.Conv2d(first, classes, 3, padding=1)
        self.classify = nn.Conv2d(classes, classes, 1)
        # Un-pooling needs as many channels as the pooled map: 1x1 convolutions match them.
        self.match2 = nn.Conv2d(third, second, 1)
        self.match1 = nn.Conv2d(second, first, 1)
        self.widen2 = nn.Conv2d(second, third, 1)
        self.widen1 = nn.Conv2d(first, second, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.down1(x))
        x, where1 = functional.max_pool2d(x, 2, return_indices=True)
        x = self.down2(x)
        x, where2 = functional.max_pool2d(x, 2, return_indices=True)
        x = self.bottom(x)
        x = functional.max_unpool2d(self.match2(x), where2, [2, 2])
        x = self.up2(self.widen2(x))
        x = functional.max_unpool2d(self.match1(x), where1, [2, 2])
        x = functional.relu(self.up1(self.widen1(x)))
        return self.classify(self.last(x))


def _relu_pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(),
                         nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    """Small U-Net. Input (B, 1, H, W), output logits (B, C, H, W); H and W multiples of 2^(levels - 1)."""

    def __init__(self, classes: int, filters: tuple[int, ...] = (16, 32, 64, 64)) -> None:
        super().__init__()
        self.multiple = 2 ** (len(filters) - 1)
        inputs = (1, *filters[:-1])
        self.down = nn.ModuleList(_norm_pair(i, o) for i, o in zip(inputs, filters))
        self.narrow = nn.ModuleList(nn.Conv2d(deep, here, 1) for here, deep in zip(filters[:-1], filters[1:]))
        self.up = nn.ModuleList(_norm_pair(2 * here, here) for here in filters[:-1])
        self.classify = nn.Conv2d(filters[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for level in range(len(self.down) - 2, -1, -1):
            # Channels are reduced before enlarging: the same result as after, at a quarter of the cost.
            x = functional.interpolate(self.narrow[level](x), scale_factor=2, mode="bilinear", align_corners=False)
            x = self.up[level](torch.cat([kept[level], x], dim=1))
        return self.classify(x)


def _norm_pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
                         nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


ARCHITECTURES = {"paper": PaperNet, "unet": UNet}


def build_network(architecture: str, classes: int, filters: tuple[int, ...]) -> nn.Module:
    """A network by name, with fresh weights.

    Raises
    ------
    ModelError
        If there is no such architecture.
    """
    if architecture not in ARCHITECTURES:
        raise ModelError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture](classes, tuple(filters))


DEFAULT_FILTERS = {"paper": (8, 16, 32), "unet": (16, 32, 64, 64)}


def count_weights(network: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def fuse(network: nn.Module) -> nn.Module:
    """Fold batch normalisation into the convolutions, for inference: the same function, fewer passes."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            layers = list(module)
            for k in range(len(layers) - 1):
                if isinstance(layers[k], nn.Conv2d) and isinstance(layers[k + 1], nn.BatchNorm2d):
                    module[k] = nn.utils.fuse_conv_bn_eval(layers[k], layers[k + 1])  # type: ignore[type-var, arg-type]
                    module[k + 1] = nn.Identity()
    return network
