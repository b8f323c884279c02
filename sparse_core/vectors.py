"""The inner loops of the `csr` kernels, written in LLVM's own vectors: a tile of the batch stays in registers.

Numba has no stack arrays, so a loop over connections that LLVM vectorises by itself loads and stores
its output once per few connections. Here the accumulators are vector registers over all connections of
a row. Explicit vectors are 64 bytes wide also where LLVM prefers 256-bit ones, and every sum has one
fixed order: no fast-math flags, and the same result whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

VECTOR_BYTES = 64
I32, I64 = ir.IntType(32), ir.IntType(64)


def _has_wide_registers() -> bool:
    """Whether 32 registers of 64 bytes are there and the user's `NUMBA_CPU_FEATURES` does not rule them out."""
    chosen: str | None = numba.config.CPU_FEATURES  # type: ignore[attr-defined]  # set while Numba is imported
    if chosen is not None:
        return "+avx512f" in chosen.split(",")
    return bool(binding.get_host_cpu_features().get("avx512f", False))


WIDE = _has_wide_registers()
REGISTER_BYTES = 64 if WIDE else 32
UNIT = 8 if WIDE else 4  # vectors of the smallest tile that is cut from a batch
# Tiles that exist as code, in vectors; a batch is cut into the largest one, then smaller ones. Elsewhere a vector
# takes two or four registers of the machine, and sixteen vectors would not fit.
TILES = (*range(1, UNIT + 1), 2 * UNIT) if WIDE else tuple(range(1, UNIT + 1))


class Lanes:
    """Emits reads, writes and sums of vectors of one element type; addresses are integers."""

    def __init__(self, context: Any, builder: Any, dtype: Any, count: int = 0) -> None:
        self._context, self.builder = context, builder
        self.scalar = context.get_value_type(dtype)
        self.bytes = dtype.bitwidth // 8
        self.count = count or VECTOR_BYTES // self.bytes
        self.vector = ir.VectorType(self.scalar, self.count)
        self.bits = ir.VectorType(ir.IntType(1), self.count)
        self.suffix = f"v{self.count}{'i' if dtype == types.int32 else 'f'}{dtype.bitwidth}"
        self.zero = ir.Constant(self.vector, [0 if dtype == types.int32 else 0.0] * self.count)

    def read(self, kind: Any, address: Any, index: Any, size: int) -> Any:
        """The element of `size` bytes with this index."""
        place = self.builder.add(address, self.builder.mul(index, I64(size)))
        return self.builder.load(self.builder.inttoptr(place, ir.PointerType()), typ=kind, align=size)

    def element(self, address: Any, index: Any) -> Any:
        """The array element with this index."""
        return self.read(self.scalar, address, index, self.bytes)

    def index(self, address: Any, index: Any, kind: Any = types.int32) -> Any:
        """The element of an array of int32 or uint16 with this index, as an int64."""
        size = kind.bitwidth // 8
        return self.builder.zext(self.read(ir.IntType(8 * size), address, index, size), I64)

    def splat(self, value: Any) -> Any:
        """A vector that holds `value` in every lane."""
        empty = ir.Constant(ir.VectorType(value.type, self.count), ir.Undefined)
        first = self.builder.insert_element(empty, value, I32(0))
        return self.builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(I32, self.count), [0] * self.count))

    def mask(self, lanes: Any) -> Any:
        """True in the first `lanes` lanes."""
        numbers = ir.Constant(ir.VectorType(I64, self.count), list(range(self.count)))
        return self.builder.icmp_signed("<", numbers, self.splat(lanes))

    def load(self, address: Any, number: int, mask: Any) -> Any:
        """Vector `number` from there on; lanes outside the mask (None: all inside) are zero and not touched."""
        pointer = self._pointer(address, number)
        if mask is None:
            return self.builder.load(pointer, typ=self.vector, align=self.bytes)
        arguments = [pointer, I32(self.bytes), mask, self.zero]
        return self._call(f"llvm.masked.load.{self.suffix}.p0", self.vector, arguments)

    def store(self, value: Any, address: Any, number: int, mask: Any) -> None:
        """Write vector `number` from there on, inside the mask only."""
        pointer = self._pointer(address, number)
        if mask is None:
            self.builder.store(value, pointer, align=self.bytes)
        else:
            arguments = [value, pointer, I32(self.bytes), mask]
            self._call(f"llvm.masked.store.{self.suffix}.p0", ir.VoidType(), arguments)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """A · b + c, rounded once."""
        return self._call(f"llvm.fma.{self.suffix}", self.vector, [a, b, c])

    def sqrt(self, value: Any) -> Any:
        """Square roots, correctly rounded."""
        return self._call(f"llvm.sqrt.{self.suffix}", self.vector, [value])

    def gather(self, address: Any, indices: Any, mask: Any) -> Any:
        """Elements with these 32-bit indices; one outside the mask is not touched."""
        wide = ir.VectorType(I64, self.count)
        size = ir.Constant(wide, [self.bytes] * self.count)
        places = self.builder.add(self.splat(address), self.builder.mul(self.builder.sext(indices, wide), size))
        pointers = self.builder.inttoptr(places, ir.VectorType(ir.PointerType(), self.count))
        if mask is None:
            mask = ir.Constant(self.bits, [True] * self.count)
        ones = ir.Constant(self.vector, [1.0] * self.count)
        arguments = [pointers, I32(self.bytes), mask, ones]
        return self._call(f"llvm.masked.gather.{self.suffix}.v{self.count}p0", self.vector, arguments)

    def integers(self) -> Lanes:
        """As many lanes of int32."""
        return Lanes(self._context, self.builder, types.int32, self.count)

    def _pointer(self, address: Any, number: int) -> Any:
        return self.builder.inttoptr(self.builder.add(address, I64(number * self.count * self.bytes)), ir.PointerType())

    def _call(self, name: str, result: Any, arguments: list[Any]) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)  # type: ignore[no-untyped-call]
        return self.builder.call(function, arguments)


