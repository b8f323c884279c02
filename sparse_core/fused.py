"""Compiled updates of 1-D arrays: Adam with an age per connection, and Polyak averaging, each in one pass.

As `kernels`: importing this file imports Numba, and a `…_block` works on entries start … stop-1 in one thread;
`passes` runs them over many tensors.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from sparse_core.compilation import serial
from sparse_core.threads import thread_count
from sparse_core.vectors import I32, I64, Lanes, loop

SHARE = 1 << 15  # entries that are worth a thread of their own


def corrections(beta: float, dtype: torch.dtype, age: int) -> Any:
    """1 - βᵗ for t = 0, 1, … up to at least `age`, or as far as it is not yet 1, as `Adam` works it out.

    Kernels take an age beyond the table for the table's last entry.
    """
    return _corrections(beta, dtype, max(10, age.bit_length()))


def warmed(table: Any, steps: int) -> Any:
    """First-moment corrections that make an entry's learning rate rise over its first `steps` steps.

    A step is divided by the correction, so what is to be t / steps of it is divided by the correction · steps / t.
    """
    if not steps:
        return table
    length = max(len(table), steps + 1)
    longer = np.concatenate([table, np.full(length - len(table), table[-1])])
    times = np.arange(length)
    return (longer * np.maximum(steps / np.maximum(times, 1), 1)).astype(table.dtype)


@cache
def _corrections(beta: float, dtype: torch.dtype, doublings: int) -> Any:
    enough = 2 if beta == 0 else math.ceil(math.log(torch.finfo(dtype).eps / 4) / math.log(beta)) + 2
    times = torch.arange(min(2**doublings, enough), dtype=dtype)
    table = torch.ones_like(times) if beta == 0 else times.mul(math.log(beta)).expm1_().neg_()
    return table.numpy()


def _adam_entries(one_age: bool) -> Any:
    @intrinsic
    def adam_entries(  # type: ignore[no-untyped-def]
        typing, values, gradients, first, second, ages, corrections1, corrections2, last1, last2, start, stop,
        keep, pull, lr, rest1, beta2, rest2, eps,
    ):  # fmt: skip
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            at = Lanes(context, builder, signature.args[-1])
            whole = at.integers()
            bases, (last1, last2, start, stop) = arguments[:7], arguments[7:11]
            keep, pull, lr, rest1, beta2, rest2, eps = (at.splat(argument) for argument in arguments[11:])

            def smaller(ages: Any, last: Any) -> Any:
                limit = whole.splat(builder.trunc(last, I32))
                return builder.select(builder.icmp_signed("<", ages, limit), ages, limit)

            def corrections(k: Any, mask: Any) -> tuple[Any, Any]:
                if one_age:
                    return at.splat(at.element(bases[5], last1)), at.splat(at.element(bases[6], last2))
                place = builder.add(bases[4], builder.mul(k, I64(4)))
                ages = builder.add(whole.load(place, 0, mask), ir.Constant(whole.vector, [1] * at.count))
                whole.store(ages, place, 0, mask)
                return at.gather(bases[5], smaller(ages, last1), mask), at.gather(bases[6], smaller(ages, last2), mask)

            def step(k: Any, mask: Any) -> None:
                offset = builder.mul(k, I64(at.bytes))
                places = [builder.add(base, offset) for base in bases[:4]]
                value, gradient, moment, square = (at.load(address, 0, mask) for address in places)
                gradient = at.fma(pull, value, gradient)
                moment = at.fma(rest1, builder.fsub(gradient, moment), moment)
                square = at.fma(builder.fmul(rest2, gradient), gradient, builder.fmul(beta2, square))
                at.store(moment, places[2], 0, mask)
                at.store(square, places[3], 0, mask)
                correction1, correction2 = corrections(k, mask)
                scale = builder.fadd(at.sqrt(builder.fdiv(square, correction2)), eps)
                change = builder.fdiv(builder.fmul(lr, moment), builder.fmul(correction1, scale))
                at.store(builder.fsub(builder.fmul(keep, value), change), places[0], 0, mask)

            def unmasked(k: Any, _: list[Any]) -> list[Any]:
                step(k, None)
                return []

            k, _ = loop(builder, start, stop, at.count, [], unmasked)
            with builder.if_then(builder.icmp_signed("<", k, stop)):
                step(k, at.mask(builder.sub(stop, k)))
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 11, *(eps,) * 7), codegen

    return adam_entries


adam_entries = _adam_entries(one_age=False)
"""One step of Adam for entries start … stop-1: the loop of `fused.adam_block`.

Arguments: addresses of five arrays and two tables of corrections; the tables' last indices, which older ages share;
what follows has the element type.
"""

adam_entries_of_one_age = _adam_entries(one_age=True)
"""As `adam_entries`, with no array of ages: the corrections are those at the given last indices."""


@serial
def adam_block(
    values: Any, gradients: Any, first: Any, second: Any, ages: Any, first_corrections: Any, second_corrections: Any,
    lr: Any, beta1: Any, beta2: Any, eps: Any, decay: Any, decoupled: Any, start: Any, stop: Any,
) -> None:  # fmt: skip
    """One step of Adam for these entries, each of which grows older by one; as `sparse_core.Adam`.

    One age for all entries (`ages` of length one) stays as it is: the caller increments it after its last block.
    With t the age, then: g += decay · value unless decoupled; m += (1-β₁)(g - m); s = β₂ s + (1-β₂) g²;
    value = (1 - lr · decay if decoupled) · value - lr · m / ((1-β₁ᵗ) (√(s / (1-β₂ᵗ)) + eps)).
    LLVM leaves that loop scalar, since so many arrays might overlap: hence explicit vectors.
    """
    number = values.dtype.type
    keep, pull = number(1 - lr * decay) if decoupled else number(1), number(0) if decoupled else number(decay)
    rest1, rest2 = number(1 - beta1), number(1 - beta2)
    last1, last2 = first_corrections.shape[0] - 1, second_corrections.shape[0] - 1
    if ages.shape[0] == values.shape[0]:
        adam_entries(
            values.ctypes.data, gradients.ctypes.data, first.ctypes.data, second.ctypes.data, ages.ctypes.data,
            first_corrections.ctypes.data, second_corrections.ctypes.data, last1, last2, start, stop,
            keep, pull, number(lr), rest1, number(beta2), rest2, number(eps),
        )  # fmt: skip
    else:
        age = np.int64(ages[0]) + 1
        adam_entries_of_one_age(
            values.ctypes.data, gradients.ctypes.data, first.ctypes.data, second.ctypes.data, 0,
            first_corrections.ctypes.data, second_corrections.ctypes.data, min(age, last1), min(age, last2),
            start, stop, keep, pull, number(lr), rest1, number(beta2), rest2, number(eps),
        )  # fmt: skip


@serial
def polyak_block(target: Any, source: Any, tau: Any, start: Any, stop: Any) -> None:
    """Target = (1 - τ) target + τ source, for these entries."""
    share, rest = target.dtype.type(tau), target.dtype.type(1 - tau)
    for k in range(start, stop):
        target[k] = rest * target[k] + share * source[k]


def threads_for_entries(count: int) -> int:
    """How many threads an elementwise update of so many entries deserves, at most torch's count."""
    return 1 if count < 2 * SHARE else min(thread_count(), count // SHARE)
