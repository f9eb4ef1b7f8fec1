"""Weights on disk: ours, the published ones, and everything a resumed run needs."""

import io
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError

LARGEST_RATIO = 4  # how many times the members of a checkpoint may be larger than the file: torch compresses nothing


def load_file(path: str | Path, device: torch.device | str = "cpu", content: bytes | None = None) -> Any:
    """What a torch file (legacy or zip format) or a ``.safetensors`` file holds, on the device; nothing in it is run.

    Args:
        content: the bytes of the file, if they have been read already.

    Raises:
        UserError: missing, truncated, not a torch file, or a pickle with code in it.
    """
    if content is None:
        content = read_file(path)
    if Path(path).suffix == ".safetensors" or content[8:10] == b'{"':  # its header, after the length
        return _load_safetensors(path, device, content)
    try:
        if is_torchscript(content):
            raise UserError(
                f"{path} is a TorchScript program, which is never run here: save the state_dict() of the network"
            )
        if damaged := damaged_members(content):
            raise ValueError(f"the checksum of {damaged[0]} is wrong")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign pickles, which the sentences below are about
            return torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if _holds_code(content, str(error)):
            raise UserError(
                f"{path} holds more than weights (pickled code or objects), which is never run here: "
                "save its plain state_dict and pass that"
            ) from error
        raise UserError(f"{path} is not a torch checkpoint: download or copy it again") from error
    except Exception as error:  # a damaged file makes zipfile, pickle, struct and torch raise nearly anything
        raise UserError(f"{path} is damaged, truncated or not a torch checkpoint: download or copy it again") from error


def _load_safetensors(path: str | Path, device: torch.device | str, content: bytes) -> dict[str, Tensor]:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        return {name: tensor.to(device) for name, tensor in safetensors.torch.load(content).items()}
    except Exception as error:  # its own error class, or what a damaged header raises
        raise UserError(f"{path} is damaged, truncated or no safetensors file: download or copy it again") from error


def read_file(path: str | Path) -> bytes:
    """Raises: UserError: missing, or not readable."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder: pass a file in it, such as last.pt")
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at {path}: check the path")
    try:
        return Path(path).read_bytes()
    except PermissionError as error:
        raise UserError(f"{path} may not be read: change its permissions") from error


def is_torchscript(content: bytes) -> bool:
    """Whether torch.load would hand the file to torch.jit.load: PyTorch before 2.6 does so in spite of weights_only."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return False
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return any(Path(name).name == "constants.pkl" for name in file.namelist())


def damaged_members(content: bytes) -> list[str]:
    """The members of a zip file whose CRC-32 is wrong: torch checks none. Empty for other files, and where no member
    has a right one, since torch can be told to write none."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return []
    wrong, total = [], 0
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if sum(info.file_size for info in file.infolist()) > LARGEST_RATIO * len(content):
            raise ValueError("its members are larger than the file")
        for info in file.infolist():
            total += info.file_size > 0
            try:
                with file.open(info) as member:
                    while member.read(1 << 24):
                        pass
            except zipfile.BadZipFile:
                wrong.append(info.filename)
    return wrong if len(wrong) < total else []


def _holds_code(content: bytes, message: str) -> bool:
    """Whether torch refused the file for a class or function in it, rather than for not being a torch file."""
    if "unexpected EOF" in message:
        return False
    return content[:1] == b"\x80" or re.search(r"unsupported (global|class)|reduce", message, re.IGNORECASE) is not None


def is_state(content: Any) -> bool:
    """Whether it is a state dict: names and tensors, at least one."""
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items())
    )


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Fill the model; every name, shape and kind of number must fit. Half precision becomes the model's.

    Raises:
        UserError: with the left-over and missing names, or the shapes that differ.
    """
    check_fits(model, state, path)
    model.load_state_dict(state)


def check_fits(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Raises: UserError: as ``load_strictly``; the model may be on the meta device, where it takes no memory."""
    expected = model.state_dict()
    if not isinstance(state, dict) or (state and not is_state(state)):
        raise UserError(f"{path} is damaged: a part of it is not a state dict (names and tensors); copy it again")
    missing, left_over = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or left_over:
        raise UserError(
            f"{path} is of another architecture than the network that was asked for: "
            f"missing {_enumerate(missing)}; left over {_enumerate(left_over)}"
        )
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if state[name].shape != expected[name].shape
    ]
    if wrong:
        raise UserError(f"{path} is of another width or class count: {_enumerate(wrong)}")
    odd = [
        f"{name} {str(state[name].dtype).removeprefix('torch.')} {str(state[name].layout).removeprefix('torch.')}"
        for name in expected
        if state[name].layout != torch.strided
        or state[name].is_meta
        or state[name].is_quantized
        or state[name].is_complex()
        or state[name].is_floating_point() != expected[name].is_floating_point()
    ]
    if odd:
        raise UserError(f"{path} holds tensors that are no plain weights: {_enumerate(odd)}; save its state_dict again")
    storages = [state[name].untyped_storage() for name in expected]
    stored = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    # Weights that the network ties may be stored once. (On the meta device storages have no address, but an identity.)
    needed: dict[int, tuple[int, int]] = {}
    for name, tensor in expected.items():
        storage = tensor.untyped_storage()
        size = state[name].numel() * state[name].element_size() + needed.get(storage._cdata, (0, 0))[0]
        needed[storage._cdata] = size, storage.nbytes()
    if stored < sum(map(min, needed.values())):
        raise UserError(
            f"{path} holds fewer numbers than its shapes say (expanded or shared tensors): save clones of them"
        )


def _enumerate(names: list[str]) -> str:
    """The first eight, and how many more there are."""
    if not names:
        return "nothing"
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def infer_architecture(state: dict[str, Tensor]) -> tuple[str | None, int | None]:
    """Network name and class count, as far as names and shapes tell them.

    ResNet-18 and the guide differ in their strides alone, which no checkpoint shows: their name is None.
    """
    for head in ("fc.weight", "linear.weight", "logits.weight"):
        if head in state and state[head].dim() == 2:
            num_classes = state[head].shape[0]
            break
    else:
        return None, None
    blocks = {int(m[1]) for name in state if (m := re.match(r"block1\.layer\.([0-9]{1,3})\.", name))}
    if blocks and state.get("bn1.weight", torch.empty(())).dim() == 1:
        return f"wrn-{6 * len(blocks) + 4}-{state['bn1.weight'].shape[0] // 64}", num_classes
    swish = {int(m[1]) for name in state if (m := re.match(r"layer\.0\.block\.([0-9]{1,3})\.", name))}
    if swish and state.get("batchnorm.weight", torch.empty(())).dim() == 1:
        return f"wrn-{6 * len(swish) + 4}-{state['batchnorm.weight'].shape[0] // 64}-swish", num_classes
    if "layer1.0.conv3.weight" in state:
        return "resnet50", num_classes
    return ("preactresnet18" if "bn.weight" in state else None), num_classes


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, as the published programs save it."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
