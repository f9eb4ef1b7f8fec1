"""WideResNet with Swish activations, as Gowal et al. (2020) train and publish it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Mean and standard deviation of CIFAR's channels, which these networks subtract and divide by themselves.
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


class Block(nn.Module):
    """BN-Swish-conv-BN-Swish-conv plus shortcut; where the width changes, the shortcut starts after the first Swish.

    A strided convolution is padded on the right and below only, as TensorFlow's SAME.
    """

    def __init__(self, in_planes: int, out_planes: int, stride: int):
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(in_planes)
        self.conv_0 = nn.Conv2d(in_planes, out_planes, 3, stride=stride, padding=0 if stride > 1 else 1, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(out_planes)
        self.conv_1 = nn.Conv2d(out_planes, out_planes, 3, padding=1, bias=False)
        self.shortcut = None
        if in_planes != out_planes:
            self.shortcut = nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.silu(self.batchnorm_0(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        if self.stride > 1:
            out = F.pad(out, (0, 1, 0, 1))
        out = F.silu(self.batchnorm_1(self.conv_0(out)))
        return shortcut + self.conv_1(out)


class Group(nn.Module):
    """One group of blocks; only the first changes width and resolution."""

    def __init__(self, num_blocks: int, in_planes: int, out_planes: int, stride: int):
        super().__init__()
        blocks = [
            Block(in_planes if i == 0 else out_planes, out_planes, stride if i == 0 else 1) for i in range(num_blocks)
        ]
        self.block = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class SwishWideResNet(nn.Module):
    """WRN-depth-widen_factor with Swish x sigmoid(x) for ReLU, and the images normalised inside.

    Args:
        depth: 10, 16, 22, 28, 34, ...: 6n + 4.
        widen_factor: k, at least 1.
        num_classes: number of logits C; with 100 the images are normalised as CIFAR-100's, otherwise as CIFAR-10's.

    Input: images (B, 3, H, W) in [0, 1], H and W multiples of 4. Output: logits (B, C). The linear layer starts at 0.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int):
        super().__init__()
        n = (depth - 4) // 6
        widths = [16, 16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        mean, std = CIFAR100 if num_classes == 100 else CIFAR10
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.init_conv = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        groups = [Group(n, widths[i], widths[i + 1], 1 if i == 0 else 2) for i in range(3)]
        self.layer = nn.Sequential(*groups)
        self.batchnorm = nn.BatchNorm2d(widths[3])
        self.logits = nn.Linear(widths[3], num_classes)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.init_conv((x - self.mean) / self.std))
        return self.logits(F.adaptive_avg_pool2d(F.silu(self.batchnorm(out)), 1).flatten(1))
