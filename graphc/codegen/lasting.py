"""Lasting steps: those of a program that compute the same at each run, cut off into an image of their own.

A step lasts if all that it reads are states that stay the same (`Program.lasting`), constants, and what
other such steps wrote: panels of a weight, its transform, its cast. The image of these steps has one output,
bytes in which everything lies that the other steps read of them; the image of the others takes it as one more
argument, after all others. So each run names the values that it works with, and runs of different ones may
overlap. Steps whose sizes are known at run time only, and those that checks need, stay where they are.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .image import ALIGN, Image, Slot, Step, evaluate_expr


@dataclass(frozen=True, slots=True)
class KeptValue:
    """A value that is kept from run to run.

    ``step`` computes it, from the arguments at the positions ``sources`` in the end.
    """
    step: str
    n_bytes: int
    sources: tuple[int, ...]


def kept_values(image: Image) -> list[KeptValue]:
    """What a program keeps, in the order in which it is computed."""
    keeping = image.keeping
    if keeping is None:
        return []
    home = _homes(keeping)
    sources: dict[int, set[int]] = {k: {s.index} if s.kind == "argument" else set()
                                    for k, s in enumerate(keeping.slots)}
    made: dict[int, str] = {}
    for step in keeping.steps:
        read = set[int]().union(*(sources[home[s]] for s in step.slots))
        for s in (home[s] for s, w in zip(step.slots, step.writes) if w):
            sources[s] |= read
            made[s] = step.name
    return [KeptValue(name, _bytes(keeping.slots[s]), tuple(sorted(sources[s])))
            for s, name in made.items() if keeping.slots[s].kind == "kept"]


def cut(image: Image, lasting: Collection[int], passing: Collection[int] = ()) -> tuple[Image, list[int]]:
    """``image`` without its lasting steps, which are in its ``keeping``; and the positions of these.

    ``lasting`` are the positions of arguments, ``passing`` slots that are written at each run in any case.
    """
    steps = _lasting_steps(image, lasting, passing) if lasting else set[int]()
    if not steps:
        return image, []
    home = _homes(image)
    inside = sorted(steps)
    outside = [t for t in range(len(image.steps)) if t not in steps]
    made = {home[s] for t in inside for s, w in zip(image.steps[t].slots, image.steps[t].writes) if w}
    read = sorted(made.intersection(home[s] for t in outside for s in image.steps[t].slots))
    places: dict[int, int] = {}
    top = 0
    for s in read:
        places[s] = top
        top += -(-_bytes(image.slots[s]) // ALIGN) * ALIGN
    n_arguments = sum(s.kind == "argument" for s in image.slots)
    keeping = _part(image, inside, Slot("output", 0, "uint8", (top,)), places)
    rest = _part(image, outside, Slot("argument", n_arguments, "uint8", (top,)), places)
    early = sum(t < image.n_early for t in outside)
    return replace(rest, n_early=early, keeping=replace(
        keeping, n_early=0, checks=(), aliases=(), size_names=())), inside


def _homes(image: Image) -> list[int]:
    return [s.index if s.kind == "window" else k for k, s in enumerate(image.slots)]


def _lasting_steps(image: Image, lasting: Collection[int], passing: Collection[int]) -> set[int]:
    slots, home = image.slots, _homes(image)

    def written(t: int) -> list[int]:
        return [home[s] for s, w in zip(image.steps[t].slots, image.steps[t].writes) if w]

    fixed = {k for k, s in enumerate(slots)
             if s.kind == "constant" or (s.kind == "argument" and s.index in lasting)}
    found = {t for t, step in enumerate(image.steps) if t >= image.n_early and _is_sized(image, step)
             and all(slots[s].kind == "arena" and s not in passing for s in written(t))}
    while True:
        others = {s for t in range(len(image.steps)) if t not in found for s in written(t)}
        known = fixed.union(*(written(t) for t in found)) - others
        less = {t for t in found if known.issuperset(home[s] for s in image.steps[t].slots)}
        if less == found:
            return found
        found = less


def _is_sized(image: Image, step: Step) -> bool:
    """Whether nothing about a step waits for named sizes."""
    slots = [image.slots[s] for s in step.slots]
    slots += [image.slots[s.index] for s in slots if s.kind == "window"]
    sizes = [step.extent, step.grain]
    for s in slots:
        sizes += [s.offset, *(s.shape or ()), *([] if s.size is None else [s.size])]
    if any(isinstance(n, str) for n in step.sizes):
        return False
    try:
        return all(evaluate_expr(n, {}) is not None for n in sizes)
    except KeyError:
        return False


def _bytes(slot: Slot) -> int:
    """Of all that may be read: an empty value has an element, where clamped indices point."""
    count = evaluate_expr(slot.size, {}) if slot.shape is None and slot.size is not None else math.prod(
        max(1, evaluate_expr(n, {})) for n in slot.shape or ())
    return max(1, count) * np.dtype(slot.dtype).itemsize


def _part(image: Image, steps: Sequence[int], keep: Slot, places: Mapping[int, int]) -> Image:
    """The image of some of the steps, in which the slots ``places`` are bytes of the operand ``keep``."""
    home = _homes(image)
    used = {s for t in steps for s in image.steps[t].slots}
    if keep.kind == "argument":
        used |= {k for k, s in enumerate(image.slots) if s.kind in ("argument", "target", "output")}
        used.update(image.checks)
    used |= {home[s] for s in used}
    order = sorted(used)
    number = {s: k for k, s in enumerate(order)}
    position = {t: k for k, t in enumerate(steps)}

    def slot(k: int) -> Slot:
        old = image.slots[k]
        if k in places:
            return replace(old, kind="kept", index=len(order), offset=places[k])
        if old.kind == "window":
            return replace(old, index=number[old.index])
        return replace(old, scratch_of=position.get(old.scratch_of, -1))

    chosen = [image.steps[t] for t in steps]
    return replace(
        image, slots=(*map(slot, order), keep), checks=tuple(number[s] for s in image.checks if s in number),
        steps=tuple(replace(step, slots=tuple(number[s] for s in step.slots)) for step in chosen))


__all__ = ["KeptValue", "cut", "kept_values"]
