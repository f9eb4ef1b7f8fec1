"""Entry points of torch.hub for the trained networks that ship.

    model = torch.hub.load("PATH/TO/REPOSITORY", "lbgat6_wrn16_2_cifar100", source="local")

Every network maps images in [0, 1], float32 NCHW, to logits (B, C). It is in eval mode on the CPU.
"""

from pathlib import Path

from torch import nn

from models import create_model, load

dependencies = ["torch"]


def lbgat6_wrn16_2_cifar100(pretrained: bool = True) -> nn.Module:
    """WRN-16-2 for CIFAR-100, images (B, 3, 32, 32), trained by LBGAT6 for 30 epochs at l-inf epsilon 0.031."""
    return _network("wrn-16-2", 100, "lbgat6-short-cifar100-wrn16-2.pt", pretrained)


def lbgat2_wrn10_1_digits(pretrained: bool = True) -> nn.Module:
    """WRN-10-1 for the digits of scikit-learn, images (B, 3, 16, 16), by LBGAT (beta 2) at l-inf epsilon 0.1."""
    return _network("wrn-10-1", 10, "quickstart-digits.pt", pretrained)


def _network(name: str, num_classes: int, file: str, pretrained: bool) -> nn.Module:
    if not pretrained:
        return create_model(name, num_classes).eval()
    return load(Path(__file__).resolve().parent / "checkpoints" / file, name)
