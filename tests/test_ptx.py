"""The interpreter that runs CUDA kernels in tests: every instruction against Python's own numbers, every check."""

import itertools
import math
import operator
import struct
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from .ptx.interpreter import Module
from .ptx.memory import LaunchError, Memory

HEADER = ".version 9.0\n.target sm_90\n.address_size 64\n"
DTYPES = {"f16": "f2", "f32": "f4", "f64": "f8", "pred": "u4", "bf16": "u2", "bf16x2": "u4", "f16x2": "u4"}
DTYPES |= {f"{kind}{8 * n}": f"{code}{n}" for kind, code in zip("bus", "uui", strict=True) for n in (1, 2, 4, 8)}
NAN_BITS = {"f32": 0x7FFFFFFF, "f16": 0x7FFF}


def aligned(array):
    """A copy that begins at a multiple of 256 bytes."""
    array = np.asarray(array)
    memory = np.zeros(array.nbytes + 256, np.uint8)
    begin = -memory.ctypes.data % 256
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def kernel_of(body, arrays=(), extra=""):
    """A kernel whose parameters are the addresses of arrays; `%i` is the thread, `%a0` and so on the addresses."""
    parameters = ", ".join(f".param .u64 p{i}" for i in range(len(arrays)))
    loads = "".join(f"ld.param.u64 %a{i}, [p{i}];\n" for i in range(len(arrays)))
    text = f"""{HEADER}{extra}
.visible .entry test({parameters})
{{
    .reg .b32 %i, %n;  .reg .b64 %a<9>, %rd<40>;  .reg .b32 %r<40>;  .reg .b16 %h<40>;
    .reg .f32 %f<40>;  .reg .f64 %d<40>;  .reg .pred %p<9>;
    {loads}
    mov.u32 %i, %ctaid.x;  mov.u32 %n, %ntid.x;  mov.u32 %r0, %tid.x;  mad.lo.s32 %i, %i, %n, %r0;
    {body}
    ret;
}}"""
    return Module(text).kernels["test"]


def launch(body, arrays=(), *, grid=1, block=32, extra="", hogwild=(), readonly=(), memory=None):
    """Run a kernel on arrays, which it changes; returns the memory for its statistics."""
    memory = memory or Memory()
    for i, array in enumerate(arrays):
        memory.add_array(array, f"array {i}", writable=i not in readonly)
    kernel = kernel_of(body, arrays, extra)
    kernel.launch(grid, block, [struct.pack("Q", array.ctypes.data) for array in arrays], memory, hogwild=hogwild)
    return memory


def register(kind):
    return ".pred" if kind == "pred" else f".b{max(8 * np.dtype(DTYPES[kind]).itemsize, 16)}"