def loop(builder: Any, start: Any, stop: Any, step: int, carried: list[Any], body: Any) -> tuple[Any, list[Any]]:
    """`for k in range(start, stop - step + 1, step)`; returns where it ended and the carried values."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    phis = [builder.phi(value.type) for value in carried]
    index.add_incoming(start, before)
    for phi, value in zip(phis, carried, strict=True):
        phi.add_incoming(value, before)
    following = builder.add(index, I64(step))
    builder.cbranch(builder.icmp_signed("<=", following, stop), inside, after)
    builder.position_at_end(inside)
    results = body(index, phis)
    index.add_incoming(following, builder.block)
    for phi, value in zip(phis, results, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return index, phis


def by_tile(builder: Any, at: Lanes, count: Any, emit: Any, tiles: tuple[int, ...] = TILES) -> None:
    """Emit `emit(vectors, masks)` once per tile size and jump to the one that holds `count` batch entries.

    The last vector is masked. That is free with AVX-512; elsewhere a full last vector gets code of its own.
    """
    vectors = builder.sdiv(builder.add(count, I64(at.count - 1)), I64(at.count))
    lanes = builder.sub(count, builder.mul(builder.sub(vectors, I64(1)), I64(at.count)))
    after = builder.append_basic_block("after_tile")
    choice = builder.switch(vectors, after)
    for number in tiles:
        block = builder.append_basic_block(f"tile_{number}")
        choice.add_case(I64(number), block)
        builder.position_at_end(block)
        if WIDE:
            emit(number, [None] * (number - 1) + [at.mask(lanes)])
        else:
            with builder.if_else(builder.icmp_signed("==", lanes, I64(at.count))) as (full, partial):
                with full:
                    emit(number, [None] * number)
                with partial:
                    emit(number, [None] * (number - 1) + [at.mask(lanes)])
        builder.branch(after)
    builder.position_at_end(after)


def _sets(vectors: int) -> int:
    """Accumulators per vector, so that additions that wait for each other do not set the pace.

    As many for two vectors as for seven: how a small batch is cut for threads then does not change its sums.
    """
    return 1 if vectors >= 8 else 2 if vectors >= 2 else 4


def _weighted_sum(permuted: bool) -> Any:
    @intrinsic
    def weighted_sum(  # type: ignore[no-untyped-def]
        typing, y, x, stride, columns, values, order, start, stop, bias, count, resume, gate, relu, kind
    ):
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            y, x, stride, columns, values, order, start, stop, bias, count, resume, gate, relu, _ = arguments
            at = Lanes(context, builder, signature.args[8])
            floor = builder.select(relu, at.zero, ir.Constant(at.vector, [float("-inf")] * at.count))

            def begun(masks: list[Any]) -> list[Any]:
                fresh = at.splat(bias)
                with builder.if_else(resume) as (further, first):
                    with further:
                        before = [at.load(y, i, mask) for i, mask in enumerate(masks)]
                        left = builder.block
                    with first:
                        right = builder.block
                sums = [builder.phi(at.vector) for _ in masks]
                for total, value in zip(sums, before, strict=True):
                    total.add_incoming(value, left)
                    total.add_incoming(fresh, right)
                return sums

            def tile(vectors: int, masks: list[Any]) -> None:
                sets = _sets(vectors)

                def add(k: Any, sums: list[Any]) -> list[Any]:
                    weight = at.splat(at.element(values, at.index(order, k) if permuted else k))
                    row = builder.add(x, builder.mul(at.index(columns, k, kind), stride))
                    return [
                        at.fma(weight, at.load(row, i, mask), total)
                        for i, (mask, total) in enumerate(zip(masks, sums, strict=True))
                    ]

                def several(k: Any, sums: list[Any]) -> list[Any]:
                    parts = [sums[s * vectors : (s + 1) * vectors] for s in range(sets)]
                    return [value for s, part in enumerate(parts) for value in add(builder.add(k, I64(s)), part)]

                k, sums = start, begun(masks)
                if sets > 1:
                    k, sums = loop(builder, k, stop, sets, sums + [at.zero] * (vectors * (sets - 1)), several)
                    while len(sums) > vectors:
                        half = len(sums) // 2
                        sums = [builder.fadd(sums[i], sums[half + i]) for i in range(half)]
                _, sums = loop(builder, k, stop, 1, sums, add)
                finish(builder, at, sums, masks, y, gate, floor)

            by_tile(builder, at, count, tile)
            return context.get_dummy_value()

        integers = types.int64
        return types.void(*(integers,) * 8, bias, integers, types.boolean, integers, types.boolean, kind), codegen

    return weighted_sum


def finish(builder: Any, at: Lanes, sums: list[Any], masks: list[Any], y: Any, gate: Any, floor: Any) -> None:
    """Store the sums: zero where `gate` (an address, 0 for none) is not positive, and not below `floor`."""
    with builder.if_else(builder.icmp_signed("!=", gate, I64(0))) as (gated, plain):
        with gated:
            for i, (total, mask) in enumerate(zip(sums, masks, strict=True)):
                is_open = builder.fcmp_ordered(">", at.load(gate, i, mask), at.zero)
                at.store(builder.select(is_open, total, at.zero), y, i, mask)
        with plain:
            for i, (total, mask) in enumerate(zip(sums, masks, strict=True)):
                is_below = builder.fcmp_ordered("<", total, floor)  # false for NaN, which passes
                at.store(builder.select(is_below, floor, total), y, i, mask)


def put(builder: Any, value: Any, pointer: Any, fresh: Any, at: Lanes) -> None:
    """Store a number or short vector, added to what is there unless `fresh`."""
    with builder.if_else(fresh) as (first, further):
        with first:
            builder.store(value, pointer, align=at.bytes)
        with further:
            before = builder.load(pointer, typ=value.type, align=at.bytes)
            builder.store(builder.fadd(before, value), pointer, align=at.bytes)


weighted_sum = _weighted_sum(permuted=False)
"""One tile of one row: y = max(bias + Σ_k values[k] · x[columns[k]], floor), or zero where `gate` is not positive.

