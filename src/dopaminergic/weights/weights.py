"""Weights that are perturbed, restored and updated, and are never left in between.

Three ways to and back from a perturbation, chosen by size:

- *saved*: small models (up to 1 MiB), and 16-bit weights that cannot be perturbed on use, keep a copy while a step
  lasts. Going back is a copy, exact to the bit, and can be repeated, so an interruption at any moment is harmless.
- *on use*: large models of 16 bits stay as they are, and torch's operations are given perturbed weights, see `on_use`.
  There is nothing to go back from but an update that was interrupted between two blocks, which is finished instead.
- *in place*: large float32 and float64 models take the displacement back, at no memory. With Rademacher directions
  going back is exact to the bit for |w| < 2^17 sigma, see `noise`: sigma is rounded to 6 significant bits, and weights
  lie on its grid, where an update leaves them and where the first step brings them (by at most half a unit in the last
  place of |w| + sigma). Gaussian directions, and the trial step of VectorDopamine, are taken back to a unit in the last
  place for each direction. Signals wait while the arithmetic runs, which must not be done twice.
"""

from __future__ import annotations

import functools
import math
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dopaminergic import checks
from dopaminergic.noise import FAST_DTYPES, MANTISSA_BITS_DROPPED, Combination, Multiple, Term
from dopaminergic.noise.reference import WITHOUT_DOUBLE
from dopaminergic.noise.terms import along_one, difference, equal, negative, nonzero, scaled
from dopaminergic.weights import footing
from dopaminergic.weights.interruption import uninterrupted
from dopaminergic.weights.sharding import first_element, is_sharded, local, parts

SAVED_BYTES = 1 << 20
PIECE = 1 << 16  # weights
NORMAL_MOST = 6.7  # the largest normal number that 32 bits give, sqrt(64 ln 2)
SIGMA_BITS = 6  # few enough for a large range of exact weights, enough to be within 1.6 % of what was asked for

KIND = operator.attrgetter("dtype", "requires_grad", "shape")


class Block(NamedTuple):
    """Trainable parameters of one group that are alike, with the index of each in the noise."""

    group: int
    parameters: list[Tensor]
    indices: list[int]


