"""One evaluation, watched: where weights meet activities, and what becomes of their sums.

    v, W -> v W  (site)      site + site, site + bias  (sum)      sum -> activation -> ...

A *node* is the result of an operation that combines trainable weights with activities, or a sum of
such results. A node that only takes part in sums is *absorbed* by them. The nodes that are left are
the units whose inputs are perturbed. For example the three matrix products and biases of a
recurrent cell are one node at each time step.

Operations are seen where torch dispatches them, below modules and composite functions. So it does
not matter whether a model is made of modules, functions or products of bare parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from dopaminergic.activities.multiples import affine
from dopaminergic.activities.nodes import Derived, Node, Place, Probe, Weight, overlap
from dopaminergic.activities.synapses import SITES, SUMS, Site, Synapse

_storage_id: Any = torch._C._storage_id  # pyright: ignore
FUSED = {
    torch.ops.aten.mkldnn_rnn_layer.default: "mkldnn",
    torch.ops.aten._native_multi_head_attention.default: "attention",
    torch.ops.aten._transformer_encoder_layer_fwd.default: "attention",
}
# Operations that share memory, though torch does not count them as views.
SHARING = {
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.unsafe_split.Tensor,
    torch.ops.aten.unsafe_split_with_sizes.default,
    torch.ops.aten.detach.default,
}
# Activations that are constant but for jumps. A small trial would not make them answer.
STAIRCASES = {
    getattr(torch.ops.aten, name).default
    for name in ("sign", "sgn", "round", "floor", "ceil", "trunc", "sign_", "round_", "floor_")
} | {getattr(torch.ops.aten, name).Scalar for name in ("gt", "ge", "lt", "le")}


class Fused(Exception):  # noqa: N818  (never leaves the package)
    """A fused operation hides its products; it must be evaluated in parts."""


class Tape(TorchDispatchMode):
    """Records the nodes of one evaluation.

    Args:
        parameters: all of the model, trainable or not.
        sigma: how far activations are probed to either side.
        copies: inputs of sites are copied, since the evaluation writes over them.

    Attributes:
        nodes: in the order of the evaluation.
        operations: those that may be sites, in the order of the evaluation.
        strange: numbers of parameters that entered an operation which is no site, with its name.
        derived: weights that the evaluation made of others, numbered after the parameters.
    """

    def __init__(self, parameters: list[Tensor], sigma: float, copies: bool = False) -> None:
        super().__init__()
        self.parameters: dict[int, list[int]] = {}
        for number, parameter in enumerate(parameters):
            self.parameters.setdefault(_storage_id(parameter), []).append(number)
        self.nodes: list[Node] = []
        self.strange: dict[int, str] = {}
        self.derived: list[Derived] = []
        self._tensors = parameters
        self._sigma = sigma
        self.operations: list[Any] = []
        # By storage: views of it in the order of their making, with the node or probe that each is.
        self._known: dict[int, list[tuple[Place, Node | Probe | None]]] = {}
        self._held: list[StorageWeakRef] = []
        self._copies = copies
        self._stored: list[tuple[Tensor, int]] = []  # inputs, and how often they were written

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view or func in SHARING or torch.Tag.inplace_view in func.tags:
            return func(*args, **kwargs)
        if func in SITES:
            self.operations.append(func)
        if func in FUSED:
            raise Fused(FUSED[func])
        multiple = affine(self, func, args, kwargs)
        if multiple is not None:
            return self._derive(func, args, kwargs, *multiple)
        read = SITES.get(func)
        site = None if read is None else read(self, args, kwargs)
        if site is not None:
            return self._at_site(site, func, args, kwargs)
        if func in SUMS and self._sums_nodes(SUMS[func](args, kwargs)):
            result = func(*args, **kwargs)
            self._add(func, result, [], self._operands(SUMS[func](args, kwargs), result.shape))
            return result
        if torch.Tag.pointwise in func.tags:
            return self._pointwise(func, args, kwargs)
        return self._other(func, args, kwargs)

    # ---- weights ---------------------------------------------------------------------------------

    def weight(self, argument: Any) -> Weight | None:
        """The view of a parameter that an argument is, if it is one."""
        if not isinstance(argument, Tensor):
            return None
        numbers = self.parameters.get(_storage_id(argument))
        if numbers is None:
            return None
        place = Place.of(argument)
        for number in numbers:
            first = self._tensors[number].storage_offset()
            if first <= place.offset < first + max(1, self._tensors[number].numel()):
                return Weight(number, place)
        return None

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is neither a weight nor an activity that comes from weights."""
        return self.weight(tensor) is None and _storage_id(tensor) not in self._known

    def _derive(
        self, func: Any, args: Any, kwargs: Any, weight: Weight, factor: float | Tensor
    ) -> Tensor:
        """A multiple of a weight, or a copy of it, is a weight too."""
        result = func(*args, **kwargs)
        if self.weight(result) is None:
            self.parameters[_storage_id(result)] = [len(self._tensors)]
            self._tensors = [*self._tensors, result]
            self.derived.append(Derived(weight, factor, Place.of(result)))
        return result

    # ---- sites and sums --------------------------------------------------------------------------

    def _at_site(self, site: Site, func: Any, args: Any, kwargs: Any) -> Any:
        for tensor in site.read:
            self._consume(tensor)
        result = func(*args, **kwargs)
        first = result[0] if isinstance(result, tuple) else result
        synapses: Any = site.synapses
        if callable(synapses):
            synapses = synapses(result)
        elif not self._copies:
            kept = {_storage_id(x) for s in synapses for x in _tensors((s.inputs,), {})}
            self._stored.extend((x, _writes(x)) for x in site.read if _storage_id(x) in kept)
        self._add(func, first, synapses, self._operands(site.added, first.shape))
        return result

    def _sums_nodes(self, added: Iterable[tuple[Any, float]]) -> bool:
        return any(isinstance(self._at(t), Node) for t, _ in added if isinstance(t, Tensor))

    def _operands(
        self, added: Iterable[tuple[Any, float]], shape: Any
    ) -> list[tuple[Node, Place, float]]:
        """The nodes among the tensors that an operation adds, each as wide as the sum."""
        operands: list[tuple[Node, Place, float]] = []
        for tensor, factor in added:
            if not isinstance(tensor, Tensor):
                continue
            node = self._at(tensor)
            if isinstance(node, Node):
                operands.append((node, Place.of(tensor.expand(shape)), factor))
                node.added = True
                node.direct.add(Place.of(tensor))
            else:
                self._consume(tensor)
        return operands

    def _add(self, func: Any, result: Tensor, synapses: list[Synapse], operands: Any) -> None:
        if self._copies:
            synapses = [synapse._replace(inputs=_copy(synapse.inputs)) for synapse in synapses]
        place = Place.of(result)
        number = len(self.operations)
        node = Node(number, func, place, synapses, operands, result.dtype, result.device)
        self.nodes.append(node)
        self._note(result, place, node)

    def _note(self, result: Tensor, place: Place, what: Node | Probe | None) -> None:
        known = self._known.setdefault(_storage_id(result), [])
        if not known:
            # A weak reference keeps the number from being given to other memory.
            self._held.append(StorageWeakRef(result.untyped_storage()))
        known.append((place, what))

    def _at(self, tensor: Tensor) -> Node | Probe | None:
        """The last that is known of a tensor's memory."""
        known = self._known.get(_storage_id(tensor))
        if known is None:
            return None
        if len(known) == 1:
            return known[0][1]
        place = Place.of(tensor)
        for other, what in reversed(known):
            if other == place or overlap(other, place):
                return what
        return None

    # ---- who reads a node ------------------------------------------------------------------------

    def _other(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Any operation that is neither a site nor a sum nor an activation."""
        tensors = _tensors(args, kwargs)
        for tensor in tensors:
            self._consume(tensor)
            weight = self.weight(tensor)
            if weight is not None:
                self.strange.setdefault(weight.number, str(func))
        if func._schema.is_mutable and tensors and _storage_id(tensors[0]) in self._known:
            self._note(tensors[0], Place.of(tensors[0]), None)
        return func(*args, **kwargs)

    def _consume(self, tensor: Tensor) -> None:
        what = self._at(tensor)
        if isinstance(what, Node):
            what.consumed = True
            what.direct.add(Place.of(tensor))
        elif isinstance(what, Probe):
            what.finish()

    def _pointwise(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An activation, if it is a function of one view of a node."""
        tensors = [t for t in _tensors(args, kwargs) if t.ndim]
        seen = [self._at(t) for t in tensors]
        probe = self._common(tensors, seen)
        if probe is None:
            return self._other(func, args, kwargs)
        if probe.more is None and func in STAIRCASES:
            probe.sigma = probe.node.reach = max(self._sigma, _size(tensors[0]))
        for what in seen:
            if isinstance(what, Probe):
                what.followed = True
        more = self._moved(func, args, kwargs, tensors, seen, probe.sigma)
        less = self._moved(func, args, kwargs, tensors, seen, -probe.sigma)
        result = func(*args, **kwargs)
        self._note(
            result, Place.of(result), Probe(probe.node, probe.place, probe.sigma, more, less)
        )
        return result

    def _common(self, tensors: list[Tensor], seen: list[Any]) -> Probe | None:
        """The one view of a node that all tensors are functions of, or None."""
        found: Probe | None = None
        for tensor, what in zip(tensors, seen, strict=True):
            if isinstance(what, Node) and tensor.is_floating_point():
                what.consumed = True
                one = Probe(what, Place.of(tensor), self._sigma)
            elif (
                isinstance(what, Probe)
                and what.more is not None
                and (what.more.shape == tensor.shape)
            ):
                one = what
            else:
                return None
            if found is not None and (found.node is not one.node or found.place != one.place):
                return None
            found = one
        return found

    def _moved(
        self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], seen: list[Any], by: float
    ) -> Tensor:
        moved: dict[int, Tensor] = {}
        for tensor, what in zip(tensors, seen, strict=True):
            if isinstance(what, Probe):
                there: Any = what.more if by > 0 else what.less
                moved[id(tensor)] = there.clone()
            else:
                moved[id(tensor)] = tensor + by
        return func(*(moved.get(id(a), a) for a in args), **kwargs)

    def finish(self, values: Tensor) -> Node | None:
        """End the record; returns the node that the outcome is a view of, if it is one."""
        for known in self._known.values():
            for _, what in known:
                if isinstance(what, Probe) and not what.followed:
                    what.finish()
        outcome = self._at(values)
        self._known = {}
        self._held = []
        if not isinstance(outcome, Node):
            return None
        outcome.consumed = True
        return outcome

    @property
    def is_intact(self) -> bool:
        """Whether all inputs of sites are still as they were when they were read."""
        return all(_writes(tensor) == writes for tensor, writes in self._stored)