Arguments: addresses of y and x at the tile's first batch entry, bytes from one row of x to the next, addresses
of columns and values, order (unused), first and last connection, bias (its type is the element type), batch
entries in the tile, whether to go on from what y holds instead of the bias, address of the gate's tile or 0, whether
negative outputs become zero, any number of the columns' type (int32 or uint16).
"""

permuted_sum = _weighted_sum(permuted=True)
"""As `weighted_sum`, with values[order[k]] in place of values[k]: the product with the transpose."""


@intrinsic
def sampled_dots(  # type: ignore[no-untyped-def]
    typing, out, y, x, stride, columns, start, stop, count, fresh, like
):
    """One tile of one row: out[k] = ⟨y, x[columns[k]]⟩, added to what is there unless `fresh`.

    Addresses and bytes as for `weighted_sum`; `like` is any number of the element type.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, y, x, stride, columns, start, stop, count, fresh, _ = arguments
        at = Lanes(context, builder, signature.args[9])

        def tile(vectors: int, masks: list[Any]) -> None:
            left = [at.load(y, i, mask) for i, mask in enumerate(masks)]

            def dot(k: Any) -> Any:
                row = builder.add(x, builder.mul(at.index(columns, k), stride))
                total = builder.fmul(left[0], at.load(row, 0, masks[0]))
                for i in range(1, vectors):
                    total = at.fma(left[i], at.load(row, i, masks[i]), total)
                return total

            def place(k: Any) -> Any:
                return builder.inttoptr(builder.add(out, builder.mul(k, I64(at.bytes))), ir.PointerType())

            def four(k: Any, _: list[Any]) -> list[Any]:
                put(
                    builder, sum_each(builder, at, [dot(builder.add(k, I64(i))) for i in range(4)]), place(k), fresh, at
                )
                return []

            def single(k: Any, _: list[Any]) -> list[Any]:
                total = builder.extract_element(sum_each(builder, at, [dot(k)] * 4), I32(0))
                put(builder, total, place(k), fresh, at)
                return []

            k, _ = loop(builder, start, stop, 4, [], four)
            loop(builder, k, stop, 1, [], single)

        by_tile(builder, at, count, tile)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 8, types.boolean, like), codegen