class Weights:
    """The trainable tensors of an optimizer's groups during a step.

    Args:
        groups: the optimizer's `param_groups`.
        seeds: uint64 `(R,)`, one for each replica.
        kind: `"rademacher"` or `"gaussian"`.
        shared: `sigma` is the length of a perturbation of all weights together, not that of one.
        keep_copies: of all weights during a step, however many there are.
        on_use: large 16-bit weights are perturbed where they are used; the closure is called by `OnUse`.
        rule: the optimizer's name, for errors.
        replicas: R of a fleet; None for one model.

    Attributes:
        sizes: number of trainable weights of one replica in each group.
        sigmas: how far a perturbation moves each weight of a group: what is asked for or, where weights are perturbed
            in place by signs, that number rounded to 6 significant bits.
        bytes: memory of all trainable weights.
        blocks: the trainable parameters; a new list whenever they have changed.
        generators: torch's generators that a closure may draw from.
        sharded: some parameters are DTensors, of which this rank holds a part; all numbers above are of the whole.
        saved_all: every weight comes back to the bit from any move; the same on all ranks, also on one without weights.
        on_use_blocks: those of `blocks` that are perturbed on use.
        held: terms by which they are to be perturbed now; None for as they are.
        held_rounding: which random numbers round them then.
        unfinished: None, or what completes an update that was interrupted.
        simple: there is one group, and nothing to look after but its weights and torch's generator on the CPU.
        write: None, or what moves the weights of a small model along one direction, a function of the scale, the
            multiple, the direction, the step and the rounding; as `move` does, or with a rounding of 0 `update`.
        traces: None, or what `move` (its terms) and `restore` (an empty list) have written in place since a journal
            emptied it; such writes are not undone to the bit, so that a replay must do them too.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        seeds: np.ndarray,
        kind: str,
        *,
        shared: bool = False,
        keep_copies: bool = False,
        on_use: bool = False,
        rule: str = "Weights",
        replicas: int | None = None,
    ) -> None:
        self.rule, self.replicas = rule, replicas
        self.groups, self.seeds, self.kind, self.shared = groups, seeds, kind, shared
        self.keep_copies, self.on_use, self.sharded, self.saved_all = keep_copies, on_use, False, True
        self.on_use_blocks: list[Block] = []
        self.held: list[Term] | None = None
        self.held_rounding = 0
        self.unfinished: Callable[[], None] | None = None
        self.sizes: list[int] = []
        self.sigmas: list[float] = []
        self.simple = False
        self.write: Callable[..., None] | None = None
        self.bytes = 0
        self.blocks: list[Block] = []
        self.generators: list[torch.Generator] = []
        self.traces: list[list[Term]] | None = None
        self.step = 0
        self._places: list[footing.Place] = []
        self._most = NORMAL_MOST if kind == "gaussian" else 1.0  # the largest entry of a direction
        self._room = 0.0  # how far any weight can still move before its dtype must be looked at
        # One for the parameters of each group that are alike: same dtype, same device.
        self._saved: list[Combination] = []
        self._in_place: list[Combination] = []
        self._on_use: list[Combination] = []
        self._layout: list[Any] = []
        self._seen: tuple[float, list[tuple[int, int]]] | None = None
        # How far each block that is perturbed in place is from the weights at `begin`: its terms and its scale. Each
        # has its own, since an exception may come between two.
        self._displaced: list[tuple[list[Term], list[Multiple] | None]] = []
        self._waiting: list[list[Term]] = []  # what is still to be added to each of them, before all else
        self._grids: list[float] | None = None  # on which those blocks lie; None: as they come
        self._versions: list[float] = []  # of the tensors on the grid, by which torch tells that somebody wrote to them
        self._untold = False  # torch counts no versions of some, which were made in torch.inference_mode()

    def begin(self, step: int) -> None:
        """Look at the parameters as they are now; afterwards all attributes are up to date.

        Weights that are perturbed in place by signs are brought onto the grid of sigma if they do not lie there.
        """
        if self._in_place and self.displaced:
            self.restore(self.step)  # the last step could not, for want of memory say
        self.step = step
        if self._layout_now() != self._layout:
            self._layout, self._seen = [], None  # until all is arranged, for Ctrl-C may come
            self._arrange()
            self._choose_sigmas([group["sigma"] for group in self.groups])
            self._layout, self._seen = self._layout_now(), self._see()
        if self._grids is not None and self._versions != self._version_numbers():
            with uninterrupted():
                self._write_in_place([], None, always=True)
        if self._grids is None:
            self._versions = self._version_numbers()

    def begin_again(self, step: int) -> bool:
        """Begin where the weights of a small model lie as `begin` saw them last, in less time; False: call that.

        A parameter of another shape in the same memory goes unnoticed, which `write` does not need to know.
        """
        if self._seen is None or len(self.groups) > 1:
            return False
        (group,), (sigma, places) = self.groups, self._seen
        parameters = group["params"]
        if sigma != group["sigma"] or len(parameters) != len(places):
            return False
        for p, (address, count) in zip(parameters, places):  # noqa: B905 (their lengths are equal; to say so takes time)
            if not (p.data_ptr() == address and p.numel() == count and p.is_contiguous() and p.requires_grad):
                return False
        self.step = step
        return True

    def check(self) -> None:
        """Look whether the weights still lie where they lay, after code of others has run.

        Where they do not, they are brought back in the memory that they have now, and the step goes on there.

        Raises:
            RuntimeError: a parameter has lost its memory or its shape; all others are those before the step.
        """
        if not footing.stand(self._places):
            self._regain()
        elif self._in_place and not self._untold and self._versions != self._version_numbers():
            if self.displaced:
                self._take_back_after_writing()
            else:
                self.copy_from_now_on()

    @property
    def in_place(self) -> bool:
        """Whether any weights are displaced in place."""
        return bool(self._in_place)

    @property
    def displaced(self) -> bool:
        """Whether any of them are displaced at the moment."""
        return any(self._waiting) or any(terms or scales is not None for terms, scales in self._displaced)

    @property
    def memory(self) -> list[Any]:
        """Storages of all trainable weights, with their address."""
        return self._places

    def copy_from_now_on(self) -> None:
        """Keep a copy of all weights during a step; a displacement stays as it is."""
        terms = next((terms for terms, _ in self._displaced if terms), None)
        self._take_back_and_copy()
        if terms is not None:
            self.move(terms)

    def _take_back_and_copy(self) -> None:
        """Undo a displacement in place, and keep a copy of all weights from here on."""
        if self.displaced:
            with uninterrupted():
                self._write_in_place([], None)
                self._leave_trace([])
        self.keep_copies = True
        self._layout, self._seen = [], None
        self.begin(self.step)

    @property
    def parameters(self) -> list[Tensor]:
        """The trainable parameters, block by block."""
        return [p for block in self.blocks for p in block.parameters]

    def _regain(self) -> None:
        lost = []
        with uninterrupted():
            for combine in self._saved:
                if combine.saved[0] == self.step:
                    pairs = zip(combine.owners, combine.copies or [], strict=True)
                    lost += [footing.put(p, copy) for p, copy in pairs]
                    combine.saved[0] = -1
            if self.displaced:
                lost += self._regain_in_place()
        self._layout, self._seen, self._places = [], None, []
        reasons = [why for why in lost if why]
        if reasons:
            raise RuntimeError(
                f"{self.rule}: the closure moved weights away while they were perturbed: {reasons[0]}. All others are "
                "those before the step; move, cast or free a model between steps only"
            )
        self.begin(self.step)

    def _regain_in_place(self) -> list[str]:
        """Undo the displacement in the memory that was displaced, wherever it is now, and copy it to the parameters."""
        lost = []
        moved = []
        for i, old in enumerate(self._in_place):
            there = [footing.has_memory(t) for t in old.targets]
            for p, found in zip(old.owners, there, strict=True):
                lost += [] if found else [f"a parameter of shape {tuple(p.shape)} has no memory any more"]
            if any(there):
                self._in_place[i] = old.moved(there)
                moved.append(self._in_place[i])
            else:
                self._displaced[i] = ([], None)
                self._waiting[i] = []
        self._grids = None  # a write brings weights back here, and nowhere else
        self._write_in_place([], None)
        self._leave_trace([])
        for combine in moved:
            for p, t in zip(combine.owners, combine.targets, strict=True):
                if local(p).data_ptr() != t.data_ptr():
                    lost.append(footing.put(p, t))
        return lost

    def _take_back_after_writing(self) -> None:
        """The closure wrote to weights that were displaced in place: there is no exact way back."""
        self._take_back_and_copy()
        warnings.warn(
            f"{self.rule}: the closure wrote to weights while they were perturbed (max_norm, clipping or a quantiser "
            "in its forward pass?). They were taken back to within about sigma; from now on a copy of the weights "
            "is kept during a step",
            RuntimeWarning,
            stacklevel=checks.levels_up(),
        )

    def takes_one(self, move: float) -> bool:
        """`takes` of one model's update along one direction, in less time."""
        farthest = self._most * abs(move)
        if farthest < self._room:
            self._room -= farthest
            return True
        return self.takes([(0, [move])], None)

    def takes(self, terms: list[Term], scales: list[Multiple] | None) -> Any:
        """Whether an update leaves every weight finite in its own dtype: a bool, or bools `(R,)` of a fleet.

        A look at the weights themselves, one pass, is needed only where they may have come near the largest number.
        """
        sound: Any = True
        for scale in scales or ():
            sound = sound & np.isfinite(scale)
        moves = [self._most * sum(np.abs(m[g]) for _, m in terms) for g in range(len(self.groups))] if terms else []
        farthest = max((float(np.max(move)) for move in moves), default=0.0)
        if farthest < self._room:
            self._room -= farthest
        else:
            sound = sound & self._takes_beside_weights(moves)
        return sound if self.replicas is not None else bool(np.all(sound))

    def _takes_beside_weights(self, moves: list[Any]) -> Any:
        sound: Any = True
        room = math.inf
        for group, parameters, _ in self.blocks:
            limit = torch.finfo(parameters[0].dtype).max
            for p in parameters:
                held = local(p).reshape(len(self.seeds), -1)
                if held.shape[1] == 0:
                    continue
                least, greatest = (x.double().cpu().numpy() for x in torch.aminmax(held, dim=1))
                reached = np.maximum(-least, greatest) + moves[group]
                sound = sound & (reached < limit * (1.0 - 2.0**-10))
                room = min(room, float(np.min(limit - reached)) / 2)
        if np.all(sound):
            self._room = max(0.0, room) if math.isfinite(room) else 0.0
        return sound

    def _see(self) -> tuple[float, list[tuple[int, int]]] | None:
        """What `begin_again` compares; None where it would not tell, say bfloat16 from float16 in one memory."""
        parameters = self.groups[0]["params"]
        if self.write is None or self.sharded or not all(map(_is_told_by_its_place, parameters)):
            return None
        return self.groups[0]["sigma"], [(p.data_ptr(), p.numel()) for p in parameters]

    def _layout_now(self) -> list[Any]:
        """All that users may change: sigma, or parameters by moving, casting, freezing, viewing or replacing them.

        `Combination` keeps the memory that it writes to, so another tensor's memory has another address.
        """
        layout: list[Any] = []
        for group in self.groups:
            parameters = group["params"]
            layout += map(KIND, parameters)
            if self.sharded:  # a DTensor has no memory of its own
                parameters = [local(p) for p in parameters]
                layout += map(Tensor.size, parameters)
            layout += map(Tensor.data_ptr, parameters)
            layout += map(Tensor.stride, parameters)
            layout.append(group["sigma"])
        return layout

    def _choose_sigmas(self, asked: list[float]) -> None:
        share = math.sqrt(max(1, sum(self.sizes))) if self.shared else 1.0
        self.sigmas, self._grids, self._versions = [sigma / share for sigma in asked], None, []
        if not self.saved_all and self.kind == "rademacher":
            self._grids = self.sigmas = [_representable(sigma) for sigma in self.sigmas]

    def move(self, terms: list[Term], *, as_update: bool = False) -> None:
        """Displace the weights by `terms`, measured from the weights at `begin`.

        Args:
            terms: the steps along each direction.
            as_update: 16-bit weights are rounded as `update` would round them.
        """
        self.check()
        self.held_rounding = rounding = 0 if as_update else 1 + terms[0][0]
        for combine in self._saved:
            combine(terms, None, self.step, rounding)
        self.held = terms if self._on_use else None
        if self._in_place:
            with uninterrupted():
                self._write_in_place(terms, None, onto_grid=False)
                self._leave_trace(terms)

    def move_one(self, scale: float, multiple: float, direction: int, step: int, rounding: int) -> None:
        """`move` in the place of `write`, for a perturbation where there is one group."""
        self.move([(direction, [multiple])])

    def repeat(self, traces: list[list[Term]]) -> None:
        """Write in place what a recorded step did, together with the `update` or `restore` that must follow.

        Nobody looks at the weights in between, so that sums along one direction draw it once.
        """
        with uninterrupted():
            for terms in traces:
                self._write_in_place(terms, None, onto_grid=not terms, wait=True)

    def squares(self, replicas: int) -> Tensor:
        """Sum of the squares of the trainable weights of each replica; the mean over ranks, where they hold shards."""
        total = torch.zeros(replicas, dtype=torch.float64, device="cpu")
        for p in self.parameters:
            # In pieces, since each is converted to float64 as a whole.
            for piece in local(p).reshape(replicas, -1).split(max(1, PIECE // replicas), dim=1):
                piece = piece.cpu() if piece.device.type in WITHOUT_DOUBLE else piece
                total += parts(p) * torch.linalg.vector_norm(piece, dim=1, dtype=torch.float64).square().cpu()
        return total

    def restore(self, step: int) -> None:
        """Bring the weights back to what they were when `step` began; harmless when they are there already."""
        self.held = None
        if self.unfinished is None:
            self.check()
        with uninterrupted():
            if self.unfinished is not None:
                self.unfinished()
                return
            for combine in self._saved:
                # Copies of another step are no way back: this one was interrupted before it touched the weights.
                if combine.saved[0] == step:
                    combine((), None, step)
                    combine.saved[0] = -1
            if self.displaced:
                self._write_in_place([], None)
                self._leave_trace([])

    def update(self, terms: list[Term], scales: list[Multiple] | None, commit: Callable[[], None]) -> None:
        """Restore and, in the same pass, set the weights to scale * weights + terms.

        Args:
            terms: the steps along each direction.
            scales: what weight decay leaves in each group; None for ones.
            commit: called once all weights are written; an interruption before it lets `restore` bring the old weights
                back, after it the step has happened.
        """
        self.check()
        for combine in self._saved:
            combine(terms, scales, self.step)
        if not self._in_place and not self._on_use:
            commit()
            return
        with uninterrupted():
            if self.displaced or terms or scales is not None:
                self._write_in_place(terms, scales)
            self._finish([*self._on_use] if terms or scales is not None else [], terms, scales, commit)

    def _finish(
        self, rest: list[Combination], terms: list[Term], scales: list[Multiple] | None, commit: Callable[[], None]
    ) -> None:
        """Update what is perturbed on use, last of all: from its second block on there is no way but ahead."""
        self.held = None
        while rest:
            rest[0](terms, scales, self.step)
            rest.pop(0)
            self.unfinished = functools.partial(self._finish, rest, terms, scales, commit)
        # First, for whoever is told of the step by `commit` may raise, and the update is complete.
        self._displaced, self.unfinished = [([], None)] * len(self._in_place), None
        commit()

    def copy_halves(self, copy: bool) -> None:
        """Copy large 16-bit weights, or perturb them on use again from the next step on."""
        held, rounding = self.held, self.held_rounding
        self.on_use, self._layout, self._seen = not copy, [], None
        if copy:
            self.restore(self.step)
            self.begin(self.step)
            if held is not None:
                self.move(held, as_update=rounding == 0)

    def directions(self, count: int, scales: list[float], step: int) -> Tensor:
        """The first directions, written out: float64 `(R, count, d)`, group g times `scales[g]`; on the CPU."""
        parts = []
        for group, parameters, indices in self.blocks:
            blank = [
                torch.zeros(len(self.seeds), p.numel() // len(self.seeds), dtype=torch.float64, device="cpu")
                for p in parameters
            ]
            made, rows = [torch.zeros_like(b) for b in blank], []
            combine = Combination(made, indices, self.seeds, self.kind, blank, 0)
            combine.saved[0] = step
            for k in range(count):
                combine([(k, [scales[group]])], None, step)
                rows.append(torch.cat(made, 1))
            parts.append(torch.stack(rows, 1))
        return torch.cat(parts, 2)

    def _leave_trace(self, terms: list[Term]) -> None:
        if self.traces is not None:
            self.traces.append(terms)

    def _write_in_place(
        self,
        terms: list[Term],
        scales: list[Multiple] | None,
        *,
        onto_grid: bool = True,
        always: bool = False,
        wait: bool = False,
    ) -> None:
        """Weights <- scale * (weights at `begin`) + terms, block by block; `wait`: with the next write, if it can."""
        grids, written = self._grids if onto_grid else None, False
        for i, combine in enumerate(self._in_place):
            displacement, shrunk = self._displaced[i]
            undo, moves, factors = [], terms, scales
            if shrunk is not None:  # restore, after an update that failed between two blocks: (w - terms) / scale
                factors = [1.0 / s for s in shrunk]
                moves = negative(scaled(displacement, factors))
            elif scales is None and equal(terms, displacement):  # a trial step that is accepted
                moves = []
            elif scales is None and grids is None and along_one(terms, displacement):  # to its other side
                moves = difference(terms, displacement)
            else:
                undo = negative(displacement[::-1])
            undo = [*self._waiting[i], *undo]
            if wait and factors is None and grids is None:
                self._waiting[i] = undo + nonzero(moves)
            elif moves or undo or factors is not None or (grids is not None and (displacement or always)):
                combine(nonzero(moves), factors, self.step, undo=undo, grids=grids)
                self._waiting[i], written = [], True
            self._displaced[i] = (terms, scales)
        if written:
            self._versions = self._version_numbers()

    def _version_numbers(self) -> list[float]:
        if self._untold:
            return [float("nan")]  # which equals no other: the grid is looked after in each step
        return [t._version for combine in self._in_place for t in combine.targets]

    def _arrange(self) -> None:
        """Sort the trainable parameters by kind; a parameter keeps its index whoever else is frozen."""
        checks.thawed(self.rule, self.groups, self.replicas)
        trainable = [p for group in self.groups for p in group["params"] if p.requires_grad]
        self._untold = any(p.is_inference() for p in trainable)
        self.sharded = any(map(is_sharded, trainable))
        self.bytes = sum(p.numel() * p.element_size() for p in trainable)  # of a sharded parameter, all of it
        small = self.bytes <= SAVED_BYTES or self.keep_copies
        self.saved_all = small or not any(p.dtype in FAST_DTYPES for p in trainable)
        on_use = self.on_use and not small and not self.sharded
        members: defaultdict[tuple[Any, ...], list[tuple[Tensor, int]]] = defaultdict(list)
        index, self.sizes, self.generators = 0, [0] * len(self.groups), _generators({p.device for p in trainable})
        for number, group in enumerate(self.groups):
            for p in group["params"]:
                if p.requires_grad and p.numel() > 0:
                    in_place = not small and p.dtype in FAST_DTYPES
                    way = "in place" if in_place else "on use" if on_use and _can_be_made(p) else "saved"
                    members[number, p.dtype, p.device, way, p.is_contiguous()].append((p, index))
                    self.sizes[number] += p.numel() // len(self.seeds)
                index += 1
        self._saved, self._in_place, self._on_use, self.blocks = [], [], [], []
        self._displaced, self._waiting = [], []
        self.on_use_blocks = []
        for (group, _, _, way, _), pairs in members.items():
            block = Block(group, [p for p, _ in pairs], [i for _, i in pairs])
            self.blocks.append(block)
            held = [(local(p), i, first_element(p)) for p, i in pairs if local(p).numel() > 0]
            if not held:  # another rank has all of them
                continue
            tensors, indices, firsts = [list(column) for column in zip(*held, strict=True)]
            owners = [p for p, _ in pairs if local(p).numel() > 0]
            copies = [torch.empty_like(t) for t in tensors] if way == "saved" else None
            combine = Combination(tensors, indices, self.seeds, self.kind, copies, group, firsts)
            combine.owners = owners
            {"saved": self._saved, "in place": self._in_place, "on use": self._on_use}[way].append(combine)
            self._displaced += [([], None)] * (way == "in place")
            self._waiting += [[]] * (way == "in place")
            self.on_use_blocks += [block] * (way == "on use")
        self._places = footing.places(self.parameters)
        self._room = min((torch.finfo(p.dtype).max for p in self.parameters), default=0.0) * 2.0**-10
        self.simple = bool(self.blocks) and not self.on_use_blocks and len(self.groups) == len(self.generators) == 1
        self.write = self._saved[0].one if self.simple and len(self.blocks) == len(self._saved) == 1 else None


def _is_told_by_its_place(p: Tensor) -> bool:
    return p.dtype in FAST_DTYPES and p.is_contiguous() and p.requires_grad


def _can_be_made(p: Tensor) -> bool:
    """Whether `torch.empty_like` has the layout of `p`, on which the order of sums in a product may depend."""
    plain = type(p) in (Tensor, torch.nn.Parameter) and p.dtype in MANTISSA_BITS_DROPPED
    return plain and torch.empty_like(p, device="meta").stride() == p.stride()


def _generators(devices: set[torch.device]) -> list[torch.Generator]:
    cuda = [torch.cuda.default_generators[d.index or 0] for d in devices if d.type == "cuda"]
    return [torch.default_generator, *cuda]


def _representable(sigma: float) -> float:
    """The nearest number of `SIGMA_BITS` significant bits."""
    fraction, exponent = math.frexp(sigma)
    return math.ldexp(round(fraction * 2**SIGMA_BITS), exponent - SIGMA_BITS)
