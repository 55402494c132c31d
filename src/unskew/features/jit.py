"""The compilation of kernel functions: one place, so that all are compiled and kept alike."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

from llvmlite import ir
from numba import njit, typeof, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from unskew.features.jit_cache import FunctionCache

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Decorator(Protocol):
    """What makes a decorator of options; types of compiled functions stay as they are written."""

    def __call__(self, **options: Any) -> Callable[[_Function], _Function]: ...


def _kept(**options: Any) -> Callable[[_Function], _Function]:
    """Compile a function at its first call, and keep the result in the folder of ``jit_cache``."""

    def decorate(function: _Function) -> _Function:
        dispatcher = njit(**options)(function)
        dispatcher._cache = FunctionCache(function)  # noqa: SLF001 - numba has no public way to set a cache
        return cast("_Function", dispatcher)

    return decorate


# nogil: shards of one process may run in parallel.
allocating: _Decorator = partial(_kept, nogil=True)
"""Compile a function that allocates arrays, once for each machine and not for each process."""

# numpy error model: do not test for division by zero at every division; ``compile`` checks divisors.
# _nrt=False: no reference counting inside. The kernel allocates nothing, its arrays are owned outside, and counting
# costs a pair of atomic operations per array access: several times the work of an event (docs/decisions/0004 has the
# measurement). The option is numba's own but undocumented. Without it the kernel would be slower, and what ``packed``
# holds beyond a call would be counted too, which it must not be.
compiled: _Decorator = partial(allocating, error_model="numpy", _nrt=False)
"""Compile a function that allocates nothing."""

# The wrappers through which Python calls a function take apart every array of its arguments, and are compiled too.
inner: _Decorator = partial(compiled, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Compile such a function for compiled callers only: Python cannot call it."""

# Inline into the caller, before typing: a call would pass each of the state's arrays as seven words.
inlined: _Decorator = partial(compiled, inline="always")


class Entry(NamedTuple):
    """A compiled function that Python calls, and the types of its arguments, which are the same for all definitions."""

    function: Any
    types: tuple[Any, ...]

    @classmethod
    def of(cls, function: Callable[..., Any], *examples: Any) -> Self:
        """Return the entry of a function that is called with arguments like these."""
        return cls(function, tuple(map(typeof, examples)))

    def is_kept(self) -> bool:
        """Return true if it need not be compiled."""
        held: bool = self.function._cache.holds(self.types, self.function.targetctx)  # noqa: SLF001 - as above
        return held

    def compile(self) -> None:
        """Compile it and keep it, unless it is kept."""
        if not self.is_kept():
            self.function.compile(self.types)


def _fetch(context: Any, builder: Any, array: Any, held: Any, places: list[Any]) -> Any:
    """Write the instruction that fetches an element, and return nothing's value."""
    made = context.make_array(array)(context, builder, held)
    word = cgutils.get_item_pointer(context, builder, array, made, places, wraparound=False)
    pointer = ir.IntType(8).as_pointer()
    flags = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, flags, flags, flags])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    # The flags say: for writing, into every level of the cache, data.
    builder.call(fetch, [builder.bitcast(word, pointer), flags(1), flags(3), flags(1)])
    return context.get_dummy_value()


def _prefetch(_typing: Any, array: Any, row: Any, column: Any) -> Any:
    """Ask the processor to fetch a word of a 2-D array into its cache; a hint that changes nothing else."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        places = [
            context.cast(builder, index, kind, types.intp)
            for index, kind in zip(arguments[1:], signature.args[1:], strict=True)
        ]
        return _fetch(context, builder, signature.args[0], arguments[0], places)

    return types.none(array, row, column), generate


def _prefetch_item(_typing: Any, array: Any, index: Any) -> Any:
    """As ``prefetch``, of a 1-D array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        return _fetch(context, builder, signature.args[0], arguments[0], [place])

    return types.none(array, index), generate


def _load_word(_typing: Any, array: Any, index: Any) -> Any:
    """Return eight bytes of an array of bytes as a number, the first one lowest, wherever they lie."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = context.cast(builder, arguments[1], signature.args[1], types.intp)
        byte = cgutils.get_item_pointer(context, builder, signature.args[0], made, [place], wraparound=False)
        word = builder.load(builder.bitcast(byte, ir.IntType(64).as_pointer()))
        word.align = 1
        return word

    return types.uint64(array, index), generate


def _array_at(_typing: Any, address: Any, shape: Any, like: Any) -> Any:
    """Return the array of a shape, a tuple, that lies at an address; its elements are as those of ``like``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.return_type
        made = context.make_array(kind)(context, builder)
        extents = cgutils.unpack_tuple(builder, arguments[1], kind.ndim)
        size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        strides = [size]
        for extent in reversed(extents[1:]):
            strides.insert(0, builder.mul(strides[0], extent))
        data = builder.inttoptr(arguments[0], made.data.type)
        populate_array(made, data=data, shape=extents, strides=strides, itemsize=size, meminfo=None)
        return made._getvalue()  # noqa: SLF001 - numba's own way to the value of a structure

    return types.Array(like.dtype, len(shape), "C")(address, shape, like), generate


prefetch: Any = intrinsic(_prefetch)
prefetch_item: Any = intrinsic(_prefetch_item)
load_word: Any = intrinsic(_load_word)
array_at: Any = intrinsic(_array_at)