def evaluate(instruction, result, *operands):
    """The results of an instruction into `{d}` of `{a}`, `{b}`, `{c}`, `{e}`; operands are pairs of type and values."""
    n = len(operands[0][1])
    threads = -(-n // 64) * 64
    inputs = [aligned(np.resize(np.asarray(values, DTYPES[kind]), threads)) for kind, values in operands]
    out = aligned(np.zeros(threads, DTYPES[result]))
    lines, names = [], {"d": "%result"}
    lines.append(f".reg {'.pred' if result == 'pred' else register(result)} %result;")
    for place, ((kind, _), array) in enumerate(zip(operands, inputs, strict=True)):
        names["abce"[place]] = f"%x{place}"
        size = array.itemsize
        lines += [
            f".reg {register(kind) if kind != 'pred' else '.b32'} %x{place}, %y{place};",
            f"mad.wide.u32 %rd1, %i, {size}, %a{place};",
            f"ld.global.{'s' if kind[0] == 's' else 'b' if size > 1 else 'u'}{8 * size} %x{place}, [%rd1];",
        ]
        if kind == "pred":
            lines.append(f"setp.ne.b32 %p{place}, %x{place}, 0;")
            names["abce"[place]] = f"%p{place}"
    lines.append(instruction.format(**names))
    if result == "pred":
        lines.append("selp.b32 %r9, 1, 0, %result;")
    lines += [
        f"mad.wide.u32 %rd1, %i, {out.itemsize}, %a{len(inputs)};",
        f"st.global.b{8 * out.itemsize} [%rd1], {'%r9' if result == 'pred' else '%result'};",
    ]
    launch("\n".join(lines), [*inputs, out], grid=threads // 64, block=64)
    return out[:n]


def integers(kind, seed=0, more=60):
    """Edge cases and random integers of a type, all pairs of the edge cases with one another among them."""
    info = np.iinfo(DTYPES[kind])
    size = info.bits
    edges = {0, 1, 2, 3, 5, 7, info.max, info.max - 1, info.min, info.min + 1, 1 << (size // 2), (1 << (size // 2)) - 1}
    edges |= {-1, -2, -7} if info.min else {1 << (size - 1)}
    rng = np.random.default_rng(seed)
    numbers = [*sorted(edges), *(int(x) for x in rng.integers(info.min, info.max, more, DTYPES[kind], endpoint=True))]
    return numbers


def pairs(kind, seed=0):
    a, b = zip(*itertools.product(integers(kind, seed, 8), integers(kind, seed + 1, 8)), strict=True)
    return (kind, a), (kind, b)


def wrap(number, kind):
    info = np.iinfo(DTYPES[kind])
    return (number - info.min) % (1 << info.bits) + info.min


FLOAT_EDGES = [0.0, -0.0, 1.0, -1.0, 1.5, -2.5, 3.0, 0.1, -0.3, np.inf, -np.inf, np.nan, 16777217.0, 1e-3, 0.5, -0.5]


def floats(kind, seed=0, more=20):
    """Edge cases and random floats of many magnitudes; subnormals and random bits too."""
    dtype = np.dtype(DTYPES[kind])
    info, rng = np.finfo(dtype), np.random.default_rng(seed)
    edges = [
        *FLOAT_EDGES,
        info.max,
        -info.max,
        info.smallest_normal,
        info.smallest_subnormal,
        3 * info.smallest_subnormal,
    ]
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = np.concatenate(
            [
                np.array(edges).astype(dtype),
                (rng.standard_normal(more) * 10.0 ** rng.integers(-3, 4, more)).astype(dtype),
                rng.integers(0, 1 << 8 * dtype.itemsize, more, f"u{dtype.itemsize}").view(dtype),
            ]
        )
    return np.where(np.isnan(numbers), dtype.type(np.nan), numbers)


def float_pairs(kind, seed=0):
    a, b = np.meshgrid(floats(kind, seed), floats(kind, seed + 1))
    return (kind, a.ravel()), (kind, b.ravel())


def assert_floats(got, want, kind):
    """Assert equal bits; a NaN computed in float32 or float16 is the canonical one, in float64 any."""
    want = np.asarray(want, got.dtype)
    words, nan = f"u{got.itemsize}", np.isnan(want)
    np.testing.assert_array_equal(got.view(words)[~nan], want.view(words)[~nan])
    assert np.isnan(got[nan]).all()
    if kind in NAN_BITS:
        assert (got.view(words)[nan] == NAN_BITS[kind]).all()


# ---- integers ----


def _quotient(a, b):
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add": operator.add,
    "sub": operator.sub,
    "mul.lo": operator.mul,
    "min": min,
    "max": max,
    "div": _quotient,
    "rem": lambda a, b: a if b == 0 else a - _quotient(a, b) * b,
}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", BINARY)
def test_integers(name, kind):
    a, b = pairs(kind)
    got = evaluate(f"{name}.{kind} {{d}}, {{a}}, {{b}};", kind, a, b)
    assert got.tolist() == [wrap(BINARY[name](x, y), kind) for x, y in zip(a[1], b[1], strict=True)]


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_products(kind):
    a, b = pairs(kind)
    size = np.iinfo(DTYPES[kind]).bits
    high = evaluate(f"mul.hi.{kind} {{d}}, {{a}}, {{b}};", kind, a, b)
    assert high.tolist() == [x * y >> size for x, y in zip(a[1], b[1], strict=True)]
    c = (kind, b[1][::-1])
    low = evaluate(f"mad.lo.{kind} {{d}}, {{a}}, {{b}}, {{c}};", kind, a, b, c)
    assert low.tolist() == [wrap(x * y + z, kind) for x, y, z in zip(a[1], b[1], c[1], strict=True)]
    if size < 64:
        wide = f"{kind[0]}{2 * size}"
        got = evaluate(f"mul.wide.{kind} {{d}}, {{a}}, {{b}};", wide, a, b)
        assert got.tolist() == [x * y for x, y in zip(a[1], b[1], strict=True)]
    if size == 32:
        got = evaluate(f"mul24.lo.{kind} {{d}}, {{a}}, {{b}};", kind, a, b)
        cut = [[(x % 2**24 + (2**23 if kind[0] == "s" else 0)) % 2**24 for x in values] for _, values in (a, b)]
        if kind[0] == "u":
            assert got.tolist() == [x * y % 2**32 for x, y in zip(*cut, strict=True)]
        else:
            assert got.tolist() == [wrap((x - 2**23) * (y - 2**23), kind) for x, y in zip(*cut, strict=True)]


@pytest.mark.parametrize("size", [32, 64])
def test_carries(size):
    """Sums, differences and products of twice the width, in two parts."""
    kind = f"u{size}"
    a, b = pairs(kind)
    c, e = (kind, b[1][::-1]), (kind, a[1][::-1])
    first, second = ([x << size | y for x, y in zip(*halves, strict=True)] for halves in ((a[1], b[1]), (c[1], e[1])))
    register = "%rd20" if size == 64 else "%r20"
    for name, function in (("add", operator.add), ("sub", operator.sub)):
        instruction = f"{name}.cc.{kind} {register}, {{b}}, {{e}}; {name}c.{kind} {{d}}, {{a}}, {{c}};"
        got = evaluate(instruction, kind, a, b, c, e)
        assert got.tolist() == [function(x, y) % 2 ** (2 * size) >> size for x, y in zip(first, second, strict=True)]
    instruction = f"mad.lo.cc.{kind} {register}, {{a}}, {{b}}, {{c}}; madc.hi.{kind} {{d}}, {{a}}, {{b}}, {{e}};"
    got = evaluate(instruction, kind, a, b, c, e)
    numbers = zip(a[1], b[1], c[1], e[1], strict=True)
    assert got.tolist() == [((x * y + z + (w << size)) >> size) % 2**size for x, y, z, w in numbers]


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_signs(kind):
    values = integers(kind)
    for name, function in (("neg", operator.neg), ("abs", abs)):
        assert evaluate(f"{name}.{kind} {{d}}, {{a}};", kind, (kind, values)).tolist() == [
            wrap(function(x), kind) for x in values
        ]


def test_sum_of_differences():
    a, b = pairs("s32")
    got = evaluate("sad.s32 {d}, {a}, {b}, {a};", "s32", a, b)
    assert got.tolist() == [wrap(abs(x - y) + x, "s32") for x, y in zip(a[1], b[1], strict=True)]


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_logic(kind):
    a, b = pairs(kind)
    for name, function in (("and", operator.and_), ("or", operator.or_), ("xor", operator.xor)):
        got = evaluate(f"{name}.{kind} {{d}}, {{a}}, {{b}};", kind, a, b)
        assert got.tolist() == [function(x, y) for x, y in zip(a[1], b[1], strict=True)]
    got = evaluate(f"not.{kind} {{d}}, {{a}};", kind, a)
    assert got.tolist() == [wrap(~x, kind) for x in a[1]]


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "s16", "s32", "s64"])
def test_shifts(kind):
    size = np.iinfo(DTYPES[kind]).bits
    amounts = [0, 1, 5, size - 1, size, size + 1, 65536 + 3, 2**32 - 1]
    a, b = zip(*itertools.product(integers(kind), amounts), strict=True)
    right = evaluate(f"shr.{kind} {{d}}, {{a}}, {{b}};", kind, (kind, a), ("u32", b))
    assert right.tolist() == [x >> y for x, y in zip(a, b, strict=True)]
    left = evaluate(f"shl.b{size} {{d}}, {{a}}, {{b}};", kind, (kind, a), ("u32", b))
    assert left.tolist() == [wrap(x << min(y, size), kind) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shifts(mode):
    a, b = pairs("b32")
    c = ("u32", np.random.default_rng(0).integers(0, 70, len(a[1])))
    amounts = [int(x) % 32 if mode == "wrap" else min(int(x), 32) for x in c[1]]
    both = [y << 32 | x for x, y in zip(a[1], b[1], strict=True)]
    got = evaluate(f"shf.l.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};", "b32", a, b, c)
    assert got.tolist() == [(x << s >> 32) % 2**32 for x, s in zip(both, amounts, strict=True)]
    got = evaluate(f"shf.r.{mode}.b32 {{d}}, {{a}}, {{b}}, {{c}};", "b32", a, b, c)
    assert got.tolist() == [(x >> s) % 2**32 for x, s in zip(both, amounts, strict=True)]


def test_permute():
    a, b = pairs("b32")
    selectors = np.random.default_rng(0).integers(0, 2**16, len(a[1]))

    def permute(x, y, selector):
        octets, found = (y << 32 | x).to_bytes(8, "little"), []
        for place in range(4):
            chosen = selector >> 4 * place & 15
            octet = octets[chosen & 7]
            found.append((255 if octet & 128 else 0) if chosen & 8 else octet)
        return int.from_bytes(found, "little")

    got = evaluate("prmt.b32 {d}, {a}, {b}, {c};", "b32", a, b, ("u32", selectors))
    assert got.tolist() == [permute(x, y, int(s)) for x, y, s in zip(a[1], b[1], selectors, strict=True)]


@pytest.mark.parametrize("table", [0x96, 0xE8, 0x01, 0xCA])
def test_three_operands(table):
    a, b = pairs("b32")
    c = ("b32", a[1][::-1])

    def look_up(x, y, z):
        return sum((table >> ((x >> i & 1) << 2 | (y >> i & 1) << 1 | (z >> i & 1)) & 1) << i for i in range(32))

    got = evaluate(f"lop3.b32 {{d}}, {{a}}, {{b}}, {{c}}, {table:#x};", "b32", a, b, c)
    assert got.tolist() == [look_up(x, y, z) for x, y, z in zip(a[1], b[1], c[1], strict=True)]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_fields(kind):
    size = np.iinfo(DTYPES[kind]).bits
    places = [0, 1, 7, size - 1, size, 200, 255]
    a, b, c = zip(*itertools.product(integers(kind, more=5), places, places), strict=True)

    def extract(x, begin, length):  # as the PTX manual has it
        bits = x % (1 << size)
        end = min(begin + length - 1, size - 1)
        sign = bits >> end & 1 if kind[0] == "s" and length else 0
        found = 0
        for i in range(size):
            found |= (bits >> (begin + i) & 1 if i < length and begin + i < size else sign) << i
        return wrap(found, kind)

    got = evaluate(f"bfe.{kind} {{d}}, {{a}}, {{b}}, {{c}};", kind, (kind, a), ("u32", b), ("u32", c))
    assert got.tolist() == [extract(*numbers) for numbers in zip(a, b, c, strict=True)]

    def insert(x, y, begin, length):
        for i in range(length):
            if begin + i < size:
                y = y & ~(1 << begin + i) | (x >> i & 1) << begin + i
        return wrap(y, kind)

    other = a[::-1]
    operands = ((kind, a), (kind, other), ("u32", b), ("u32", c))
    got = evaluate(f"bfi.b{size} {{d}}, {{a}}, {{b}}, {{c}}, {{e}};", kind, *operands)
    assert got.tolist() == [insert(*numbers) for numbers in zip(a, other, b, c, strict=True)]


@pytest.mark.parametrize("size", [32, 64])
def test_counts(size):
    kind = f"b{size}"
    a = (kind, [*integers(kind), *(1 << i for i in range(size))])
    expected = {
        "popc": [x.bit_count() for x in a[1]],
        "clz": [size - x.bit_length() for x in a[1]],
    }
    for name, want in expected.items():
        assert evaluate(f"{name}.{kind} {{d}}, {{a}};", "u32", a).tolist() == want
    got = evaluate(f"brev.{kind} {{d}}, {{a}};", kind, a)
    assert got.tolist() == [int(f"{x:0{size}b}"[::-1], 2) for x in a[1]]
    got = evaluate(f"bfind.u{size} {{d}}, {{a}};", "u32", (f"u{size}", a[1]))
    assert got.tolist() == [(x.bit_length() - 1) % 2**32 for x in a[1]]
    s = integers(f"s{size}")
    got = evaluate(f"bfind.shiftamt.s{size} {{d}}, {{a}};", "u32", (f"s{size}", s))
    lengths = [(~x if x < 0 else x).bit_length() for x in s]
    assert got.tolist() == [size - x if x else 2**32 - 1 for x in lengths]


# ---- floats ----


@pytest.mark.parametrize(
    ("name", "kind"), [*itertools.product(["add", "sub", "mul"], ["f16", "f32", "f64"]), ("div", "f32"), ("div", "f64")]
)
def test_arithmetic(name, kind):
    a, b = float_pairs(kind)
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[name]
    with np.errstate(all="ignore"):
        assert_floats(evaluate(f"{name}.rn.{kind} {{d}}, {{a}}, {{b}};", kind, a, b), function(a[1], b[1]), kind)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_minimum_and_maximum(kind):
    a, b = float_pairs(kind)

    def extreme(x, y, greater):
        if np.isnan(x) or np.isnan(y):
            return y if np.isnan(x) else x
        if x == y == 0:
            return x if bool(np.signbit(x)) != greater else y
        return (max if greater else min)(x, y)

    for name, greater in (("min", False), ("max", True)):
        want = [extreme(x, y, greater) for x, y in zip(a[1], b[1], strict=True)]
        assert_floats(evaluate(f"{name}.{kind} {{d}}, {{a}}, {{b}};", kind, a, b), want, kind)
        propagating = np.where(np.isnan(a[1]) | np.isnan(b[1]), np.nan, want)
        got = evaluate(f"{name}.NaN.{kind} {{d}}, {{a}}, {{b}};", kind, a, b)
        np.testing.assert_array_equal(got, propagating)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_roots_and_reciprocals(kind):
    a = floats(kind, more=300)
    with np.errstate(all="ignore"):
        assert_floats(evaluate(f"sqrt.rn.{kind} {{d}}, {{a}};", kind, (kind, a)), np.sqrt(a), kind)
        assert_floats(evaluate(f"rcp.rn.{kind} {{d}}, {{a}};", kind, (kind, a)), a.dtype.type(1) / a, kind)
        if kind == "f32":
            for name, function in (("ex2", np.exp2), ("lg2", np.log2), ("rsqrt", lambda x: 1 / np.sqrt(x))):
                want = function(a.astype("f8")).astype("f4")
                assert_floats(evaluate(f"{name}.approx.f32 {{d}}, {{a}};", kind, (kind, a)), want, kind)
        else:
            got = evaluate("rcp.approx.ftz.f64 {d}, {a};", kind, (kind, a))
            finite = np.isfinite(a) & (np.abs(a) > 1e-300) & (np.abs(a) < 1e300)
            np.testing.assert_allclose(got[finite], 1 / a[finite], rtol=2.0**-19)
            assert not (got[finite].view("u8") & np.uint64(0xFFFFFFFF)).any()


def nearest(exact, kind):
    """The float that is nearest to a fraction, ties to even."""
    digits, least = {"f32": (24, -149), "f64": (53, -1074)}[kind]
    if exact == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(exact.numerator)) - math.log2(exact.denominator)) - digits - 1
    while abs(exact) >= Fraction(2) ** (exponent + digits):
        exponent += 1
    exponent = max(exponent, least)
    whole = round(exact / Fraction(2) ** exponent)
    try:
        return math.ldexp(whole, exponent)
    except OverflowError:
        return math.copysign(math.inf, whole)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_fma_rounds_once(kind):
    rng, dtype = np.random.default_rng(5), np.dtype(DTYPES[kind])
    digits = np.finfo(dtype).nmant
    n = 2000
    a, b = ((rng.integers(-(2 ** (digits + 1)), 2 ** (digits + 1), n)).astype(dtype) for _ in range(2))
    exact = [Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a, b, strict=True)]
    # Addends that cancel, that decide a tie, that are nothing beside the product, and any.
    c = np.array([float(x) for x in exact]).astype(dtype)
    c = np.where(rng.random(n) < 0.5, -c, c * dtype.type(2.0 ** -(digits + 30)))
    c = np.where(rng.random(n) < 0.2, rng.standard_normal(n).astype(dtype), c)
    scale = dtype.type(2.0 ** (-45 if kind == "f32" else -500))
    b[::3], c[::3] = b[::3] * scale, c[::3] * scale
    a[::3] *= scale
    c[::3] *= scale
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    got = evaluate(f"fma.rn.{kind} {{d}}, {{a}}, {{b}}, {{c}};", kind, (kind, a), (kind, b), (kind, c))
    want = np.array([nearest(x, kind) for x in exact]).astype(dtype)
    np.testing.assert_array_equal(got, want)
    with np.errstate(all="ignore"):
        assert (got != a * b + c).any()
    x, y = float_pairs(kind)
    z = (kind, y[1][::-1])
    with np.errstate(all="ignore"):
        product = x[1] * y[1]
        product = np.where(np.isfinite(x[1]) & np.isfinite(y[1]), np.nan_to_num(product), product)
        plain = product + z[1]
    got = evaluate(f"fma.rn.{kind} {{d}}, {{a}}, {{b}}, {{c}};", kind, x, y, z)
    special = ~np.isfinite(x[1]) | ~np.isfinite(y[1]) | ~np.isfinite(z[1])
    assert_floats(got[special], plain[special], kind)


