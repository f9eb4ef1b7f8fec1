"""The network as the attacks see it: frozen, fast, within the memory, and not asked again about a settled image."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch._functorch.config
from torch import Tensor, nn

from models.accelerate import DYNAMIC, AcceleratedModel, choose_acceleration
from utils.device import ieee_products, set_precision
from utils.errors import UserError

# A point settles its image only if the wrong class leads by this part of the largest logit: the verdict asks again, in
# another batch, and must not see a rounding turn it round.
MIN_MARGIN = 1e-4


class AllImagesBroken(Exception):
    """Every image of the run has left: the attack need not go on."""


class Run:
    """One run of an attack: which of its images are settled, and by which point.

    Row i of a query is image i: every query of a run of APGD or FAB asks about all of its images.

    Args:
        x: clean images (N, C, H, W); y: (N,), all of them the network's predictions.
        counts: of the points (N, C, H, W) of a query, those at which the attack would find a wrong class (N,).
    """

    def __init__(self, x: Tensor, y: Tensor, counts: Callable[[Tensor], Tensor] | None):
        self.y, self.counts = y, counts
        self.points = x.clone() if counts else x
        self.left = torch.zeros_like(y, dtype=torch.bool)
        self.standing: Tensor | None = None  # indices (M,); None is all of them
        self.logits: Tensor | None = None  # of the latest query; those of the images that left stay

    def merge(self, logits: Tensor) -> Tensor:
        """Logits (M, K) of those that stand -> of all (N, K); what left keeps its latest and has no gradient."""
        if self.standing is None:
            return logits
        return self.logits.index_copy(0, self.standing, logits)

    @torch.no_grad()
    def look(self, images: Tensor, logits: Tensor) -> None:
        """Let the images leave whose verdict these logits (N, K) of all settle."""
        if self.counts is None:
            return
        self.logits = logits.clone()
        settled = (margin(logits, self.y) > MIN_MARGIN * logits.abs().amax(1)) & self.counts(images) & ~self.left
        if settled.any():
            self.points[settled] = images[settled]
            self.left |= settled
            self.standing = (~self.left).nonzero().squeeze(1)


class AttackedModel(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K), float32, differentiable in the images alone.

    Called plainly it is the network as loaded, in IEEE float32: clean predictions and the verdict on what an attack
    found are its. Inside ``watching`` it answers an attack, with everything that makes it fast.

    Args:
        model: is put into eval mode on the device, frozen, and its weights into channels_last memory order.
        precision: ``fp32``, ``tf32`` or ``bf16``, of the attack's queries.
        compile: ``auto`` (on CUDA), ``on`` or ``off``.
        fold: the attacked network has its BatchNorm folded into the convolutions.
        leaving: settled images leave.

    Attributes:
        piece: most rows computed at once. Where the memory does not suffice it is halved, and the query repeated.
        rows: how many rows were computed for attacks, so far.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        compile: str = "auto",
        fold: bool = True,
        leaving: bool = True,
    ):
        super().__init__()
        device = torch.device(device)
        self.model = model.to(device).eval().requires_grad_(False)
        acceleration = replace(choose_acceleration(device, compile, DYNAMIC), fold=fold)
        torch._functorch.config.donated_buffer = False  # what is compiled allows several gradients of one forward
        self._network = AcceleratedModel(self.model, acceleration, set_precision(precision, device))
        self._exact = precision == "fp32"
        self._leaving = leaving
        self._run: Run | None = None
        self.piece, self.rows = sys.maxsize, 0

    def forward(self, images: Tensor) -> Tensor:
        """Raises: UserError: a single row does not fit into the memory. AllImagesBroken: inside ``watching`` only."""
        run = self._run
        if run is None:
            return self._fitting(images, self._plain)
        if len(images) != len(run.y):  # FAB passes over images that another batch's rounding makes wrong
            return self._asked(images)
        if run.standing is None:
            logits = self._asked(images, run.y)
        elif len(run.standing):
            logits = self._asked(images[run.standing], run.y[run.standing])
        else:
            raise AllImagesBroken
        logits = run.merge(logits)
        run.look(images, logits)
        return logits

    @contextmanager
    def watching(self, x: Tensor, y: Tensor, counts: Callable[[Tensor], Tensor] | None = None) -> Iterator[Run]:
        """Answer a run of an attack on images x (N, C, H, W) of labels y (N,), see ``Run``; None: nothing leaves."""
        self._run = Run(x, y, counts if self._leaving else None)
        try:
            yield self._run
        finally:
            self._run = None

    def _asked(self, images: Tensor, y: Tensor | None = None) -> Tensor:
        self.rows += len(images)
        logits = self._fitting(images, self._network.attack_logits)
        if y is not None and not self._exact:
            # What low precision takes for wrong is asked again: otherwise the attack stops at points that the verdict
            # throws away. The values are float32's, the gradients stay.
            with torch.no_grad():
                wrong = (margin(logits, y) >= 0).nonzero().squeeze(1)
                if len(wrong):
                    logits[wrong] = self._fitting(images.detach()[wrong], self._plain)
        return logits

    def _plain(self, images: Tensor) -> Tensor:
        with ieee_products():
            return self.model(images)

    def _fitting(self, images: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        if torch.is_grad_enabled() and images.requires_grad:
            return _Differentiable.apply(images, self, forward)
        return self.in_pieces(lambda part: forward(images[part]), len(images))

    def in_pieces(self, function: Callable[[slice], Tensor], rows: int) -> Tensor:
        """``function`` of slices of ``rows`` rows, its results joined.

        Raises:
            UserError: one row alone does not fit into the memory.
        """
        start, results = 0, []
        while start < rows:
            part = slice(start, min(start + self.piece, rows))
            try:
                results.append(function(part))
                start = part.stop
            except torch.cuda.OutOfMemoryError as error:
                self.halve(part.stop - part.start, error)
        return results[0] if len(results) == 1 else torch.cat(results)

    def halve(self, rows: int, error: torch.cuda.OutOfMemoryError) -> None:
        """So many rows did not fit."""
        if rows == 1:
            raise UserError("one image alone does not fit into the device's memory: free it, or pass --device cpu")
        self.piece = rows // 2
        # The traceback holds the failed pass's activations.
        error.__traceback__ = None
        torch.cuda.empty_cache()


class _Differentiable(torch.autograd.Function):
    """A forward in pieces. Where all rows fit into one its graph is kept; otherwise the backward repeats the forward,
    piece by piece, since the graphs of all pieces together would not fit."""

    @staticmethod
    def forward(ctx, images: Tensor, queries: AttackedModel, forward: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.images, ctx.queries, ctx.network, ctx.graph = images.detach(), queries, forward, None
        if len(images) <= queries.piece:
            try:
                ctx.graph = _graph(forward, ctx.images)
                return ctx.graph[1].detach()
            except torch.cuda.OutOfMemoryError as error:
                queries.halve(len(images), error)
        return queries.in_pieces(lambda part: forward(ctx.images[part]), len(images))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        def of_piece(part: slice) -> Tensor:
            leaf, logits = ctx.graph or _graph(ctx.network, ctx.images[part])
            # FAB without a target asks for the gradient of each class in turn.
            return torch.autograd.grad(logits, leaf, gradient[part], retain_graph=ctx.graph is not None)[0]

        if ctx.graph:
            try:
                return of_piece(slice(None)), None, None
            except torch.cuda.OutOfMemoryError as error:
                ctx.graph = None
                ctx.queries.halve(len(ctx.images), error)
        return ctx.queries.in_pieces(of_piece, len(ctx.images)), None, None


def _graph(forward: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        return leaf, forward(leaf)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """By how much the likeliest wrong class leads (N,), from logits (N, K) and labels (N,)."""
    own = y.unsqueeze(1)
    return logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own).squeeze(1)


def fastest_batch(queries: AttackedModel, image_shape: tuple[int, int, int], most: int = 4096) -> int:
    """Images a chunk: doubled as long as they fit into the memory and a step's images per second grow by 5%.

    Takes seconds, and as long as it takes to compile where that is on.

    Args:
        image_shape: (C, H, W).
        most: as many images as a chunk may have, at least 1.

    Raises:
        UserError: not even one fits.
    """
    best, best_rate, size = 0, 0.0, min(16, most)
    while size <= min(most, 4096):
        images = torch.rand(size, *image_shape, device=next(queries.parameters()).device)
        rate = size / _seconds_a_step(queries, images)
        if queries.piece < size or rate < 1.05 * best_rate:
            break
        best, best_rate, size = size, rate, 2 * size
    return best or queries.piece


def _seconds_a_step(queries: AttackedModel, images: Tensor) -> float:
    """Forward and backward; the best of some, since the first ones compile and time algorithms."""
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    seconds, end = [], None
    while len(seconds) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        leaf = images.clone().requires_grad_()
        with queries.watching(images, labels), torch.enable_grad():
            torch.autograd.grad(queries(leaf).logsumexp(1).sum(), leaf)[0].sum().item()  # waits for the device
        seconds.append(time.perf_counter() - started)
        end = end or time.perf_counter() + 0.3
    return min(seconds)
