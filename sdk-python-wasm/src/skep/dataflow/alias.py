"""Makes ``import bytewax`` mean this package, for scripts that were written for Bytewax and stay as they are.

Only where it is asked for (``python -m skep.run --bytewax``): whoever has Bytewax installed should get it otherwise. Both names give the very
same modules, so a class is the same under both.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_NAME = "bytewax"
#: What does not lie under `skep.dataflow`.
_ELSEWHERE = {"bytewax.run": "skep.run", "bytewax.visualize": "skep.visualize", "bytewax.dataflow": "skep.dataflow"}


def target(name: str) -> str:
    """The module that a name of Bytewax's means.

    >>> target("bytewax.operators.windowing"), target("bytewax.dataflow")
    ('skep.dataflow.operators.windowing', 'skep.dataflow')
    """
    return _ELSEWHERE.get(name, "skep.dataflow" + name[len(_NAME) :])


class _Alias(Loader):
    """Gives a module that is there under another name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just put this alias's spec there.
        module.__spec__ = self._spec


class _Root(Loader):
    """The package itself, which has nothing but its modules."""

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = "skep.dataflow under the name of its ancestor."


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target_module: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == _NAME:
            return ModuleSpec(fullname, _Root(), is_package=True)
        if not fullname.startswith(_NAME + "."):
            return None
        name = target(fullname)
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ModuleNotFoundError(f"skep has nothing for {fullname} (it would be {name})", name=fullname)
        return ModuleSpec(fullname, _Alias(name), is_package=found.submodule_search_locations is not None)


def install() -> None:
    """From now on, ``import bytewax…`` gives modules of this package. Once is enough. ImportError: the other one is imported already."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if _NAME in sys.modules:
        raise ImportError("bytewax is imported already, so it can't be replaced: ask for the alias before that")
    sys.meta_path.insert(0, _Finder())
