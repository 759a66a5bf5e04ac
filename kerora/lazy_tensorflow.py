"""TensorFlow imported only when it is used, on the other backends.

KerasHub imports TensorFlow and tensorflow-text wherever they are installed, on every backend: five
seconds and 0.6 GB of memory, for `tf.data` pipelines and traced functions alone. Here it is given
stand-ins, which import the libraries when one of them is first used. KerasHub asks on every path
whether a value is one of TensorFlow's: as long as nobody has imported TensorFlow, none can be.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

_LIBRARIES = ("tensorflow", "tensorflow_text")
_WORD_PIECES = "tensorflow_text.tools.wordpiece_vocab"
# All that KerasHub imports of them when it is imported.
_IMPORTED = (
    *_LIBRARIES,
    _WORD_PIECES,
    f"{_WORD_PIECES}.wordpiece_tokenizer_learner_lib",
)

_missing: set[str] = set()


def import_tensorflow_when_used() -> None:
    """Has KerasHub's coming import take stand-ins for TensorFlow and tensorflow-text.

    Nothing where KerasHub or TensorFlow is imported already, or TensorFlow is not installed. Your
    own `import tensorflow` gets the library itself.

    Example:
    ```python
    import_tensorflow_when_used()
    import keras_hub  # in a second
    ```
    """
    if "keras_hub" in sys.modules or any(name in sys.modules for name in _LIBRARIES):
        return
    if _installed():
        sys.meta_path.insert(0, _Finder("keras_hub", _beside_stand_ins))


@contextlib.contextmanager
def tensorflow_stood_in_for(*missing: str) -> Iterator[None]:
    """Has imports of TensorFlow take stand-ins, unless it is imported already or not installed.

    It is for code of KerasHub's that imports TensorFlow and then asks it for nothing needed here:
    its file systems, for a model that lies in a folder.

    Args:
        *missing: Parts of TensorFlow of which KerasHub is to do without: `ImportError`.
    """
    mine = not any(name in sys.modules for name in _LIBRARIES) and _installed()
    if mine:
        sys.modules.update({name: _StandIn(name) for name in _IMPORTED})
    before = set(_missing)
    _missing.update(missing)
    try:
        yield
    finally:
        _missing.intersection_update(before)
        if mine:
            _clear_the_way()


def _installed() -> bool:
    specs = [importlib.util.find_spec(name) for name in _LIBRARIES]
    # A folder that an uninstallation left behind has a spec and no file.
    return all(spec is not None and spec.origin is not None for spec in specs)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module as ever, once, and has it executed inside a context."""

    def __init__(self, name: str, context: Callable[[ModuleType], AbstractContextManager]) -> None:
        self.name, self._context, self._asked = name, context, False

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name or self._asked:
            return None
        self._asked = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asked = False
        if spec is not None:
            self._loader: Any = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        sys.meta_path.remove(self)
        with self._context(module):
            self._loader.exec_module(module)


@contextlib.contextmanager
def _beside_stand_ins(_: ModuleType) -> Iterator[None]:
    import keras

    with tensorflow_stood_in_for():
        # Keras imports TensorFlow when it first writes a configuration.
        keras.saving.serialize_keras_object(keras.config.dtype_policy())
        yield


def _seed_when_imported(seed: int) -> None:
    """For `keras.utils.set_random_seed`, which seeds TensorFlow too."""

    @contextlib.contextmanager
    def seeded(tensorflow: Any) -> Iterator[None]:
        yield
        tensorflow.random.set_seed(seed)

    for finder in list(sys.meta_path):
        if isinstance(finder, _Finder) and finder.name == "tensorflow":
            sys.meta_path.remove(finder)  # of an earlier seed
    sys.meta_path.insert(0, _Finder("tensorflow", seeded))


def _clear_the_way() -> None:
    """Lets an import find the libraries themselves."""
    for name in _IMPORTED:
        if isinstance(sys.modules.get(name), _StandIn):
            sys.modules.pop(name, None)


def _loaded() -> ModuleType | None:
    """TensorFlow, once it is imported."""
    module = sys.modules.get("tensorflow")
    return None if isinstance(module, _StandIn) else module


def _library(name: str) -> ModuleType:
    _clear_the_way()
    return importlib.import_module(name)


class _StandIn(ModuleType):
    """A module that is imported when anything of it is used that has a meaning only then."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, attribute: str) -> Any:
        name = self.__name__
        if _loaded() is None:
            part = sys.modules.get(f"{name}.{attribute}")
            if isinstance(part, _StandIn):
                return part
            if attribute in _BEFORE_IMPORT.get(name, {}):
                return _BEFORE_IMPORT[name][attribute]
            if attribute in _missing:
                raise ImportError(f"{name}.{attribute} is not asked for here")
        return getattr(_library(name), attribute)


class _NoInstances(type):
    """A class of TensorFlow's of which nothing can be an instance before it is imported."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return _loaded() is not None and isinstance(instance, cls._real())

    def __getattr__(cls, attribute: str) -> Any:
        return getattr(cls._real(), attribute)

    def _real(cls) -> Any:
        return operator.attrgetter(cls.__qualname__)(_library("tensorflow"))


def _class(name: str) -> Any:
    return _NoInstances(name, (), {"__qualname__": name})


class _Part:
    """A part of TensorFlow of which some values are known without it."""

    def __init__(self, path: str, **known: Any) -> None:
        self._path = path
        self.__dict__.update(known)

    def __getattr__(self, attribute: str) -> Any:
        return operator.attrgetter(f"{self._path}.{attribute}")(_library("tensorflow"))


class _Later:
    """An object of tensorflow-text's that is made when it is used."""

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._make = lambda: getattr(_library("tensorflow_text"), name)(*args, **kwargs)

    @functools.cached_property
    def _real(self) -> Any:
        # A traced function may use what was made outside of it alone.
        with _library("tensorflow").init_scope():
            return self._make()

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._real, attribute)


# What KerasHub asks of them on paths that do without them.
_BEFORE_IMPORT: dict[str, dict[str, Any]] = {
    "tensorflow": {
        "executing_eagerly": lambda: True,
        "device": lambda name: contextlib.nullcontext(),
        "is_tensor": lambda value: False,
        # The base that KerasHub's byte-pair cache takes where there is no TensorFlow.
        "Module": object,
        "Tensor": _class("Tensor"),
        "RaggedTensor": _class("RaggedTensor"),
        "TensorShape": _class("TensorShape"),
        "DType": _class("DType"),
        "TypeSpec": _class("TypeSpec"),
        "random": _Part("random", set_seed=_seed_when_imported),
        "data": _Part("data", Dataset=_class("data.Dataset")),
        "io": _Part("io", gfile=_Part("io.gfile", get_registered_schemes=lambda: [])),
    },
    # Every tokenizer makes one of these; only a traced function calls it.
    "tensorflow_text": {
        name: functools.partial(_Later, name)
        for name in ("SentencepieceTokenizer", "FastWordpieceTokenizer")
    },
    _WORD_PIECES: {"__path__": []},
}
