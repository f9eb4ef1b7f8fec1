"""AutoAttack on any network and any images: ``evaluate`` for notebooks and other programs."""

import hashlib
import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.attack_loop import attack_images, prepare_model
from evaluation.autoattack.suite import Suite, check_classes, choose_attacks, find_package, needs_gradient
from evaluation.config import VERSIONS
from evaluation.results import PerImageResults
from models.custom import check_outputs
from utils.device import ieee_products
from utils.errors import ensure_writable
from utils.files import lock_folder
from utils.options import COMPILE, NORMS, parse_epsilon, require

STATE = "evaluate.state.npz"


@dataclass(frozen=True)
class Result:
    """Accuracies in percent of the N images, and the results of every image.

    Attributes:
        accuracy_after: of each attack, in the order in which they ran: the percentage still correct.
        robust_accuracy: the same after the last attack.
        clean_prediction, adversarial_prediction: (N,) int64; equal for a robust image.
        robust: (N,) bool.
        broken_by: (N,) str; ``clean`` if misclassified without an attack, an attack's name, or empty if robust.
        x_adv: (N, C, H, W) float32 on the CPU; the clean image where no attack succeeded.
    """

    clean_accuracy: float
    robust_accuracy: float
    accuracy_after: dict[str, float]
    clean_prediction: np.ndarray
    adversarial_prediction: np.ndarray
    robust: np.ndarray
    broken_by: np.ndarray
    x_adv: Tensor


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float | str,
    norm: str = "linf",
    version: str = "standard",
    attacks: str | Sequence[str] = (),
    seed: int = 1,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    compile: str = "off",
    plain: bool = False,
    folder: str | Path | None = None,
) -> Result:
    """Attack images with AutoAttack (Croce & Hein 2020) and return what is still correct.

    The model has its mode, flags, device and weights back afterwards, and PyTorch its random state.

    Args:
        model: images in [0, 1] -> logits (B, K).
        x: (N, C, H, W) float in [0, 1]; y: (N,) int64 labels.
        epsilon: radius of the ball around each image, in the units of x; ``"8/255"`` is read as such.
        norm: ``linf`` or ``l2``.
        version: ``standard``, ``dev``, ``plus``, ``rand``, or ``custom`` for the names in ``attacks``, also as
            one text with commas.
        batch_size: images attacked at once; the random starts depend on it.
        device: where to compute; by default where the model is.
        precision: ``fp32``, ``tf32`` or ``bf16``, of the attacks; what they find is always checked in fp32.
        compile: ``off``, ``on`` for torch.compile, or ``auto``; see ``AttackedModel``.
        plain: run the official front end on the untouched network: slower, for comparison.
        folder: save the state there after each attack on a batch (``evaluate.state.npz``): the same call resumes, and
            once it has finished returns the result at once, for a network of the same weights, forward methods and
            plain attributes (texts and numbers but integers). None saves nothing.

    Raises:
        ValueError: x and y do not have these shapes, x is outside [0, 1], or y outside of the classes.
        UserError: an unknown norm, precision or attack, a CUDA device that is not there, a model that changes its
            images, has no gradient or returns no logits, too few classes, outputs that are not finite, or out of
            memory; or the folder holds the state of another evaluation, or is in use.
    """
    if x.dim() != 4 or y.shape != (len(x),) or len(x) == 0:
        raise ValueError(f"x must be (N, C, H, W) and y (N,), not {tuple(x.shape)} and {tuple(y.shape)}")
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError("x must be in [0, 1]; put normalization into the model")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    require(norm in NORMS, f"norm {norm!r}: choose {' or '.join(NORMS)}")
    if plain and (precision != "fp32" or compile == "on"):
        raise ValueError("plain runs the official front end in fp32, uncompiled: leave precision and compile out")
    require(compile in COMPILE, f"compile {compile!r}: choose {', '.join(COMPILE)}")
    require(version in VERSIONS, f"unknown version {version!r}: choose {', '.join(VERSIONS)}")
    require((version == "custom") == bool(attacks), "attacks go with version='custom', and only with it")
    epsilon = parse_epsilon(epsilon, norm=norm)
    device = torch.device(device or next((p.device for p in model.parameters()), x.device))
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    require(not missing, f"device {str(device)!r}: this machine or this PyTorch has no such CUDA device")
    x, y = x.detach().float().contiguous(), y.detach().long()  # pyautoattack views gradients as rows
    names = choose_attacks(version, attacks if isinstance(attacks, str) else ",".join(attacks))
    suite = Suite(find_package(plain), names, norm, epsilon, seed, version, batch_size, device, plain=plain)
    results = PerImageResults.empty(len(x), tuple(x.shape[1:]), batch_size, len(names), max_saved=len(x))
    # The attacks seed every GPU.
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" or torch.cuda.is_initialized() else []
    state, save = None if folder is None else Path(folder) / STATE, lambda: None
    if state is not None:
        ensure_writable(state.parent, "folder")
    with lock_folder(state.parent, "evaluation") if state else nullcontext():
        if state is not None:
            fingerprint = _fingerprint(model, x, y, suite, precision)
            if state.is_file():
                results = PerImageResults.load(state, fingerprint, results)
            save = partial(results.save, state, fingerprint)
        with _unchanged(model), torch.random.fork_rng(gpus), ieee_products():  # the last one restores the flags of TF32
            # No folding: tracing a network of another project could lose its hooks and Python-side randomness.
            attacked = prepare_model(model, suite, precision, compile, fold=False)
            num_classes = check_outputs("the model", attacked, x[:1].to(device), gradient=needs_gradient(names))
            check_classes(names, num_classes)
            if not 0 <= int(y.min()) <= int(y.max()) < num_classes:
                raise ValueError(f"y must be in [0, {num_classes}), the classes of the model")
            attack_images(
                attacked, suite, (epsilon,), lambda part: (x[part].to(device), y[part].to(device)), results, save
            )
    accuracies = results.accuracies(names)
    return Result(
        clean_accuracy=accuracies.pop("clean"),
        robust_accuracy=accuracies[names[-1]],
        accuracy_after=accuracies,
        clean_prediction=results.clean_prediction,
        adversarial_prediction=results.adversarial_prediction[0],
        robust=results.robust[0],
        broken_by=results.broken_by[0],
        x_adv=torch.from_numpy(results.x_adv(x.cpu().numpy())),
    )