class Perturbed(TorchDispatchMode):
    """Adds noise to the results of some operations of an evaluation.

    Args:
        operations: of the evaluation before, which must come again.
        noise: by the number of the operation, from 1.
    """

    def __init__(self, operations: list[Any], noise: dict[int, Tensor]) -> None:
        super().__init__()
        self._operations = operations
        self._noise = noise
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in SITES:
            return result
        planned = self._operations[self._count] if self._count < len(self._operations) else None
        if func is not planned:
            raise OtherPath(str(planned or "none"), str(func))
        self._count += 1
        noise = self._noise.get(self._count)
        if noise is not None:
            first = result[0] if isinstance(result, tuple) else result
            if first.shape != noise.shape:
                raise OtherPath(f"{func} {tuple(noise.shape)}", f"{func} {tuple(first.shape)}")
            first.add_(noise)
        return result

    def end(self) -> None:
        """Raise if the evaluation ended early."""
        if self._count < len(self._operations):
            raise OtherPath(str(self._operations[self._count]), "none")


class OtherPath(Exception):  # noqa: N818  (told in other words)
    """The perturbed evaluation runs other operations than the one before."""


def _writes(x: Tensor) -> int:
    """How often a tensor has been written in place; inference tensors cannot be."""
    return 0 if x.is_inference() else x._version


def _copy(inputs: Any) -> Any:
    if isinstance(inputs, list):
        return [_copy(one) for one in inputs]
    return inputs.clone() if isinstance(inputs, Tensor) else inputs


def _size(x: Tensor) -> float:
    """The root mean square of the numbers."""
    return float(x.float().square().mean().sqrt())


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, list | tuple):
            found.extend(a for a in argument if isinstance(a, Tensor))
    return found
