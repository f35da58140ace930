"""Modules made of modules: one after the other, in a list, in a dict."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

from ..core import record
from ..core.errors import ArgumentError, AxisError
from .module import Module

C = TypeVar("C", bound=Module)


class _Numbered(Module):
    """Sub-modules in order, by index; ``self`` holds them under names ("0", "1", ... unless named)."""

    def _names(self) -> list[str]:
        return [name for name, _ in self._own(Module)]

    def _name(self, index: int) -> str:
        names = self._names()
        if not -len(names) <= index < len(names):
            raise record.located(AxisError(
                f"{type(self).__name__}: index {index} is out of range for {len(names)} modules"))
        return names[index]

    def _at(self, index: int) -> Module:
        found: Module = vars(self)[self._name(index)]
        return found

    def __len__(self) -> int:
        return len(self._names())

    def __iter__(self) -> Iterator[Module]:
        return iter([module for _, module in self._own(Module)])

    def __setitem__(self, index: int, module: Module) -> None:
        self.add_module(self._name(index), module)

    def append(self, module: Module) -> _Numbered:
        """Add one at the end; returns the container."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> _Numbered:
        """Add several at the end; returns the container."""
        for module in modules:
            self.append(module)
        return self


class Sequential(_Numbered):
    """Modules applied one after the other.

    Parameters
    ----------
    *modules : Module, or one mapping of names to modules

    Raises
    ------
    ArgumentError
        If an argument is not a Module.

    Examples
    --------
    >>> import graphc as gc
    >>> net = gc.nn.Sequential(gc.nn.Linear(4, 3), gc.nn.ReLU(), gc.nn.Linear(3, 2))
    >>> net(gc.ones(5, 4)).shape, len(net), net[1]
    ((5, 2), 3, ReLU())
    >>> net[:2]
    Sequential(
      (0): Linear(in_features=4, out_features=3, bias=True)  weight (3, 4), bias (3,)
      (1): ReLU()
    )  15 parameters
    """

    def __init__(self, *modules: Any) -> None:
        super().__init__()
        keyed = len(modules) == 1 and isinstance(modules[0], Mapping)
        named = modules[0].items() if keyed else enumerate(modules)
        for name, module in named:
            if not isinstance(module, Module):
                raise record.located(ArgumentError(
                    f"Sequential: {name} is a Module, not {type(module).__name__}"))
            self.add_module(str(name), module)

    def forward(self, input: Any) -> Any:
        for module in self:
            input = module(input)
        return input

    @overload
    def __getitem__(self, index: int) -> Module: ...

    @overload
    def __getitem__(self, index: slice) -> Sequential: ...

    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return _without_renaming(Sequential(), {n: getattr(self, n) for n in self._names()[index]})
        return self._at(index)


class ModuleList(_Numbered):
    """A list of modules that belong to the module it is assigned to; it defines no forward.

    Parameters
    ----------
    modules : iterable of Module, optional

    Examples
    --------
    >>> import graphc as gc
    >>> layers = gc.nn.ModuleList(gc.nn.Linear(2, 2) for _ in range(3))
    >>> len(layers), len(list(layers.parameters())), layers[-1].in_features
    (3, 6, 2)
    """

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        self.extend(modules or ())

    @overload
    def __getitem__(self, index: int) -> Module: ...

    @overload
    def __getitem__(self, index: slice) -> ModuleList: ...

    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return _without_renaming(ModuleList(), {str(i): m for i, m in enumerate(list(self)[index])})
        return self._at(index)

    def insert(self, index: int, module: Module) -> None:
        """Put a module before the one at ``index``."""
        modules = list(self)
        modules.insert(index, module)
        for i, m in enumerate(modules):
            self.add_module(str(i), m)


class ModuleDict(Module):
    """A dict of modules that belong to the module it is assigned to; it defines no forward.

    Parameters
    ----------
    modules : mapping of str to Module, optional
        Names without dots, and not those of the class's own attributes.

    Examples
    --------
    >>> import graphc as gc
    >>> heads = gc.nn.ModuleDict({"mean": gc.nn.Linear(4, 1), "scale": gc.nn.Linear(4, 1)})
    >>> list(heads), heads["mean"].out_features
    (['mean', 'scale'], 1)
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update(modules or {})

    def __getitem__(self, name: str) -> Module:
        found = vars(self).get(name)
        if not isinstance(found, Module):
            raise KeyError(name)
        return found

    def __setitem__(self, name: str, module: Module) -> None:
        self.add_module(name, module)

    def __delitem__(self, name: str) -> None:
        self[name]
        delattr(self, name)

    def __len__(self) -> int:
        return len(self.keys())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def keys(self) -> list[str]:
        """The names."""
        return [name for name, _ in self._own(Module)]

    def values(self) -> list[Module]:
        """The modules."""
        return [module for _, module in self._own(Module)]

    def items(self) -> list[tuple[str, Module]]:
        """Names and modules."""
        return list(self._own(Module))

    def update(self, modules: Mapping[str, Module]) -> None:
        """Set several."""
        for name, module in modules.items():
            self.add_module(name, module)


def _without_renaming(out: C, modules: Mapping[str, Module]) -> C:
    """``out`` holding modules that keep their paths: a slice is a second view of them."""
    vars(out).update(modules)
    return out