@intrinsic
def vector_sum(typing, x, count, like):  # type: ignore[no-untyped-def]
    """Σ of `count` numbers from address `x` on; `like` is any number of the element type."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, count, _ = arguments
        at = Lanes(context, builder, signature.args[2])

        def vector(k: Any, mask: Any) -> Any:
            return at.load(builder.add(x, builder.mul(k, I64(at.bytes))), 0, mask)

        def several(k: Any, sums: list[Any]) -> list[Any]:
            places = [builder.add(k, I64(i * at.count)) for i in range(len(sums))]
            return [builder.fadd(total, vector(place, None)) for total, place in zip(sums, places, strict=True)]

        k, (a, b, c, d) = loop(builder, I64(0), count, 4 * at.count, [at.zero] * 4, several)
        total = builder.fadd(builder.fadd(a, b), builder.fadd(c, d))
        k, (total,) = loop(builder, k, count, at.count, [total], several)
        total = builder.fadd(total, vector(k, at.mask(builder.sub(count, k))))
        return builder.extract_element(sum_each(builder, at, [total] * 4), I32(0))

    return like(types.int64, types.int64, like), codegen


@intrinsic
def pointer(typing, address, like):  # type: ignore[no-untyped-def]
    """An address as a pointer to numbers of the type of `like`, for `numba.carray`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.int64, like), codegen  # type: ignore[no-untyped-call]


@intrinsic
def prefetch(typing, address):  # type: ignore[no-untyped-def]
    """Begin to fetch the cache line there; any address is allowed."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        builder.call(function, [builder.inttoptr(arguments[0], ir.PointerType()), I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def sum_each(builder: Any, at: Lanes, vectors: list[Any]) -> Any:
    """(Σa, Σb, Σc, Σd) of four vectors, in few shuffles."""

    def picked(a: Any, b: Any, lanes: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))

    def paired(a: Any, b: Any, group: int) -> Any:
        """Even groups of `group` lanes of a and b in turn, plus the odd ones."""
        sides: tuple[list[int], list[int]] = ([], [])
        for start in range(0, at.count, 2 * group):
            for odd in (0, 1):
                lanes = range(start + odd * group, start + (odd + 1) * group)
                sides[odd].extend([*lanes, *(at.count + lane for lane in lanes)])
        return builder.fadd(picked(a, b, sides[0]), picked(a, b, sides[1]))

    a, b, c, d = vectors
    total = paired(paired(a, b, 1), paired(c, d, 1), 2)  # four sums side by side in every group of four lanes
    width = at.count
    while width > 4:
        width //= 2
        low, high = list(range(width)), list(range(width, 2 * width))
        total = builder.fadd(picked(total, total, low), picked(total, total, high))
    return total
