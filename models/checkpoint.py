"""Networks from checkpoints of many forms: which weights in the file are meant, and how they are named.

A file is understood as a whole or refused: no weight is left out, guessed or loaded in part.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import RESNETS, canonical_name, create_model
from models.batchnorm_sets import SECOND
from models.custom import is_custom, source_hashes
from models.normalize import Normalization, parse_normalization, with_normalization
from models.weights import check_fits, infer_architecture, is_state, load_file, load_strictly
from models.wideresnet_swish import SwishWideResNet
from utils.errors import UserError

# In the order of preference: an average is what its recipe is judged by.
WRAPPERS = ("ema", "state_dict_ema", "model_ema", "student", "state_dict", "model_state_dict", "model", "net")
WRAPPING_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
OUTER_NAMES = ("model.", "net.", "network.", "backbone.", "1.")  # of the network beside its normalisation
NORMALIZATIONS = tuple(
    (prefix + mean, prefix + std)
    for prefix in ("", "normalize.", "normalizer.", "normalization.", "0.")
    for mean, std in (("mu", "sigma"), ("mean", "std"), ("new_mean", "new_std"))
)
NORMALIZING = ("mean", "std", "mu", "sigma", "normalize", "normalizer", "normalization")  # beside a state dict


@dataclass(frozen=True)
class Weights:
    """One reading of a file.

    Attributes:
        state: names and tensors.
        normalization: of the pixels, if buffers of the file hold one.
        notes: what was chosen, dropped or renamed, a phrase each.
    """

    state: dict[str, Tensor]
    normalization: Normalization | None = None
    notes: tuple[str, ...] = ()

    def changed(self, state: dict[str, Tensor], note: str, **fields: Any) -> "Weights":
        return replace(self, state=state, notes=(*self.notes, note), **fields)


@dataclass(frozen=True)
class LoadedNetwork:
    """Attributes:
    model: the network, its normalisation inside.
    name: of the network, e.g. ``wrn-34-10``.
    normalize: as ``--normalize`` takes it; ``none`` if there is none.
    notes: what was chosen in the file, a phrase each.
    """

    model: nn.Module
    name: str
    num_classes: int
    normalize: str
    notes: tuple[str, ...]


def find_weights(content: Any, path: str | Path) -> Weights:
    """The state dict that is meant in a loaded file, its names without ``module.`` and ``_orig_mod.``.

    Of one of our runs that averages weights it is the average.

    Raises:
        UserError: there is none, or two names become one.
    """
    state, notes = _unwrap(content)
    if not is_state(state):
        held = f" but {', '.join(map(str, list(state)[:6]))}" if isinstance(state, dict) and state else ""
        raise UserError(
            f"{path} does not hold a state dict (names and tensors), plain or under {', '.join(WRAPPERS)}{held}: pass "
            "a network's weights"
        )
    beside = [key for key in content if str(key).lower() in NORMALIZING and not is_state(content)]
    if beside and isinstance(content[beside[0]], (Tensor, list, tuple, dict, str)):
        raise UserError(
            f"{path} holds {beside[0]!r} beside its weights, which are not loaded without it: save the weights alone "
            "and pass --normalize"
        )
    weights = Weights(state, notes=tuple(notes))
    for prefix in WRAPPING_PREFIXES * 2:  # module._orig_mod. and the reverse
        if any(name.startswith(prefix) for name in weights.state):
            short = {name.removeprefix(prefix): tensor for name, tensor in weights.state.items()}
            if len(short) < len(weights.state):
                raise UserError(
                    f"{path} holds weights both with and without the prefix {prefix!r}: save one set of them"
                )
            weights = weights.changed(short, f"prefix {prefix!r} removed")
    kept = {name: tensor for name, tensor in weights.state.items() if name != "n_averaged"}
    if len(kept) < len(weights.state):
        weights = weights.changed(kept, "the count 'n_averaged' of AveragedModel dropped")
    kept = {name: tensor for name, tensor in weights.state.items() if not name.startswith("sub_block1.")}
    if len(kept) < len(weights.state):
        weights = weights.changed(kept, "the unused group 'sub_block1' of the published files dropped")
    kept = {name: tensor for name, tensor in weights.state.items() if f".{SECOND}." not in name}
    if len(kept) < len(weights.state):
        weights = weights.changed(kept, "the second set of BatchNorm layers, which no evaluation uses, dropped")
    if dtypes := {t.dtype for t in kept.values()} & {torch.float16, torch.bfloat16}:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        weights = weights.changed(kept, f"{names} converted to float32")
    return weights


def _unwrap(content: Any, depth: int = 0) -> tuple[Any, list[str]]:
    if not isinstance(content, dict) or is_state(content) or depth == 3:
        return content, []
    average = content.get("average")
    averaged = isinstance(average, dict) and isinstance(average.get("updates"), int) and average["updates"] > 0
    if averaged and is_state(average.get("weights")):
        return average["weights"], ["the average of the weights"]
    found = [key for key in WRAPPERS if isinstance(content.get(key), dict) and content[key]]
    if not found:
        return content, []
    state, notes = _unwrap(content[found[0]], depth + 1)
    others = f" (not {', '.join(found[1:])})" if len(found) > 1 else ""
    return state, [f"weights under {found[0]!r}{others}", *notes]


def readings(weights: Weights, path: str | Path, custom: bool = False) -> list[Weights]:
    """The ways to read the names: as they are; without the buffers of a normalisation; without an outer name too.

    Args:
        custom: whether the network is a user's, whose buffers of these names may be anything.

    Raises:
        UserError: the buffers hold no mean and standard deviation of three channels.
    """
    found = [weights]
    pair = next((pair for pair in NORMALIZATIONS if weights.state.keys() >= set(pair)), None)
    normalization = _normalization(*(weights.state[name] for name in pair)) if pair else None
    if pair and normalization is None and not custom:
        raise UserError(
            f"{path}: {pair[0]!r} and {pair[1]!r} are no mean and standard deviation of three channels in [0, 1]"
        )
    if normalization is not None:
        rest = {name: tensor for name, tensor in weights.state.items() if name not in pair}
        note = f"normalisation {normalization} from {pair[0]!r} and {pair[1]!r}"
        found.append(weights.changed(rest, note, normalization=normalization))
    last = found[-1]
    for prefix in OUTER_NAMES:
        if all(name.startswith(prefix) for name in last.state):
            short = {name.removeprefix(prefix): tensor for name, tensor in last.state.items()}
            found.append(last.changed(short, f"prefix {prefix!r} removed"))
    return found


def _normalization(mean: Tensor, std: Tensor) -> Normalization | None:
    if {mean.numel(), std.numel()} != {3}:
        return None
    try:
        values = [tuple(float(f"{value:.9g}") for value in tensor.flatten().tolist()) for tensor in (mean, std)]
    except (TypeError, RuntimeError):  # complex, without values, or sparse
        return None
    return found if (found := Normalization(*values)).usable else None


def load_network(
    content: Any, path: str | Path, student: str = "auto", normalize: str = "auto", num_classes: int | None = None
) -> LoadedNetwork:
    """The network in a loaded file.

    Args:
        student: its name; ``auto`` is that of one of our files, or what names and shapes tell.
        normalize: as for ``create_model``; ``auto`` is what the file's buffers hold, else none.
        num_classes: where the names do not tell it, as of a user's network.

    Raises:
        UserError: no network fits the file, or it names code that the user has not named.
    """
    weights = find_weights(content, path)
    run = content["config"] if isinstance(content, dict) and isinstance(content.get("config"), dict) else {}
    choices = readings(weights, path, is_custom(student))
    if is_custom(student):  # in which module., auto. and the like may be names of the user's own
        state, notes = _unwrap(content)
        choices.insert(0, Weights(state, notes=tuple(notes)))
    trained = run["student"] if isinstance(run.get("student"), str) else None
    if student == "auto" and isinstance(trained, str) and is_custom(trained):
        raise UserError(
            f"{path} was trained with {trained}, whose code runs only if you name it: add --student {trained} "
            f"(in Python load(path, {trained!r}))"
        )
    name = canonical_name(trained or "auto" if student == "auto" else student)
    if name == "auto":
        name = next((told for told, _ in (infer_architecture(choice.state) for choice in choices) if told), None)
    if name is None:
        known = ", ".join(RESNETS)
        raise UserError(f"{path} does not tell its network: pass --student, e.g. {known}, wrn-34-10 or FILE.py:NAME")
    if is_custom(name):
        _check_source(name, run, path)
    # Without a known head the network of 10 classes says what is missing.
    inferred = next((n for _, n in (infer_architecture(choice.state) for choice in choices) if n), None)
    if is_custom(name):  # whose layer of the name of a head may be another
        classes = num_classes or inferred or _rows_of_last_matrix(weights.state) or 10
    else:
        classes = inferred or num_classes or 10
    model, chosen = _create(lambda: create_model(name, classes), choices, path, meta=not is_custom(name))
    known = trained is not None and (canonical_name(trained) in RESNETS or canonical_name(trained).startswith("wrn-"))
    if known and not is_custom(name) and canonical_name(trained) != name:
        raise UserError(
            f"{path} was trained as {trained}, and {name} has weights of the same names: pass {trained} as --student, "
            "or as --guide of a frozen guide"
        )
    if chosen.normalization is not None and isinstance(model, SwishWideResNet):
        chosen = _without_own_normalization(chosen, model, path)
    chosen_text = str(chosen.normalization or "none")
    if normalize != "auto":
        asked = parse_normalization(normalize)
        if asked is not None and isinstance(model, SwishWideResNet):
            raise UserError(f"{name} normalises the images by itself: leave out --normalize")
        if chosen.normalization is not None and asked != chosen.normalization:
            raise UserError(f"{path} holds its own normalisation {chosen_text}: leave out --normalize")
        if chosen.normalization is None and asked is not None:
            chosen = replace(chosen, normalization=asked, notes=(*chosen.notes, f"normalisation {asked} as asked for"))
            chosen_text = normalize
    return LoadedNetwork(
        with_normalization(model, chosen.normalization),
        name,
        classes,
        chosen_text,
        chosen.notes or ("weights as named",),
    )


def _without_own_normalization(weights: Weights, model: SwishWideResNet, path: str | Path) -> Weights:
    """Raises: UserError: a Swish network normalises by itself, and the file's mean and std are others."""
    held = weights.normalization
    own = {n: getattr(model, n).flatten() for n in ("mean", "std")}
    if not all(torch.allclose(torch.tensor(getattr(held, n)), own[n], rtol=0, atol=1e-3) for n in own):
        raise UserError(
            f"{path} holds the normalisation {held}, and a Swish network normalises the images by "
            "itself with another: remove its mean and std from the file if that is meant"
        )
    return replace(weights, normalization=None, notes=(*weights.notes, "which the network does by itself"))