def test_directed_rounding():
    """The result lies on the side that was asked for, and its neighbour on the other."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(2000).astype("f4") * np.float32(10.0) ** rng.integers(-4, 5, 2000) for _ in range(3))
    a, b, c = (x.astype("f4") for x in (a, b, c))
    fractions = [[Fraction(float(x)) for x in values] for values in (a, b, c)]
    operations = {
        "add": lambda x, y, z: x + y,
        "sub": lambda x, y, z: x - y,
        "mul": lambda x, y, z: x * y,
        "fma": lambda x, y, z: x * y + z,
    }
    for name, function in operations.items():
        exact = [function(*numbers) for numbers in zip(*fractions, strict=True)]
        for rounding in ("rz", "rm", "rp"):
            third = ", {c}" if name == "fma" else ""
            got = evaluate(
                f"{name}.{rounding}.f32 {{d}}, {{a}}, {{b}}{third};", "f32", ("f32", a), ("f32", b), ("f32", c)
            )
            for x, want in zip(got, exact, strict=True):
                up = rounding == "rp" or (rounding == "rz" and want < 0)
                found = Fraction(float(x))
                beyond = Fraction(float(np.nextafter(x, np.float32(-np.inf if up else np.inf))))
                assert beyond < want <= found if up else found <= want < beyond


def test_signs_of_floats():
    for kind in ("f32", "f64"):
        a, b = float_pairs(kind)
        words = f"u{a[1].itemsize}"
        for instruction, want in (
            (f"neg.{kind} {{d}}, {{a}};", -a[1]),
            (f"abs.{kind} {{d}}, {{a}};", np.abs(a[1])),
            (f"copysign.{kind} {{d}}, {{b}}, {{a}};", np.copysign(a[1], b[1])),
        ):
            got = evaluate(instruction, kind, a, b)
            np.testing.assert_array_equal(got.view(words), want.view(words))


def test_flushing_to_zero():
    tiny = np.array([1e-40, -1e-40, 1e-38, 2.0, -0.0, 1.2e-38], "f4")
    flushed = np.where(np.abs(tiny) < 2.0**-126, np.copysign(np.float32(0), tiny), tiny)
    one = ("f32", np.ones(6))
    assert_floats(evaluate("mul.rn.ftz.f32 {d}, {a}, {b};", "f32", ("f32", tiny), one), flushed, "f32")
    assert_floats(evaluate("mul.rn.f32 {d}, {a}, {b};", "f32", ("f32", tiny), one), tiny, "f32")
    half = ("f32", np.full(6, 0.75))
    got = evaluate("mul.rn.ftz.f32 {d}, {a}, {b};", "f32", ("f32", tiny), half)
    assert_floats(got, np.array([0.0, -0.0, 0.0, 1.5, -0.0, 0.0], "f4"), "f32")
    got = evaluate("setp.gt.ftz.f32 {d}, {a}, 0f00000000;", "pred", ("f32", tiny))
    assert got.tolist() == [0, 0, 0, 1, 0, 1]


def test_tests_of_floats():
    for kind in ("f32", "f64"):
        a = floats(kind)
        normal = np.isfinite(a) & (np.abs(a) >= np.finfo(a.dtype).smallest_normal)
        tests = {
            "finite": np.isfinite(a),
            "infinite": np.isinf(a),
            "number": ~np.isnan(a),
            "notanumber": np.isnan(a),
            "normal": normal,
            "subnormal": np.isfinite(a) & ~normal & (a != 0),
        }
        for name, want in tests.items():
            assert evaluate(f"testp.{name}.{kind} {{d}}, {{a}};", "pred", (kind, a)).tolist() == want.tolist()


# ---- comparisons, choices ----

ORDERED = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "b32", "u64", "s64", "f32", "f64"])
def test_comparisons(kind):
    a, b = float_pairs(kind) if kind[0] == "f" else pairs(kind)
    unordered = [x != x or y != y for x, y in zip(a[1], b[1], strict=True)]
    names = ORDERED if kind[0] != "b" else {name: ORDERED[name] for name in ("eq", "ne")}
    for name, compare in names.items():
        found = [bool(compare(x, y)) for x, y in zip(a[1], b[1], strict=True)]
        want = [x and not nan for x, nan in zip(found, unordered, strict=True)]
        assert evaluate(f"setp.{name}.{kind} {{d}}, {{a}}, {{b}};", "pred", a, b).tolist() == want
        if kind[0] == "f":
            want = [x or nan for x, nan in zip(found, unordered, strict=True)]
            assert evaluate(f"setp.{name}u.{kind} {{d}}, {{a}}, {{b}};", "pred", a, b).tolist() == want
    if kind[0] == "f":
        assert evaluate(f"setp.nan.{kind} {{d}}, {{a}}, {{b}};", "pred", a, b).tolist() == unordered
        assert evaluate(f"setp.num.{kind} {{d}}, {{a}}, {{b}};", "pred", a, b).tolist() == [not x for x in unordered]
    if kind[0] == "u":
        for name, other in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge")):
            want = [ORDERED[other](x, y) for x, y in zip(a[1], b[1], strict=True)]
            assert evaluate(f"setp.{name}.{kind} {{d}}, {{a}}, {{b}};", "pred", a, b).tolist() == want


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_comparisons_combined(name):
    a, b = pairs("s32")
    c = ("pred", np.random.default_rng(0).integers(0, 2, len(a[1])))
    combine = getattr(operator, name + "_" if name != "xor" else name)
    less, given = np.less(a[1], b[1]), c[1] != 0
    got = evaluate(f"setp.lt.{name}.s32 {{d}}, {{a}}, {{b}}, {{c}};", "pred", a, b, c)
    assert got.tolist() == combine(less, given).tolist()
    got = evaluate(f"setp.lt.{name}.s32 {{d}}, {{a}}, {{b}}, !{{c}};", "pred", a, b, c)
    assert got.tolist() == combine(less, ~given).tolist()
    got = evaluate(f"setp.lt.{name}.s32 %p7|{{d}}, {{a}}, {{b}}, {{c}};", "pred", a, b, c)
    assert got.tolist() == combine(~less, given).tolist()
    got = evaluate(f"{name}.pred {{d}}, {{a}}, {{b}};", "pred", ("pred", less), c)
    assert got.tolist() == combine(less, given).tolist()
    got = evaluate("not.pred {d}, {a};", "pred", c)
    assert got.tolist() == (~given).tolist()


def test_choices():
    a, b = float_pairs("f32")
    c = ("pred", np.random.default_rng(0).integers(0, 2, len(a[1])))
    got = evaluate("selp.f32 {d}, {a}, {b}, {c};", "f32", a, b, c)
    np.testing.assert_array_equal(got.view("u4"), np.where(c[1], a[1], b[1]).view("u4"))
    got = evaluate("selp.f32 {d}, {a}, 0f3FC00000, {b};", "f32", a, c)
    np.testing.assert_array_equal(got, np.where(c[1], a[1], np.float32(1.5)))
    got = evaluate("selp.f64 {d}, 0d3FF8000000000000, 0d0000000000000000, {a};", "f64", c)
    np.testing.assert_array_equal(got, np.where(c[1], 1.5, 0.0))
    got = evaluate("set.lt.u32.f32 {d}, {a}, {b};", "u32", a, b)
    np.testing.assert_array_equal(got, np.where(a[1] < b[1], 0xFFFFFFFF, 0))
    got = evaluate("set.lt.f32.f32 {d}, {a}, {b};", "f32", a, b)
    np.testing.assert_array_equal(got, np.where(a[1] < b[1], 1.0, 0.0))
    got = evaluate("slct.f32.s32 {d}, {a}, {b}, {c};", "f32", a, b, ("s32", c[1] - 1))
    np.testing.assert_array_equal(got, np.where(c[1], a[1], b[1]))


# ---- moves, conversions ----


def test_bits_are_moved_untouched():
    """Signalling NaNs, too: only what is computed becomes the canonical NaN."""
    words = np.random.default_rng(0).integers(0, 2**32, 500, np.uint32)
    words[:4] = 0x7F800001, 0xFF812345, 0x7FC00000, 0xFFFFFFFF
    for instruction in (
        "mov.f32 {d}, {a};",
        "mov.b32 {d}, {a};",
        "selp.f32 {d}, {a}, {a}, %p1;",
        "cvta.to.global.u64 %rd9, %a0; mov.b32 {d}, {a};",
    ):
        np.testing.assert_array_equal(evaluate(instruction, "b32", ("b32", words)), words)
    got = evaluate("add.rn.f32 {d}, {a}, 0f00000000;", "b32", ("b32", words[:4]))
    assert got.tolist() == [0x7FFFFFFF] * 4
    copied = evaluate("add.rn.f32 %f1, {a}, 0f00000000; mov.b32 {d}, %f1;", "b32", ("b32", words[:4]))
    assert copied.tolist() == [0x7FFFFFFF] * 4


def test_packing():
    words = np.random.default_rng(0).integers(0, 2**64, 100, np.uint64)
    low, high = words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)
    got = evaluate("mov.b64 {{%r1, %r2}}, {a}; mov.b32 {d}, %r2;", "b32", ("b64", words))
    np.testing.assert_array_equal(got, high)
    got = evaluate("mov.b64 {{%r1, _}}, {a}; mov.b32 {d}, %r1;", "b32", ("b64", words))
    np.testing.assert_array_equal(got, low)
    got = evaluate("mov.b64 {{%r1, %r2}}, {a}; mov.b64 {d}, {{%r2, %r1}};", "b64", ("b64", words))
    np.testing.assert_array_equal(got, low << np.uint64(32) | high)
    small = low.astype("u4")
    got = evaluate("mov.b32 {{%h1, %h2}}, {a}; mov.b32 {d}, {{%h2, %h1}};", "b32", ("b32", small))
    np.testing.assert_array_equal(got, small >> 16 | small << 16)
    got = evaluate("mov.b64 {{%h1, %h2, %h3, %h4}}, {a}; mov.b16 {d}, %h3;", "b16", ("b64", words))
    np.testing.assert_array_equal(got, (words >> np.uint64(32)).astype("u2"))


INTEGER_TYPES = [f"{kind}{size}" for kind in "us" for size in (8, 16, 32, 64)]


@pytest.mark.parametrize("of", INTEGER_TYPES)
def test_integers_to_integers(of):
    values = integers(of)
    for to in INTEGER_TYPES:
        if to != of:
            got = evaluate(f"cvt.{to}.{of} {{d}}, {{a}};", to, (of, values))
            assert got.tolist() == [wrap(x, to) for x in values]
        info = np.iinfo(DTYPES[to])
        got = evaluate(f"cvt.sat.{to}.{of} {{d}}, {{a}};", to, (of, values))
        assert got.tolist() == [min(max(x, info.min), info.max) for x in values]


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_integers_and_floats(kind):
    values = integers(kind)
    for to in ("f32", "f64"):
        got = evaluate(f"cvt.rn.{to}.{kind} {{d}}, {{a}};", to, (kind, values))
        np.testing.assert_array_equal(got, np.array([nearest(Fraction(x), to) for x in values], DTYPES[to]))
    info = np.iinfo(DTYPES[kind])
    wholes = {"rzi": math.trunc, "rni": round, "rmi": math.floor, "rpi": math.ceil}
    for of in ("f16", "f32", "f64"):
        numbers = floats(of)
        edges = np.array([0.5, 1.5, 2.5, -0.5, -1.5, info.max, info.min, info.max / 2, 2.0 * info.max, 300.7, -300.2])
        with np.errstate(over="ignore"):
            numbers = np.concatenate([numbers, edges.astype(numbers.dtype)])
        for rounding, whole in wholes.items():
            want = []
            for x in numbers.tolist():
                if math.isnan(x):
                    odd = 1 << info.bits - 1 if of == "f64" or info.bits == 64 else 0
                    want.append(wrap(odd, kind))
                elif math.isinf(x):
                    want.append(info.max if x > 0 else info.min)
                else:
                    want.append(min(max(whole(x), info.min), info.max))
            assert evaluate(f"cvt.{rounding}.{kind}.{of} {{d}}, {{a}};", kind, (of, numbers)).tolist() == want


def test_floats_to_floats():
    with np.errstate(all="ignore"):
        for of, to in itertools.product(("f16", "f32", "f64"), repeat=2):
            a = floats(of, more=500)
            if of != to:
                rounding = "rn." if DTYPES[of][1] > DTYPES[to][1] else ""
                want = a.astype(DTYPES[to])
                assert_floats(evaluate(f"cvt.{rounding}{to}.{of} {{d}}, {{a}};", to, (of, a)), want, to)
            else:
                for name, whole in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
                    assert_floats(evaluate(f"cvt.{name}.{to}.{of} {{d}}, {{a}};", to, (of, a)), whole(a), to)
        a = floats("f64", more=500)
        for rounding in ("rz", "rm", "rp"):
            got = evaluate(f"cvt.{rounding}.f32.f64 {{d}}, {{a}};", "f32", ("f64", a)).astype("f8")
            finite = np.isfinite(a) & (np.abs(a) < 1e38) & (np.abs(a) > 1e-37)
            right = {"rz": np.abs(got) <= np.abs(a), "rm": got <= a, "rp": got >= a}[rounding]
            assert right[finite].all()
            assert (np.abs(got - a) < np.spacing(np.abs(got).astype("f4")))[finite].all()
        a = floats("f32", more=500)
        got = evaluate("cvt.sat.f32.f32 {d}, {a};", "f32", ("f32", a))
        np.testing.assert_array_equal(got, np.where(np.isnan(a), 0, np.clip(a, 0, 1)))


def test_bfloat16():
    a = floats("f32", more=2000)
    with np.errstate(all="ignore"):
        want = np.where(np.isnan(a), 0x7FFF, a.astype(ml_dtypes.bfloat16).view("u2"))
    got = evaluate("cvt.rn.bf16.f32 {d}, {a};", "bf16", ("f32", a))
    np.testing.assert_array_equal(got, want)
    back = evaluate("cvt.f32.bf16 {d}, {a};", "f32", ("bf16", got))
    assert_floats(back, (want.astype("u4") << 16).view("f4"), "f32")
    both = evaluate("cvt.rn.bf16x2.f32 {d}, {a}, {b};", "bf16x2", ("f32", a), ("f32", a[::-1]))
    np.testing.assert_array_equal(both, want.astype("u4") << 16 | want[::-1])
    with np.errstate(all="ignore"):
        half = np.where(np.isnan(a), 0x7FFF, a.astype("f2").view("u2")).astype("u4")
    both = evaluate("cvt.rn.f16x2.f32 {d}, {a}, {b};", "f16x2", ("f32", a), ("f32", a[::-1]))
    np.testing.assert_array_equal(both, half << 16 | half[::-1])


# ---- control ----


def test_divergent_branches_and_loops():
    """Each thread runs the Collatz sequence of its number; half of the threads return early."""
    steps = aligned(np.zeros(200, "u4"))
    launch(
        """
        setp.ge.u32 %p1, %i, 100;
        @%p1 ret;
        add.u32 %r1, %i, 1;  mov.u32 %r2, 0;
        loop:
        setp.eq.u32 %p1, %r1, 1;
        @%p1 bra done;
        add.u32 %r2, %r2, 1;
        and.b32 %r3, %r1, 1;
        setp.eq.u32 %p2, %r3, 0;
        @%p2 bra even;
        mad.lo.u32 %r1, %r1, 3, 1;
        bra.uni loop;
        even:
        shr.u32 %r1, %r1, 1;
        bra loop;
        done:
        mad.wide.u32 %rd1, %i, 4, %a0;
        st.global.u32 [%rd1], %r2;
        """,
        [steps],
        grid=4,
        block=50,
    )

    def collatz(n):
        count = 0
        while n != 1:
            n, count = (n // 2 if n % 2 == 0 else 3 * n + 1), count + 1
        return count

    assert steps.tolist() == [collatz(i + 1) for i in range(100)] + [0] * 100


def test_branch_by_index():
    out = aligned(np.zeros(64, "u4"))
    launch(
        """
        rem.u32 %r1, %i, 3;
        brx.idx %r1, targets;
        targets: .branchtargets zero, one,
            two;
        zero: mov.u32 %r2, 7; bra end;
        one: mov.u32 %r2, 8; bra end;
        two: mov.u32 %r2, 9;
        end: mad.wide.u32 %rd1, %i, 4, %a0;  st.global.u32 [%rd1], %r2;
        """,
        [out],
        block=64,
    )
    assert out.tolist() == [7 + i % 3 for i in range(64)]


def test_guards():
    out = aligned(np.zeros(64, "u4"))
    launch(
        """
        and.b32 %r1, %i, 1;  setp.eq.u32 %p1, %r1, 1;
        mov.u32 %r2, 5;
        @%p1 mov.u32 %r2, 6;
        @!%p1 add.u32 %r2, %r2, %i;
        mad.wide.u32 %rd1, %i, 4, %a0;
        setp.lt.u32 %p2, %i, 60;
        @%p2 st.global.u32 [%rd1], %r2;
        """,
        [out],
        block=64,
    )
    assert out.tolist() == [6 if i % 2 else 5 + i for i in range(60)] + [0] * 4


def test_scopes_and_functions():
    """A register declared again in braces is another; functions are called with memory for parameters."""
    out = aligned(np.zeros(32, "f8"))
    function = """
    .func (.param .b64 result) twice(.param .b64 x) {
        .reg .f64 %d<3>;  .reg .pred %p<2>;
        ld.param.f64 %d1, [x];
        setp.lt.f64 %p1, %d1, 0d4024000000000000;
        @%p1 bra small;
        st.param.f64 [result], %d1;
        ret;
        small: add.f64 %d2, %d1, %d1;  st.param.f64 [result+0], %d2;
        ret;
    }
    """
    call = """
    { .reg .b32 t; .param .b64 x; .param .b64 y;
      st.param.f64 [x+0], %d1;
      call.uni (y), twice, (x);
      ld.param.f64 %d1, [y+0]; }
    """
    launch(
        f"""
        cvt.rn.f64.u32 %d1, %i;
        {{ .reg .f64 %d1; mov.f64 %d1, 0d0000000000000000; }}
        {call} {call}
        mad.wide.u32 %rd1, %i, 8, %a0;  st.global.f64 [%rd1], %d1;
        """,
        [out],
        extra=function,
    )
    twice = [x if x >= 10 else 2 * x for x in range(32)]
    assert out.tolist() == [x if x >= 10 else 2 * x for x in twice]


def test_special_registers():
    out = aligned(np.zeros((3 * 40, 6), "u4"))
    launch(
        """
        mad.wide.u32 %rd1, %i, 24, %a0;
        mov.u32 %r1, %tid.x;  mov.u32 %r2, %ctaid.x;  mov.u32 %r3, %laneid;
        st.global.v2.u32 [%rd1], {%r1, %r2};
        mov.u32 %r4, %warpid;  mov.u32 %r5, %nctaid.x;  mov.u32 %r6, %tid.y;  add.u32 %r6, %r6, %ntid.z;
        st.global.u32 [%rd1+8], %r3;  st.global.u32 [%rd1+12], %r4;
        st.global.v2.u32 [%rd1+16], {%r5, %r6};
        """,
        [out],
        grid=3,
        block=40,
    )
    assert out.tolist() == [[t, b, t % 32, t // 32, 3, 1] for b in range(3) for t in range(40)]


@pytest.mark.parametrize(
    "statement", ["frobnicate.u32 %r1, %r2;", "call (%r1), elsewhere, (%r2);", "mov.u32 %r1, %clock;"]
)
def test_what_is_unknown_is_named(statement):
    with pytest.raises(NotImplementedError, match=r"test.*(frobnicate|elsewhere|clock)"):
        launch(statement)


# ---- memory ----


@pytest.mark.parametrize(
    ("kind", "count"), [("u8", 1), ("b8", 4), ("s16", 1), ("b16", 4), ("f32", 4), ("f64", 2), ("u64", 2)]
)
def test_vectors(kind, count):
    rng, dtype = np.random.default_rng(0), np.dtype(DTYPES[kind])
    data = aligned(rng.integers(0, 256, 100 * count * dtype.itemsize, np.uint8))
    out = aligned(np.zeros_like(data))
    size = count * dtype.itemsize
    names = ", ".join(f"%{ {1: 'h', 2: 'h', 4: 'r', 8: 'rd'}[dtype.itemsize] }{10 + i}" for i in range(count))
    names = f"{{{names}}}" if count > 1 else names
    vector = f".v{count}" if count > 1 else ""
    memory = launch(
        f"""
        mad.wide.u32 %rd1, %i, {size}, %a0;  mad.wide.u32 %rd2, %i, {-size}, %a1;
        ld.global.nc{vector}.{kind} {names}, [%rd1];
        mul.wide.u32 %rd3, %i, {size};  add.s64 %rd3, %rd3, %a1;
        st.global{vector}.{kind} [%rd3+0], {names};
        """,
        [data, out],
        grid=2,
        block=50,
    )
    np.testing.assert_array_equal(out, data)
    assert memory.statistics == {("ld", size): 100, ("st", size): 100}


def test_narrow_loads_fill_wide_registers():
    data, out = aligned(np.arange(-16, 16, dtype="i1")), aligned(np.zeros(32, "i4"))
    body = """
        cvt.u64.u32 %rd1, %i;  add.u64 %rd1, %rd1, %a0;  ld.global.{} %r1, [%rd1];
        mad.wide.u32 %rd2, %i, 4, %a1;  st.global.u32 [%rd2], %r1;
        """
    launch(body.format("s8"), [data, out])
    np.testing.assert_array_equal(out, data)
    launch(body.format("u8"), [data, out])
    np.testing.assert_array_equal(out, data.view("u1"))


def test_gathered_and_scattered_accesses():
    rng = np.random.default_rng(0)
    index, data = aligned(rng.permutation(1000).astype("u4")), aligned(rng.standard_normal(1000))
    out = aligned(np.zeros(1000))
    launch(
        """
        mad.wide.u32 %rd1, %i, 4, %a0;  ld.global.u32 %r1, [%rd1];
        mad.wide.u32 %rd2, %r1, 8, %a1;  ld.global.f64 %d1, [%rd2];
        mad.wide.u32 %rd3, %r1, 8, %a2;  st.global.f64 [%rd3], %d1;
        """,
        [index, data, out],
        grid=10,
        block=100,
    )
    np.testing.assert_array_equal(out, data)


def test_accesses_to_several_arrays():
    a, b, out = aligned(np.arange(64.0)), aligned(-np.arange(64.0)), aligned(np.zeros(64))
    launch(
        """
        and.b32 %r1, %i, 1;  setp.eq.u32 %p1, %r1, 0;
        selp.b64 %rd1, %a0, %a1, %p1;  mad.wide.u32 %rd1, %i, 8, %rd1;
        mad.wide.u32 %rd2, %i, 8, %a2;
        ld.f64 %d1, [%rd1];  st.f64 [%rd2], %d1;
        """,
        [a, b, out],
        block=64,
    )
    assert out.tolist() == [-i if i % 2 else i for i in range(64)]


def test_parameters():
    """Parameters at offsets, and one that is indexed through its address."""
    text = f"""{HEADER}
    .visible .entry test(.param .align 8 .b8 words[3968], .param .u64 .ptr .global .align 16 out, .param .f32 factor)
    {{
        .reg .b32 %r<9>;  .reg .b64 %rd<9>;  .reg .f32 %f<9>;
        ld.param.u64 %rd1, [out];  ld.param.f32 %f1, [factor];
        mov.u32 %r1, %tid.x;  mul.wide.u32 %rd2, %r1, 8;
        mov.b64 %rd3, words;  add.s64 %rd4, %rd3, %rd2;
        ld.param.u32 %r2, [%rd4+128];
        ld.param.v2.u32 {{%r3, %r4}}, [words+16];
        add.u32 %r2, %r2, %r4;
        cvt.rn.f32.u32 %f2, %r2;  mul.rn.f32 %f2, %f2, %f1;
        mul.wide.u32 %rd2, %r1, 4;  add.s64 %rd5, %rd1, %rd2;  st.global.f32 [%rd5], %f2;
        ret;
    }}"""
    kernel = Module(text).kernels["test"]
    assert [(p.name, p.kind, p.nbytes) for p in kernel.params] == [
        ("words", "b8", 3968),
        ("out", "u64", 8),
        ("factor", "f32", 4),
    ]
    words, out, memory = np.arange(3968 // 4, dtype="u4"), aligned(np.zeros(64, "f4")), Memory()
    memory.add_array(out, "out")
    params = [words.tobytes(), struct.pack("Q", out.ctypes.data), struct.pack("f", 0.5)]
    kernel.launch(1, 64, params, memory)
    assert out.tolist() == [(2 * i + 32 + 5) * 0.5 for i in range(64)]
    with pytest.raises(LaunchError, match="factor has 4 bytes, not 8"):
        kernel.launch(1, 64, [*params[:2], bytes(8)], memory)


def test_variables_of_the_module():
    extra = """
    .const .align 4 .b32 table[4] = {3, 5, 0x10, 4294967295};
    .global .align 8 .f64 scale = 0d4000000000000000;
    .global .align 8 .u64 where[2] = {generic(table), scale};
    .global .align 4 .u32 counter;
    """
    out = aligned(np.zeros(4, "f8"))
    body = """
        mov.u64 %rd1, table;  mul.wide.u32 %rd2, %i, 4;  add.u64 %rd1, %rd1, %rd2;
        ld.const.u32 %r1, [%rd1];  ld.global.f64 %d1, [scale];
        ld.global.u64 %rd3, [where];  ld.const.u32 %r2, [table];  ld.u32 %r3, [%rd3+4];
        add.u32 %r1, %r1, %r3;
        cvt.rn.f64.u32 %d2, %r1;  mul.rn.f64 %d2, %d2, %d1;
        mad.wide.u32 %rd4, %i, 8, %a0;  st.global.f64 [%rd4], %d2;
        red.global.add.u32 [counter], 1;
        """
    launch(body, [out], block=4, extra=extra)
    assert out.tolist() == [16.0, 20.0, 42.0, 8.0]
    with pytest.raises(LaunchError, match=r"read-only.*'table'"):
        launch("mov.u32 %r1, 1; setp.eq.u32 %p1, %i, 0; @%p1 st.global.u32 [table], %r1;", extra=extra)


def test_local_memory():
    """Each thread has its own, by its own and by a generic address."""
    out = aligned(np.zeros(40, "u4"))
    launch(
        """
        .local .align 16 .b8 depot[64];
        mov.u64 %rd1, depot;  cvta.local.u64 %rd2, %rd1;
        st.local.u32 [%rd1+4], %i;  add.u32 %r1, %i, 1;  st.u32 [%rd2+8], %r1;
        ld.local.v2.u32 {%r2, %r3}, [%rd1+8];  ld.u32 %r4, [%rd2+4];
        add.u32 %r5, %r2, %r4;  mad.wide.u32 %rd3, %i, 4, %a0;  st.global.u32 [%rd3], %r5;
        """,
        [out],
        block=40,
    )
    assert out.tolist() == [2 * i + 1 for i in range(40)]
    with pytest.raises(LaunchError, match="race"):
        launch(".local .align 4 .b8 depot[256]; st.local.u32 [depot], %i; setp.eq.u32 %p1, %i, 0;"
               "mov.u64 %rd1, depot; @%p1 ld.local.u32 %r1, [%rd1+256];")  # fmt: skip


def test_shared_memory_and_barriers():
    """Blocks reverse their parts; a thread that has returned is not waited for."""
    data, out = aligned(np.arange(256, dtype="u4")), aligned(np.zeros(256, "u4"))
    memory = launch(
        """
        .shared .align 4 .b8 part[256];
        setp.ge.u32 %p2, %r0, 64;  @%p2 ret;
        mov.u32 %r1, %ctaid.x;  mad.lo.u32 %i, %r1, 64, %r0;
        mad.wide.u32 %rd1, %i, 4, %a0;  ld.global.u32 %r1, [%rd1];
        mov.u64 %rd2, part;  mul.wide.u32 %rd3, %r0, 4;  add.u64 %rd3, %rd2, %rd3;
        setp.lt.u32 %p1, %r0, 20;
        @%p1 bra first;
        st.shared.u32 [%rd3], %r1;
        bar.sync 0;
        bra onward;
        first:
        st.shared.u32 [%rd3], %r1;
        barrier.sync 0;
        onward:
        sub.u32 %r2, 63, %r0;  mul.wide.u32 %rd3, %r2, 4;  add.u64 %rd3, %rd2, %rd3;
        ld.shared.u32 %r3, [%rd3];
        mad.wide.u32 %rd4, %i, 4, %a1;  st.global.u32 [%rd4], %r3;
        """,
        [data, out],
        grid=4,
        block=70,
    )
    np.testing.assert_array_equal(out.reshape(4, 64), data.reshape(4, 64)[:, ::-1])
    assert memory.statistics["st", 4] == 512


def test_deadlock():
    with pytest.raises(LaunchError, match="deadlock"):
        launch("setp.lt.u32 %p1, %i, 16; @%p1 bar.sync 1; @!%p1 bar.sync 2;")


# ---- atomics ----


def test_atomics():
    rng = np.random.default_rng(0)
    words = {"u32": "u4", "s32": "i4", "u64": "u8", "f32": "f4"}
    for kind, dtype in words.items():
        values = aligned(
            (rng.standard_normal(96) * 1000).astype(dtype) if kind != "u64" else rng.integers(0, 9**9, 96, "u8")
        )
        size, name = values.itemsize, "%rd9" if values.itemsize == 8 else "%r9"
        for operation in ("add", "min", "max", "exch"):
            if kind == "f32" and operation in ("min", "max"):
                continue
            total, before = aligned(values[:1]), aligned(np.zeros(96, dtype))
            launch(
                f"""
                mad.wide.u32 %rd1, %i, {size}, %a0;  ld.global.b{8 * size} {name}, [%rd1];
                atom.global.{operation}.{kind} {name}, [%a1], {name};
                mad.wide.u32 %rd2, %i, {size}, %a2;  st.global.b{8 * size} [%rd2], {name};
                """,
                [values, total, before],
                block=96,
            )
            states = [values[0]]
            with np.errstate(over="ignore"):
                for value in values:
                    function = {"add": np.add, "min": np.minimum, "max": np.maximum, "exch": lambda old, new: new}
                    states.append(function[operation](states[-1], value))
            assert before.tolist() == [x.item() for x in states[:-1]]
            assert total[0] == states[-1]


def test_compare_and_swap_and_reductions():
    lock, bits, count = aligned(np.zeros(1, "u4")), aligned(np.zeros(1, "u4")), aligned(np.zeros(8, "f4"))
    memory = launch(
        """
        add.u32 %r1, %i, 1;
        atom.global.cas.b32 %r2, [%a0], %i, %r1;
        shl.b32 %r3, 1, %i;  red.global.or.b32 [%a1], %r3;
        and.b32 %r4, %i, 7;  mad.wide.u32 %rd1, %r4, 4, %a2;
        red.global.add.f32 [%rd1], 0f3F000000;
        """,
        [lock, bits, count],
    )
    assert lock[0] == 32
    assert bits[0] == 0xFFFFFFFF
    assert count.tolist() == [2.0] * 8
    assert memory.statistics == {("atom", 4): 96}


# ---- warps ----


@pytest.mark.parametrize("block", [64, 48])
def test_shuffles(block):
    data, out, inside = (aligned(np.zeros(2 * block, "u4")) for _ in range(3))
    data[:] = np.arange(2 * block) + 100

    def expected(mode, by, clamp):
        values, valid = [], []
        for i in range(2 * block):
            lane = i % block % 32
            first, here = i - lane, min(32, block - (i % block - lane))
            segment, bound = clamp >> 8 & 31, clamp & 31
            highest = (lane & segment) | (bound & ~segment & 31)
            of = {
                "up": lane - by,
                "down": lane + by,
                "bfly": lane ^ by,
                "idx": (lane & segment) | (by & ~segment & 31),
            }[mode]
            good = of >= highest if mode == "up" else of <= highest
            of = of if good else lane
            values.append(data[first + of] if of < here else 0xA5A5A5A5)
            valid.append(good)
        return values, valid

    cases = [("down", 1, 31), ("down", 16, 31), ("up", 3, 0), ("bfly", 5, 31), ("idx", 7, 31), ("bfly", 4, 0x181F)]
    cases += [("down", 2, 0x181F), ("up", 2, 0x1800), ("idx", 9, 0x181F)]
    for mode, by, clamp in cases:
        launch(
            f"""
            mad.wide.u32 %rd1, %i, 4, %a0;  ld.global.u32 %r1, [%rd1];
            activemask.b32 %r5;
            shfl.sync.{mode}.b32 %r2|%p1, %r1, {by}, {clamp}, %r5;
            mad.wide.u32 %rd2, %i, 4, %a1;  st.global.u32 [%rd2], %r2;
            selp.u32 %r3, 1, 0, %p1;
            mad.wide.u32 %rd3, %i, 4, %a2;  st.global.u32 [%rd3], %r3;
            """,
            [data, out, inside],
            grid=2,
            block=block,
        )
        values, valid = expected(mode, by, clamp)
        assert out.tolist() == values
        assert inside.tolist() == valid


def test_a_warp_sums():
    data, out = aligned(np.random.default_rng(0).standard_normal(128).astype("f4")), aligned(np.zeros(4, "f4"))
    halves = "".join(
        f"shfl.sync.down.b32 %r1, %f1, {half}, 31, 0xffffffff; mov.b32 %f2, %r1; add.rn.f32 %f1, %f1, %f2;\n"
        for half in (16, 8, 4, 2, 1)
    )
    launch(
        f"""
        mad.wide.u32 %rd1, %i, 4, %a0;  ld.global.f32 %f1, [%rd1];
        {halves}
        mov.u32 %r2, %laneid;  setp.ne.u32 %p1, %r2, 0;  @%p1 ret;
        shr.u32 %r3, %i, 5;  mad.wide.u32 %rd2, %r3, 4, %a1;  st.global.f32 [%rd2], %f1;
        """,
        [data, out],
        block=128,
    )
    sums = data.reshape(4, 32)
    while sums.shape[1] > 1:
        sums = sums[:, : sums.shape[1] // 2] + sums[:, sums.shape[1] // 2 :]
    assert out.tolist() == sums[:, 0].tolist()


def test_votes_and_reductions():
    values = np.random.default_rng(0).integers(-(2**31), 2**31, 64).astype("i4")
    data, out = aligned(values), aligned(np.zeros((8, 64), "i4"))
    names = ["redux.sync.add.s32", "redux.sync.min.s32", "redux.sync.max.s32", "redux.sync.xor.b32"]
    stores = "".join(
        f"{name} %r3, %r1, 0xffffffff; add.u32 %r4, %i, {64 * (k + 4)};"
        "mad.wide.u32 %rd2, %r4, 4, %a1; st.u32 [%rd2], %r3;"
        for k, name in enumerate(names)
    )
    launch(
        f"""
        mad.wide.u32 %rd1, %i, 4, %a0;  ld.global.s32 %r1, [%rd1];
        setp.gt.s32 %p1, %r1, 0;
        vote.sync.ballot.b32 %r2, %p1, 0xffffffff;
        mad.wide.u32 %rd3, %i, 4, %a1;  st.u32 [%rd3], %r2;
        vote.sync.any.pred %p2, %p1, 0xffffffff;  selp.u32 %r2, 1, 0, %p2;  st.u32 [%rd3+256], %r2;
        vote.sync.all.pred %p2, !%p1, 0xffffffff;  selp.u32 %r2, 1, 0, %p2;  st.u32 [%rd3+512], %r2;
        and.b32 %r5, %i, 3;  setp.lt.u32 %p3, %r5, 4;
        vote.sync.all.pred %p2, %p3, 0xffffffff;  selp.u32 %r2, 1, 0, %p2;  st.u32 [%rd3+768], %r2;
        {stores}
        """,
        [data, out],
        block=64,
    )
    warps = values.reshape(2, 32)
    ballots = [sum(1 << int(i) for i in np.flatnonzero(warp > 0)) for warp in warps]
    np.testing.assert_array_equal(out[0].view("u4"), np.repeat(ballots, 32))
    assert out[1].all()
    assert not out[2].any()
    assert out[3].all()
    for row, function in zip(out[4:], (np.add, np.minimum, np.maximum, np.bitwise_xor), strict=True):
        np.testing.assert_array_equal(row, np.repeat(function.reduce(warps, axis=1, dtype="i4"), 32))


def test_threads_that_a_mask_names_must_be_there():
    body = """
        setp.lt.u32 %p1, %i, 16;  @%p1 bra end;
        shfl.sync.idx.b32 %r1, %i, 0, 31, {};
        end: bar.sync 0;
        """
    with pytest.raises(LaunchError, match=r"elsewhere.*shfl"):
        launch(body.format("0xffffffff"))
    with pytest.raises(LaunchError, match=r"does not name.*shfl"):
        launch(body.format("0xff000000"))
    launch(body.format("0xffff0000"))


def test_threads_wait_for_those_that_a_mask_names():
    """Those that come by a later part of the code are behind in the interpreter; others have ended."""
    out = aligned(np.zeros(32, "u4"))
    launch(
        """
        mad.wide.u32 %rd1, %i, 4, %a0;
        mov.u32 %r2, %i;
        setp.ge.u32 %p2, %i, 24;  @%p2 bra end;
        setp.ge.u32 %p1, %i, 16;  @%p1 bra far;
        near: shfl.sync.idx.b32 %r1, %r2, 20, 31, 0xffffffff;
        st.global.u32 [%rd1], %r1;
        end: ret;
        far: add.u32 %r2, %i, 100;  bra near;
        """,
        [out],
    )
    np.testing.assert_array_equal(out, [120] * 24 + [0] * 8)


# ---- what a kernel must not do ----


def error_of(body, *arrays, **options):
    with pytest.raises(LaunchError) as caught:
        launch(body, list(arrays), **options)
    return str(caught.value)


ADDRESS = "mad.wide.u32 %rd1, %i, {}, %a0;"


def test_accesses_out_of_bounds():
    data = aligned(np.zeros(1000, "f4"))
    for access, statement in (("load", "ld.global.f32 %f1, [%rd1];"), ("store", "st.global.f32 [%rd1], 0f00000000;")):
        text = error_of(ADDRESS.format(4) + statement, data[:31])
        assert f"test: {access} out of bounds: 4 bytes at {data.ctypes.data + 124:#x}" in text
        assert "offset 124 of region 'array 0' of 124 bytes; thread 31 (block 0, thread 31 of it)" in text
        assert statement.rstrip(";") in text
        text = error_of(ADDRESS.format(-4) + statement, data[8:40], block=64)
        assert "thread 1 " in text or "below every region" in text
        assert f"{access} out" in error_of(ADDRESS.format(64) + statement, data[:32])
        launch(ADDRESS.format(4) + statement, [data[:32]])
    # A vector that begins inside, and ends outside.
    text = error_of(ADDRESS.format(16) + "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];", data[:126])
    assert "offset 496 of region" in text
    # Nothing is stored where a thread of the same instruction fails.
    data[:] = 1
    error_of(ADDRESS.format(4) + "st.global.f32 [%rd1], 0f00000000;", data[:31])
    assert data.all()


def test_an_access_must_not_reach_into_the_next_region():
    """Regions that touch each other: 16 bytes across the boundary are in neither."""
    data, memory = aligned(np.zeros(8, "f4")), Memory()
    memory.add(data.ctypes.data, 8, "left")
    memory.add(data.ctypes.data + 8, 24, "right")
    body = "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];"
    kernel = kernel_of("mov.u64 %rd1, %a0;" + body, [data])
    with pytest.raises(LaunchError, match=r"out of bounds: 16 bytes.*'left'"):
        kernel.launch(1, 1, [struct.pack("Q", data.ctypes.data)], memory)
    with pytest.raises(ValueError, match="'middle' overlaps 'right'"):
        memory.add(data.ctypes.data + 16, 4, "middle")


@pytest.mark.parametrize("shift", [1, 2, 4, 8])
def test_misaligned_accesses(shift):
    """A vector is aligned to all its bytes, not only to its elements."""
    data = aligned(np.zeros(1024, "u1"))
    statements = {
        16: "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd1];",
        8: "st.global.v4.u16 [%rd1], {%h1, %h1, %h1, %h1};",
        4: "ld.global.u32 %r1, [%rd1];",
        2: "st.global.u16 [%rd1], 0;",
    }
    for size, statement in statements.items():
        body = f"mad.wide.u32 %rd1, %i, {size}, %a0; " + statement
        if shift % size:
            text = error_of(body, data[shift:])
            assert "misaligned" in text
            assert f"{size} bytes at {data.ctypes.data + shift:#x}" in text
            # and of one thread alone
            one = f"mad.wide.u32 %rd1, %i, {size}, %a0; setp.eq.u32 %p1, %i, 7; @%p1 add.u64 %rd1, %rd1, {shift};"
            assert "thread 7 " in error_of(one + statement, data)
        else:
            launch(body, [data[shift:]])


RACES = {
    "store where another thread has a store": "and.b32 %r1, %i, 30; mad.wide.u32 %rd1, %r1, 4, %a0; st.u32 [%rd1], %i;",
    "load where another thread has a store": """
        mad.wide.u32 %rd1, %i, 4, %a0; st.u32 [%rd1], %i;
        xor.b32 %r1, %i, 1; mad.wide.u32 %rd1, %r1, 4, %a0; ld.u32 %r2, [%rd1];""",
    "store where another thread has a load": """
        mad.wide.u32 %rd1, %i, 4, %a0; ld.u32 %r2, [%rd1];
        xor.b32 %r1, %i, 1; mad.wide.u32 %rd1, %r1, 4, %a0; st.u32 [%rd1], %i;""",
    "store where another thread has an atomic": """
        mad.wide.u32 %rd1, %i, 4, %a0; red.global.add.u32 [%rd1], 1;
        xor.b32 %r1, %i, 1; mad.wide.u32 %rd1, %r1, 4, %a0; st.u32 [%rd1], %i;""",
    "load where another thread has an atomic": """
        mad.wide.u32 %rd1, %i, 4, %a0; red.global.add.u32 [%rd1], 1;
        xor.b32 %r1, %i, 1; mad.wide.u32 %rd1, %r1, 4, %a0; ld.u32 %r2, [%rd1];""",
    "atomic where another thread has a load": "ld.u32 %r1, [%a0]; red.global.add.u32 [%a0], 1;",
    "atomic where another thread has a store": """
        setp.eq.u32 %p1, %i, 3; @%p1 st.u32 [%a0], %i; red.global.add.u32 [%a0], 1;""",
}


@pytest.mark.parametrize("race", RACES)
def test_races(race):
    data = aligned(np.zeros(32, "u4"))
    text = error_of(RACES[race], data)
    assert f"race: {race}" in text
    assert "'array 0'" in text
    launch(RACES[race], [data], hogwild=("array 0",))
    assert "race" in error_of(RACES[race], data, hogwild=("array 1",))


def test_races_across_a_barrier_and_of_other_sizes():
    """A byte of a vector that another thread stored; barriers do not change that."""
    data = aligned(np.zeros(64, "u4"))
    text = error_of(
        """
        mad.wide.u32 %rd1, %i, 4, %a0; st.u32 [%rd1], %i;
        bar.sync 0;
        and.b32 %r1, %i, 7; mad.wide.u32 %rd1, %r1, 16, %a0; ld.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];""",
        data,
    )
    assert "race: load where another thread has a store: 16 bytes" in text
    text = error_of(
        """
        mad.wide.u32 %rd1, %i, 8, %a0; ld.u64 %rd2, [%rd1];
        setp.eq.u32 %p1, %i, 9; @%p1 st.global.u8 [%rd1+9], 1;""",
        data,
    )
    assert "race: store where another thread has a load: 1 bytes" in text
    assert "offset 81" in text


def test_no_races():
    """A thread's own bytes again, neighbouring bytes, loads by many, and the next launch are none."""
    data, table, memory = aligned(np.zeros(64, "u1")), aligned(np.ones(16, "f4")), Memory()
    body = """
        ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%a1];  ld.global.f32 %f1, [%a1+4];
        cvt.u64.u32 %rd1, %i;  add.u64 %rd1, %rd1, %a0;
        ld.u8 %h1, [%rd1];  add.u16 %h1, %h1, 1;  st.u8 [%rd1], %h1;  ld.u8 %h2, [%rd1];  st.u8 [%rd1], %h2;
        """
    for array, name in ((data, "data"), (table, "table")):
        memory.add_array(array, name)
    kernel = kernel_of(body, [data, table])
    for _ in range(3):
        kernel.launch(2, 32, [struct.pack("Q", a.ctypes.data) for a in (data, table)], memory)
    assert (data == 3).all()


