"""The ResNet and the MultiResNet in PyTorch, layer for layer as `resfool.networks` has them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

STAGES = 5


class Transform(nn.Module):
    """Batch normalisation, ReLU, 3x3 convolution."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
        self.conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """H of equations 2 and 4."""
        return self.conv(functional.relu(self.norm(x)))


class ResNet(nn.Module):
    """Equation 2; the first unit of stages 2 to 5 has stride 2."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        strides = [2 if s and not u else 1 for s in range(STAGES) for u in range(depth // STAGES)]
        self.units = nn.ModuleList(Transform(width, width, stride) for stride in strides)
        self.logits = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) to logits (N, 10)."""
        x = self.stem(x)
        for unit in self.units:
            halved = unit.conv.stride[0] == 2
            x = unit(x) + (functional.avg_pool2d(x, 2) if halved else x)
        return self.logits(x.mean((2, 3)))


class MultiResNet(nn.Module):
    """Equation 4; 2x2 average pooling between the stages."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        per_stage = depth // STAGES
        self.stages = nn.ModuleList(
            nn.ModuleList(Transform(width * (i + 1), width) for i in range(per_stage))
            for _ in range(STAGES)
        )
        self.logits = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) to logits (N, 10)."""
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            maps = [functional.avg_pool2d(x, 2) if index else x]
            for unit in stage:
                maps.append(unit(torch.cat(maps, 1) if len(maps) > 1 else maps[0]))
            x = maps[-1]
        return self.logits(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet": ResNet,
    "multiresnet": MultiResNet,
}
