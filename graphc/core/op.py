"""Op: everything graphc knows about one operation, as one literal; and the registry of all of them.

An op's literal lives in `graphc/ops/`. The rest of graphc asks the op and keeps no lists of names.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from .aval import Aval
from .errors import InternalError

Rule = Callable[..., Any]                      # (cotangent, Context) -> gradient of one input
Trait = Literal[
    "commutative",      # swapping the two inputs changes nothing: CSE sorts them
    "source",           # has no inputs of its own: placeholder, constant, read
    "random",           # draws from the generator: never merged, never folded
    "effect",           # an update of a Variable: kept when fetched, ordered by control dependencies
    "view",             # eager result shares the input's buffer
    "cheap",            # a few instructions per element: recompute rather than store
    "flat",             # the same elements in the same order: the result may be the input's buffer
]


# ---------------------------------------------------------------- how codegen sees an op

@dataclass(frozen=True, slots=True)
class Map:
    """Element by element over equal shapes after broadcasting.

    ``template(b, *scalars, **attrs) -> scalar``.
    """
    template: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Pull:
    """One output element from its index: ``element(b, index, *inputs, **attrs) -> scalar``.

    ``inputs[k].at(index)`` reads an input element and ``.shape`` gives its sizes as index expressions.
    Views, padding, gathers and generators are all pulls; they fuse into their consumers as maps do.

    ``window(shape, **attrs)`` is the position from which the result lies in the input's memory as it is, None
    if it does not; ``joins(shapes, **attrs)`` the positions at which the inputs lie so in the result's.
    """
    element: Callable[..., Any]
    view: bool = False          # reads exactly one element of its input and computes nothing
    window: Callable[..., Any] | None = None
    joins: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Fold:
    """A reduction over ``attrs["axis"]``.

    ``init(b, dtype)`` gives the start state, ``step(b, state, x, position) -> state`` takes one element
    in, ``finish(b, state) -> scalar`` ends. ``merge(b, s, t)`` joins two partial states when the fold may
    be reassociated (in a tree fixed by shapes).
    """
    init: Callable[..., Any]
    step: Callable[..., Any]
    finish: Callable[..., Any] = field(default=lambda b, s: s[0])
    merge: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Loops:
    """A builder of loops.

    ``build(k, inputs, outputs, **attrs)`` writes them with the kernel builder ``k``. With ``blocks`` its one
    result is written in blocks of a matrix, each inside ``k.written(...)``: so many trailing axes are the
    columns, all others the rows; ``blocks(**attrs)``, where attributes decide that. What is made of the
    result element by element is then computed block by block, and the result itself has no buffer unless
    something else reads it.
    """
    build: Callable[..., Any]
    blocks: int | Callable[..., int] = 0

    def columns(self, attrs: Mapping[str, Any]) -> int:
        """The trailing axes that are columns of blocks; 0 where a call does not write in blocks."""
        return self.blocks if isinstance(self.blocks, int) else self.blocks(**attrs)


Lowering = Map | Pull | Fold | Loops


# ---------------------------------------------------------------- the op

@dataclass(frozen=True, slots=True)
class Images:
    """The operands and results of an op that its attribute ``layout`` is about, by position.

    ``cost(k, avals, attrs)`` is about what a call costs in its layout, in vector multiplications of a core at
    its peak; ``k`` is a builder of codegen's, whose models of the machine it asks.
    """
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    cost: Callable[..., float]


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One operation.

    Attributes
    ----------
    name
        Unique; NumPy's or PyTorch's where it has one.
    infer
        ``infer(*avals, **attrs) -> Aval`` (a tuple of them with several outputs); raises ShapeError or
        DTypeError.
    run
        ``run(*arrays, **attrs) -> array(s)`` in NumPy: the eager kernel and the reference of every executor.
    vjp
        One rule per input, ``rule(g, c) -> gradient``, written in public ops (None: not differentiable),
        or one `EachInput` for ops of any number of inputs. ``c`` is a `Context`. With several outputs
        ``g`` is a tuple in which None is zero.
    saves
        What the rules read: "x", "y", "z" for the first three inputs, "*" for all, "out" for the outputs;
        one such tuple for all rules, or one per rule, so that only what the wanted gradients need is kept.
    kinds
        The dtype kinds that the first input may have: eager mode, which runs before it infers, asks this
        first.
    lower
        How codegen sees the op.
    promote
        How operands are brought to one dtype before the call: "same" (common dtype), "float" (and floating),
        None (left alone).
    outputs
        Number of outputs; 0 when it depends on the attributes (then `run` and `infer` return tuples).
    cost
        Rough scalar operations per output element, for cost models.
    compiled
        Elements of the first input from which eager calls go to the compiled kernel; 0: never.
    batched
        Inputs whose first axis is the batch: compiled once for every batch size.
    images
        Which operands and results are images that lie as the attribute ``layout`` says.
    reordered
        ``reordered(order, **attrs)``: the attributes that are others when operands and results have their
        axes in this order, axis k being what was axis ``order[k]``; None where there is no such call. A `Map`
        needs no rule.
    check
        ``check(*inputs, **attrs) -> bool tensor`` that must be true at run time.
    """
    name: str
    infer: Callable[..., Any]
    run: Callable[..., Any]
    vjp: tuple[Rule | None, ...] | EachInput | AllInputs | None = None
    saves: tuple[str, ...] | tuple[tuple[str, ...], ...] = ()
    lower: Lowering | None = None
    promote: Literal["same", "float"] | None = None
    kinds: str = "biuf"
    outputs: int = 1
    traits: frozenset[Trait] = frozenset()
    cost: float = 1.0
    compiled: int = 0
    batched: tuple[int, ...] = ()
    images: Images | None = None
    reordered: Callable[..., dict[str, Any] | None] | None = None
    check: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.name in _REGISTRY:
            raise InternalError(f"op {self.name} is registered twice")
        _REGISTRY[self.name] = self

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def rule(self, index: int) -> Rule | None:
        """The gradient rule of input ``index``."""
        if self.vjp is None:
            return None
        if isinstance(self.vjp, EachInput):
            each = self.vjp.rule
            return lambda g, c: each(g, c, index)
        assert isinstance(self.vjp, tuple)
        return self.vjp[index] if index < len(self.vjp) else None

    def infer_all(self, avals: Iterable[Aval], attrs: dict[str, Any]) -> tuple[Aval, ...]:
        out = self.infer(*avals, **attrs)
        return out if isinstance(out, tuple) else (out,)