def test_read_only_memory():
    data = aligned(np.zeros(32, "u4"))
    for body in (ADDRESS.format(4) + "st.global.u32 [%rd1], 1;", "red.global.add.u32 [%a0], 1;"):
        assert "read-only memory" in error_of(body, data, readonly=(0,))
    launch(ADDRESS.format(4) + "ld.global.u32 %r1, [%rd1];", [data], readonly=(0,))
    assert not data.any()


def test_endless_loops(monkeypatch):
    monkeypatch.setattr("tests.ptx.interpreter.STEP_LIMIT", 1000)
    assert "loop forever" in error_of("again: bra again;")


# ---- compiled kernels ----


def compiled(function, signature):
    """The PTX of a Python function, by numba-cuda; no GPU is asked."""
    cuda = pytest.importorskip("numba.cuda", reason="numba-cuda is not installed")
    if getattr(cuda, "implementation", None) != "NVIDIA":
        pytest.skip("numba-cuda is not installed")
    text, _ = cuda.compile(function, signature, device=False, abi="numba", cc=(9, 0), output="ptx")
    (kernel,) = Module(text).kernels.values()
    return kernel


def run_compiled(kernel, arrays, grid, block):
    memory, params = Memory(), []
    for i, array in enumerate(arrays):
        memory.add_array(array, f"array {i}")
        fields = (0, 0, array.size, array.itemsize, array.ctypes.data, array.size, array.itemsize)
        params += [struct.pack("q", field) for field in fields]
    kernel.launch(grid, block, params, memory)


