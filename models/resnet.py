"""ResNet-18 and ResNet-50 for small images (He et al. 2016), and ResNet-18's pre-activation form."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus shortcut, then ReLU."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 conv-BN-ReLU, 3x3 conv-BN-ReLU, 1x1 conv-BN to four times the width, plus shortcut, then ReLU."""

    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        out_planes = self.expansion * planes
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != out_planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False), nn.BatchNorm2d(out_planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus shortcut; a projecting shortcut starts after the first ReLU."""

    def __init__(self, in_planes: int, planes: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return shortcut + self.conv2(F.relu(self.bn2(out)))


WIDTHS = (64, 128, 256, 512)


def _make_layers(
    block: type[nn.Module], strides: Sequence[int], numbers: Sequence[int] = (2, 2, 2, 2), expansion: int = 1
) -> list[nn.Sequential]:
    """The four groups of blocks; the group's stride belongs to its first block."""
    layers, in_planes = [], WIDTHS[0]
    for planes, stride, number in zip(WIDTHS, strides, numbers, strict=True):
        others = [block(expansion * planes, planes, 1) for _ in range(number - 1)]
        layers.append(nn.Sequential(block(in_planes, planes, stride), *others))
        in_planes = expansion * planes
    return layers


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no max pool.

    Args:
        num_classes: number of logits C.
        strides: of the four groups. (1, 2, 2, 2) is the usual CIFAR ResNet-18; LBGAT's guide has (1, 1, 2, 2).

    Input: images (B, 3, H, W) in [0, 1]. Output: logits (B, C), after a global average pool.
    """

    def __init__(self, num_classes: int, strides: Sequence[int] = (1, 2, 2, 2)):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1, self.layer2, self.layer3, self.layer4 = _make_layers(BasicBlock, strides)
        self.linear = nn.Linear(WIDTHS[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


class ResNet50(nn.Module):
    """ResNet-50 with a 3x3 stem and no max pool (strides 1, 2, 2, 2): the CIFAR network of Engstrom et al. 2019.

    Args:
        num_classes: number of logits C.

    Input: images (B, 3, H, W) in [0, 1]. Output: logits (B, C), after a global average pool.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        layers = _make_layers(Bottleneck, (1, 2, 2, 2), (3, 4, 6, 3), Bottleneck.expansion)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.linear = nn.Linear(Bottleneck.expansion * WIDTHS[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 (strides 1, 2, 2, 2) with a final BN-ReLU, the network of Rice et al. 2020 and AWP.

    Args:
        num_classes: number of logits C.
        final_bn: whether there is the final BN-ReLU; YOPO's network has none.

    Input: images (B, 3, H, W) in [0, 1]. Output: logits (B, C), after a global average pool.
    """

    def __init__(self, num_classes: int, final_bn: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = _make_layers(PreActBlock, (1, 2, 2, 2))
        self.bn = nn.BatchNorm2d(WIDTHS[3]) if final_bn else None
        self.linear = nn.Linear(WIDTHS[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        if self.bn is not None:
            out = F.relu(self.bn(out))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))
