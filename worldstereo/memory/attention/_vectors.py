"""What the attention kernels need and Python cannot say: prefetches and short vector operations.

LLVM instructions behind functions that numba can call: `prefetch`, `dot` and `add_rows`. Importing
this module imports numba, so only the kernels do.

Source: LLVM Language Reference, `llvm.prefetch` and `llvm.vector.reduce.fadd`.
"""

import inspect
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BYTE = ir.IntType(8).as_pointer()
INT = ir.IntType(32)
FLOAT = ir.FloatType()
LANES = 16


def _array(context: Any, builder: Any, signature: Any, arguments: Any, which: int) -> Any:
    return context.make_array(signature.args[which])(context, builder, arguments[which])


def _prefetch(typing_context: Any, matrix: Any, row: Any, offset: Any) -> Any:
    """`prefetch(matrix, row, offset)`: asks for the cache line `offset` bytes into an existing row.

    A hint that never faults and never waits. It hides the way to memory of rows at random places.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = _array(context, builder, signature, arguments, 0)
        stride = cgutils.unpack_tuple(builder, array.strides, 2)[0]
        index, more = (
            context.cast(builder, arguments[i], signature.args[i], types.intp) for i in (1, 2)
        )
        start = builder.bitcast(array.data, BYTE)
        place = builder.gep(start, [builder.add(builder.mul(index, stride), more)])
        kind = ir.FunctionType(ir.VoidType(), [BYTE, INT, INT, INT])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(hint, [place, INT(0), INT(3), INT(1)])  # to read, into all caches, data
        return context.get_dummy_value()

    return types.void(matrix, row, offset), generate


def _parts(n: int) -> list[tuple[int, int]]:
    """`n` floats as (start, lanes): runs of 16, then of 8, 4, 2, 1."""
    parts, start, lanes = [], 0, LANES
    while start < n:
        while lanes > n - start:
            lanes //= 2
        parts.append((start, lanes))
        start += lanes
    return parts


def _vector(builder: Any, place: Any, start: int, lanes: int) -> Any:
    """Pointer to `lanes` floats from `start` on."""
    kind = ir.VectorType(FLOAT, lanes)
    there = builder.gep(place, [ir.Constant(ir.IntType(64), start)])
    return builder.bitcast(there, kind.as_pointer())


def _dot(typing_context: Any, a: Any, b: Any, first: Any, n: Any) -> Any:
    """`dot(a, b, first, n)`: the sum of `a[i] * b[i]`, `i` from `first`, `n` a constant.

    For float32 arrays without gaps. LLVM alone makes a chain of single multiplications of a plain
    loop when `n` is a small constant.
    """
    parts = _parts(n.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = context.cast(builder, arguments[2], signature.args[2], types.intp)
        places = [
            builder.gep(_array(context, builder, signature, arguments, i).data, [start])
            for i in (0, 1)
        ]
        total = FLOAT(0.0)
        for lanes in sorted({lanes for _, lanes in parts}):
            sums = ir.Constant(ir.VectorType(FLOAT, lanes), [0.0] * lanes)
            for begin, width in parts:
                if width == lanes:
                    x, y = (
                        builder.load(_vector(builder, place, begin, lanes), align=4)
                        for place in places
                    )
                    product = builder.fmul(x, y, flags=("fast",))
                    sums = builder.fadd(sums, product, flags=("fast",))
            reduce = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(FLOAT, [FLOAT, sums.type]),
                f"llvm.vector.reduce.fadd.v{lanes}f32",
            )
            total = builder.call(reduce, [total, sums], fastmath=("fast",))
        return total

    return types.float32(a, b, first, n), generate


def _add_rows(
    typing_context: Any, total: Any, first: Any, n: Any,
    w0: Any, r0: Any, w1: Any, r1: Any, w2: Any, r2: Any, w3: Any, r3: Any,
) -> Any:  # fmt: skip
    """`total[i] += w0 * r0[i] + w1 * r1[i] + w2 * r2[i] + w3 * r3[i]`, `i` and `n` as in `dot`.

    For arrays that do not overlap, which LLVM would have to check before every such loop.
    """
    parts = _parts(n.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = context.cast(builder, arguments[1], signature.args[1], types.intp)
        into, *rows = (
            builder.gep(_array(context, builder, signature, arguments, i).data, [start])
            for i in (0, 4, 6, 8, 10)
        )
        for begin, lanes in parts:
            place = _vector(builder, into, begin, lanes)
            sums = builder.load(place, align=4)
            for row, which in zip(rows, (3, 5, 7, 9), strict=True):
                empty = ir.Constant(sums.type, ir.Undefined)
                one = builder.insert_element(empty, arguments[which], INT(0))
                everywhere = ir.Constant(ir.VectorType(INT, lanes), [0] * lanes)
                weight = builder.shuffle_vector(one, empty, everywhere)
                value = builder.load(_vector(builder, row, begin, lanes), align=4)
                product = builder.fmul(weight, value, flags=("fast",))
                sums = builder.fadd(sums, product, flags=("fast",))
            builder.store(sums, place, align=4)
        return context.get_dummy_value()

    return types.void(total, first, n, w0, r0, w1, r1, w2, r2, w3, r3), generate


# Tests wrap functions to check annotations; numba gets the plain ones, as in `_compiled.kernel`.
prefetch: Any = intrinsic(inspect.unwrap(_prefetch))
dot: Any = intrinsic(prefer_literal=True)(inspect.unwrap(_dot))
add_rows: Any = intrinsic(prefer_literal=True)(inspect.unwrap(_add_rows))