def _check_source(name: str, run: dict[str, Any], path: str | Path) -> None:
    """Raises: UserError: the user's source file is not the one that the run was trained with."""
    sources = run.get("sources")
    then = str(sources.get(run.get("student"))) if isinstance(sources, dict) else None
    now = source_hashes(name)[name]
    if then not in (None, now):
        raise UserError(
            f"{path} was trained with another version of {name} (SHA-256 {then[:12]} then, {now[:12]} now): restore "
            "it, or evaluate a student-epochNNN.pt, which holds weights alone"
        )


def _create(
    create: Callable[[], nn.Module], choices: list[Weights], path: str | Path, meta: bool
) -> tuple[nn.Module, Weights]:
    """The network, with the first reading that has its names; compared before it takes memory where it may be."""
    with torch.device("meta" if meta else "cpu"):
        model = create()
    fitting = [_with_counters(choice, model) for choice in choices]
    # The error is about the reading that fits best.
    chosen = min(fitting, key=lambda choice: len(choice.state.keys() ^ model.state_dict().keys()))
    check_fits(model, chosen.state, path)
    if meta:
        model = create()
    load_strictly(model, chosen.state, path)
    return model, chosen


def _with_counters(weights: Weights, model: nn.Module) -> Weights:
    """Files of PyTorch before 0.4.1 do not count batches: 0 is added where a file has no count at all."""
    counters = [name for name in model.state_dict() if name.endswith("num_batches_tracked")]
    if not counters or any(name.endswith("num_batches_tracked") for name in weights.state):
        return weights
    added = {name: torch.zeros((), dtype=torch.long) for name in counters}
    return weights.changed({**weights.state, **added}, "the batch counts of BatchNorm, which the file lacks, set to 0")


def _rows_of_last_matrix(state: dict[str, Tensor]) -> int | None:
    matrices = [tensor for tensor in state.values() if tensor.dim() == 2]
    return matrices[-1].shape[0] if matrices else None


def load(path: str | Path, student: str = "auto", normalize: str = "auto", num_classes: int | None = None) -> nn.Module:
    """The network in a checkpoint, in eval mode on the CPU: images (B, 3, H, W) in [0, 1] -> logits (B, C).

    Args:
        path: a file of this project or a foreign state dict; docs/evaluation.md lists the forms. Nothing in it is run.
        student: as ``--student``; ``auto`` is the file's own. ``my_net.py:MyNet`` runs the code of that file.
        normalize: as ``--normalize``; ``auto`` is what buffers of the file say.
        num_classes: of a user's network, where its last matrix does not tell.

    Raises:
        UserError: missing or damaged file, or no network fits it.
    """
    return load_network(load_file(path), path, student, normalize, num_classes).model.eval()
