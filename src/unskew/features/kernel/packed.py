"""Program and state passed to a compiled function as one address.

By value they are some 250 words, which each call would copy, and for a call from Python each array would be taken
apart. Functions take the address of ``packed`` instead, and read from there only what they use.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import typeof, types
from numba.extending import intrinsic

from unskew.features.jit import inlined
from unskew.features.kernel.program import Program
from unskew.features.kernel.state import State

PACKED_WORDS = 512


def no_program() -> Program:
    """Return a program of nothing, whose types are those of every program."""
    table = np.empty((0, 0), np.int64)
    return Program(
        accumulators=table,
        features=table,
        windows=table,
        boundaries=np.empty(0, np.int64),
        constants=np.empty(0, np.float64),
        n_words=0,
        ring_slots=0,
        entity_words=0,
        value_words=0,
        chosen_words=0,
        rank_words=0,
        n_bags=0,
    )


def no_state() -> State:
    """Return a state without room for anything, whose types are those of every state."""
    row, table = np.empty(0, np.int64), np.empty((0, 0), np.int64)
    narrow_row, narrow_table = np.empty(0, np.int32), np.empty((0, 0), np.int32)
    return State(
        scalars=row,
        entities=table,
        closings=table,
        touched=table,
        dirty=narrow_row,
        dead=narrow_row,
        tiles=table,
        links=narrow_table,
        ring=narrow_row,
        chunks=narrow_table,
        items=table,
        item_links=narrow_table,
        slots=narrow_row,
        text_records=table,
        text_pool=np.empty(0, np.uint8),
        chosen=row,
        ranks=row,
        wide=np.empty((0, 0), np.uint64),
        window_tiles=row,
        window_next=row,
        late=table,
        late_by=row,
        packed=row,
    )


_KINDS = types.Tuple((typeof(no_program()), typeof(no_state())))


def _places(builder: Any, pointer: Any, kind: Any) -> list[Any]:
    zero = ir.IntType(32)(0)
    return [builder.gep(pointer, [zero, ir.IntType(32)(place)], inbounds=True) for place in range(len(kind))]


def _write(builder: Any, value: Any, pointer: Any) -> None:
    """Store a structure element by element."""
    if not isinstance(value.type, ir.Aggregate):
        builder.store(value, pointer)
        return
    for number, place in enumerate(_places(builder, pointer, value.type)):
        _write(builder, builder.extract_value(value, number), place)


def _read(builder: Any, pointer: Any, kind: Any) -> Any:
    """Load a structure element by element, so that those that are not used are left out."""
    if not isinstance(kind, ir.Aggregate):
        return builder.load(pointer)
    value = ir.Constant(kind, ir.Undefined)
    for number, place in enumerate(_places(builder, pointer, kind)):
        value = builder.insert_value(value, _read(builder, place, place.type.pointee), number)
    return value


def _write_packed(_typing: Any, program: Any, state: Any) -> Any:
    """Write program and state to the state's ``packed``, where ``unpacked`` finds them until its arrays change."""
    if (program, state) != tuple(_KINDS):
        raise TypeError(f"a program and a state of these types cannot be packed: {program}, {state}")

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(_KINDS)
        if context.get_abi_sizeof(kind) > 8 * PACKED_WORDS:
            raise TypeError(f"program and state take {context.get_abi_sizeof(kind)} bytes, more than PACKED_WORDS")
        place = signature.args[1].fields.index("packed")
        array = context.make_array(signature.args[1][place])(
            context, builder, builder.extract_value(arguments[1], place)
        )
        pointer = builder.bitcast(array.data, kind.as_pointer())
        for value, where in zip(arguments, _places(builder, pointer, kind), strict=True):
            _write(builder, value, where)
        return context.get_dummy_value()

    return types.none(program, state), generate


def _unpacked(_typing: Any, address: Any) -> Any:
    """Return the program and the state that were packed at an address."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = context.get_value_type(_KINDS)
        return _read(builder, builder.inttoptr(arguments[0], kind.as_pointer()), kind)

    return _KINDS(address), generate


write_packed: Any = intrinsic(_write_packed)
unpacked: Any = intrinsic(_unpacked)


@inlined()
def at(state):
    """Return the address of what is packed."""
    return state.packed.ctypes.data