@dataclass(frozen=True, slots=True)
class EachInput:
    """One gradient rule for every input: ``rule(g, c, index) -> gradient``."""
    rule: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class AllInputs:
    """One rule for all inputs at once: ``rule(g, c, wanted) -> gradients``, None where not wanted.

    Of operations that only the eager tape knows, see `anonymous`.
    """
    rule: Callable[..., Any]


_REGISTRY: dict[str, Op] = {}


def anonymous(name: str, vjp: tuple[Rule | None, ...] | EachInput | AllInputs, outputs: int = 1) -> Op:
    """An op that no one can call: what stands on the eager tape for a call that was no single op's."""
    op = object.__new__(Op)
    for f in fields(Op):
        object.__setattr__(op, f.name, None if f.default is MISSING else f.default)
    object.__setattr__(op, "name", name)
    object.__setattr__(op, "vjp", vjp)
    object.__setattr__(op, "outputs", outputs)
    return op


def variant(op: Op, **changes: Any) -> Op:
    """``op`` with other fields, which is not registered: to measure and test what graphc would not choose."""
    out = object.__new__(Op)
    for f in fields(Op):
        object.__setattr__(out, f.name, changes.get(f.name, getattr(op, f.name)))
    return out


def get_op(name: str) -> Op:
    """The registered op called ``name``."""
    return _REGISTRY[name]


def all_ops() -> tuple[Op, ...]:
    """Every registered op, by name."""
    return tuple(_REGISTRY[n] for n in sorted(_REGISTRY))


def reads(op: Op, wanted: Iterable[int]) -> set[str]:
    """What the gradient rules of the inputs ``wanted`` read, in the words of `Op.saves`."""
    if op.saves and isinstance(op.saves[0], tuple):
        return {name for i in wanted for name in op.saves[i]}
    return set(op.saves)  # type: ignore[arg-type]


def saved_positions(names: set[str], n_inputs: int) -> tuple[int, ...]:
    """The inputs among what `reads` found."""
    if "*" in names:
        return tuple(range(n_inputs))
    return tuple(i for i, k in enumerate(("x", "y", "z")[:n_inputs]) if k in names)