def _fingerprint(model: nn.Module, x: Tensor, y: Tensor, suite: Suite, precision: str) -> dict[str, Any]:
    """What the result depends on: the network's code, numbers and weights, the images and the settings."""
    weights, images, code = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    for name, module in model.named_modules():
        forward = getattr(getattr(type(module), "forward", None), "__code__", None)
        numbers = {key: value for key, value in vars(module).items() if _is_plain(value)}
        code.update(repr((name, _instructions(forward), numbers)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for tensor in (x, y):
        images.update(tensor.cpu().numpy().tobytes())
    return {
        "model": type(model).__qualname__,
        "code_sha256": code.hexdigest(),
        "weights_sha256": weights.hexdigest(),
        "data_sha256": images.hexdigest(),
        "norm": suite.norm,
        "epsilon": suite.epsilon,
        "version": suite.version,
        "attacks": list(suite.attacks),
        "seed": suite.seed,
        "batch_size": suite.batch_size,
        "precision": precision,
        "device": torch.device(suite.device).type,
        "plain": suite.plain,
        "torch": importlib.metadata.version("torch"),
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(isinstance(part, (int, float, str)) for part in value)
    return isinstance(value, (float, str))  # an integer may be a counter of the network's calls


def _instructions(code: Any) -> Any:
    """What a function does, wherever it stands: its instructions, the names in them, and its constants."""
    if not isinstance(code, CodeType):
        return code if isinstance(code, (int, float, str, bytes, tuple, NoneType)) else ""
    return code.co_code, code.co_names, [_instructions(constant) for constant in code.co_consts]


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Give a network its modes, flags, devices and memory order back, and cuDNN its own flag."""
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.data, p.grad, p.requires_grad) for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None  # which would move to another device with it
    buffers = [(module, name, b) for module in model.modules() for name, b in module.named_buffers(recurse=False)]
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        for module, training in modes:
            module.training = training
        for parameter, data, gradient, requires_grad in parameters:
            parameter.data, parameter.grad = data, None
            parameter.grad = gradient
            parameter.requires_grad_(requires_grad)
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