def test_pow_of_libdevice():
    numba = pytest.importorskip("numba")
    cuda = pytest.importorskip("numba.cuda")

    def power(x, y, out):
        i = cuda.grid(1)
        if i < out.size:
            out[i] = math.pow(x[i], y[i])

    array = numba.types.Array(numba.float64, 1, "C")
    kernel = compiled(power, (array, array, array))
    rng, n = np.random.default_rng(0), 1000
    x = np.abs(rng.standard_normal(n)) * 10.0 ** rng.integers(-5, 5, n)
    x = np.where(rng.random(n) < 0.4, rng.choice([0.9, 0.99, 0.999], n), x)
    y = np.where(rng.random(n) < 0.5, rng.integers(1, 5000, n), 20 * rng.standard_normal(n))
    x[:4], y[:4] = [0.0, 1.0, -2.0, 0.999], [0.5, 9.0, 3.0, 123456.0]
    x, y, out = aligned(x), aligned(y), aligned(np.zeros(n))
    run_compiled(kernel, [x, y, out], -(-n // 128), 128)
    with np.errstate(over="ignore"):
        want = np.power(x, y)
    finite = np.isfinite(want)
    assert np.abs(out.view("i8") - want.view("i8"))[finite].max() <= 2
    np.testing.assert_array_equal(out[~finite], want[~finite])
