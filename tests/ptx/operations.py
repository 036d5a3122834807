"""Semantics of PTX instructions: functions that build the step of a decoded instruction, by opcode."""

from collections.abc import Callable

import numpy as np

from . import numeric
from .memory import Elsewhere
from .numeric import BOOL, F32, F64, TYPES, U8, U32, U64, UNSIGNED, bits, flushed

OPERATIONS: dict[str, Callable] = {}
WAIT = -1  # where threads go that wait at a barrier
WARP = 32


def operation(*names: str) -> Callable:
    """Register a builder of steps for opcodes."""

    def register(build: Callable) -> Callable:
        OPERATIONS.update(dict.fromkeys(names, build))
        return build

    return register


def ignored(frame) -> None:
    """The step of an instruction that changes nothing here."""


# ---- arithmetic ----


def arithmetic(i, function: Callable) -> Callable:
    """The step of an operation on operands of the instruction's type; floats with what their modifiers ask for."""
    if i.dtype.kind != "f":
        if i.has("sat"):
            raise i.unsupported()
        return i.map(function)
    rounding = next((m for m in i.modifiers if m in ("rz", "rm", "rp")), None)
    if rounding is not None:
        exact = EXACT.get(function)
        if exact is None or i.dtype is not F32:
            raise i.unsupported()

        def function(*values):
            return numeric.narrowed(exact(*(value.astype(F64) for value in values)), F32, rounding)

    if i.has("ftz"):
        plain = function

        def function(*values):
            return flushed(plain(*map(flushed, values)))

    if i.has("sat"):
        unbounded = function

        def function(*values):
            return numeric.saturated(unbounded(*values))

    return i.map(function)


SIMPLE = {
    "add": np.add,
    "sub": np.subtract,
    "min": numeric.minimum,
    "max": numeric.maximum,
    "fma": numeric.fma,
}


# Operations of float32 in float64, without a rounding that a second one would show.
EXACT = {
    np.add: numeric.odd_sum,
    np.subtract: lambda a, b: numeric.odd_sum(a, -b),
    np.multiply: np.multiply,
    numeric.fma: lambda a, b, c: numeric.odd_sum(a * b, c),
}


@operation("add", "sub", "fma")
def _simple(i):
    if i.has("cc"):
        return _with_carry(i)
    if i.type in ("f16x2", "bf16x2", "bf16"):
        raise i.unsupported()
    return arithmetic(i, SIMPLE[i.name])


@operation("min", "max")
def _extremes(i):
    if i.type in ("f16x2", "bf16x2", "bf16") or i.has("xorsign", "relu"):
        raise i.unsupported()
    if i.has("NaN"):
        return arithmetic(i, np.minimum if i.name == "min" else np.maximum)
    return arithmetic(i, SIMPLE[i.name])


@operation("mul", "mad")
def _multiply(i):
    if i.type in ("f16x2", "bf16x2", "bf16"):
        raise i.unsupported()
    if i.has("cc"):
        return _with_carry(i)
    if i.dtype.kind == "f":
        return arithmetic(i, np.multiply if i.name == "mul" else numeric.fma)
    a, b = i.source(1), i.source(2)
    result = i.dtype
    if i.has("wide"):
        product = numeric.multiply_wide
        result = TYPES[i.type[0] + str(16 * result.itemsize)]
    else:
        product = numeric.multiply_high if i.has("hi") else np.multiply
    if i.has("sat"):
        raise i.unsupported()
    if i.name == "mul":
        return i.map(product, a, b, dtype=result)
    return i.map(lambda x, y, z: product(x, y) + z, a, b, i.source(3, result), dtype=result)


@operation("addc", "subc", "madc")
def _with_carry(i):
    """Integer operations that set (`.cc`) or use the carry, which is a register, too."""
    kind = UNSIGNED[i.dtype.itemsize]
    write, write_carry = i.target(0, kind), i.target("%CC" if i.has("cc") else "_", BOOL)
    carried = i.read("%CC", BOOL) if i.name.endswith("c") else None
    product = numeric.multiply_high if i.has("hi") else np.multiply
    sources = [i.source(k) for k in range(1, len(i.operands))]
    subtract = i.name.startswith("sub")

    def step(frame):
        *factors, last = (source(frame) for source in sources)
        a, b = (product(*factors) if len(factors) == 2 else factors[0]).view(kind), last.view(kind)
        if subtract:
            result, carry = a - b, a < b
        else:
            result = a + b
            carry = result < a
        if carried is not None:
            one = carried(frame).astype(kind)
            before = result
            result = before - one if subtract else before + one
            carry = carry | (before < one if subtract else result < one)
        write(frame, result)
        write_carry(frame, carry)

    return step


@operation("mul24", "mad24")
def _multiply_24(i):
    if not i.has("lo"):
        raise i.unsupported()
    eight = i.dtype.type(8)

    def product(a, b):
        return (a << eight >> eight) * (b << eight >> eight)

    if i.name == "mul24":
        return i.map(product)
    return i.map(lambda a, b, c: product(a, b) + c)


@operation("sad")
def _sad(i):
    return i.map(lambda a, b, c: np.where(a < b, b - a, a - b) + c)


@operation("div", "rem")
def _divide(i):
    if i.dtype.kind == "f":
        return arithmetic(i, np.divide)  # .approx and .full, too, are rounded to nearest
    return i.map(numeric.divide if i.name == "div" else numeric.remainder)


def _sign_bit(dtype: np.dtype) -> np.integer:
    return UNSIGNED[dtype.itemsize].type(1 << (8 * dtype.itemsize - 1))


@operation("neg", "abs")
def _signs(i):
    """Change only the sign bit of floats, that of NaN as well."""
    if i.type in ("f16x2", "bf16x2", "bf16"):
        raise i.unsupported()
    if i.dtype.kind != "f":
        return i.map(np.negative if i.name == "neg" else np.abs)
    sign, words = _sign_bit(i.dtype), UNSIGNED[i.dtype.itemsize]
    change = np.bitwise_xor if i.name == "neg" else lambda a, b: a & ~b
    if i.has("ftz"):
        return i.map(lambda a: change(flushed(a).view(words), sign))
    return i.map(lambda a: change(a, sign), i.source(1, words))


@operation("copysign")
def _copysign(i):
    sign, words = _sign_bit(i.dtype), UNSIGNED[i.dtype.itemsize]
    return i.map(lambda a, b: (a & sign) | (b & ~sign), i.source(1, words), i.source(2, words))


@operation("testp")
def _testp(i):
    least = np.finfo(i.dtype).smallest_normal
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= least),
        "subnormal": lambda a: (np.abs(a) < least) & (a != 0),
    }
    return i.map(tests[i.modifiers[0]], i.source(1), dtype=BOOL)


def _in_double(function: Callable) -> Callable:
    """A function worked out in float64: of float32, almost always the nearest number."""
    return lambda a: function(a.astype(F64)).astype(a.dtype)


UNARY = {
    "sqrt": np.sqrt,
    "rcp": lambda a: a.dtype.type(1) / a,
    "rsqrt": _in_double(lambda a: 1.0 / np.sqrt(a)),
    "ex2": _in_double(np.exp2),
    "lg2": _in_double(np.log2),
    "sin": _in_double(np.sin),
    "cos": _in_double(np.cos),
    "tanh": _in_double(np.tanh),
}


@operation(*UNARY)
def _unary(i):
    """Functions of one float. Those of `.approx` are as exact as they come, which their bounds allow."""
    function = UNARY[i.name]
    if i.dtype is F64 and i.has("approx"):  # only the upper half of the operand counts, and only that of the result is
        upper = np.uint64(0xFFFFFFFF00000000)

        def halved(words):
            return function((words & upper).view(F64)).view(U64) & upper

        return i.map(halved, i.source(1, U64))
    if i.type not in ("f32", "f64"):
        raise i.unsupported()
    return arithmetic(i, function)


# ---- comparisons and choices ----

COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
BOOLEANS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(i) -> Callable:
    """The function of two arrays that a `setp` or `set` names."""
    name = i.modifiers[0]
    if i.dtype.kind != "f":
        return COMPARISONS[UNSIGNED_NAMES.get(name, name)]
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name == "ne":  # ordered, unlike NumPy's
        return lambda a, b: (a < b) | (a > b)
    if name == "neu":
        return np.not_equal
    if len(name) == 3:
        ordered = COMPARISONS[name[:2]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    return COMPARISONS[name]


def compared(i) -> Callable:
    """A reader of the comparison's result, before it is combined with another predicate."""
    compare, a, b = comparison(i), i.source(1), i.source(2)
    if i.has("ftz"):
        return lambda frame: compare(flushed(a(frame)), flushed(b(frame)))
    return lambda frame: compare(a(frame), b(frame))


@operation("setp")
def _setp(i):
    first, _, second = i.operands[0].partition("|")
    write, found = i.target(first, BOOL), compared(i)
    combine = next((BOOLEANS[m] for m in i.modifiers if m in BOOLEANS), None)
    if combine is None and not second:
        return lambda frame: write(frame, found(frame))
    write_other = i.target(second or "_", BOOL)
    other = i.predicate(i.operands[3]) if combine is not None else None

    def step(frame):
        result = found(frame)
        opposite = ~result
        if other is not None:
            with_it = other(frame)
            result, opposite = combine(result, with_it), combine(opposite, with_it)
        write(frame, result)
        write_other(frame, opposite)

    return step


@operation("set")
def _set(i):
    result, found = TYPES[i.types[0]], compared(i)
    write = i.target(0, result)
    combine = next((BOOLEANS[m] for m in i.modifiers if m in BOOLEANS), None)
    other = i.predicate(i.operands[3]) if combine is not None else None
    yes = np.array([1.0], F32) if result is F32 else np.array([-1], f"i{result.itemsize}").view(result)

    def step(frame):
        mask = found(frame)
        if other is not None:
            mask = combine(mask, other(frame))
        write(frame, np.where(mask, yes, result.type(0)))

    return step


def _as_bits(i) -> np.dtype:
    """The type that moves the instruction's numbers untouched."""
    return BOOL if i.dtype is BOOL else UNSIGNED[i.dtype.itemsize]


@operation("selp")
def _selp(i):
    kind = _as_bits(i)
    choose = lambda a, b, p: np.where(p, a, b)  # noqa: E731
    return i.map(choose, i.read_literally(1, kind), i.read_literally(2, kind), i.predicate(i.operands[3]))


@operation("slct")
def _slct(i):
    kind, by = UNSIGNED[TYPES[i.types[0]].itemsize], i.source(3, i.dtype)
    choose = lambda a, b, c: np.where(c >= 0, a, b)  # noqa: E731
    return i.map(choose, i.read_literally(1, kind), i.read_literally(2, kind), by, dtype=kind)


# ---- moves ----


@operation("mov")
def _move(i):
    kind = _as_bits(i)
    targets, sources = i.members(0), i.members(1)
    if len(sources) == len(targets) == 1:
        return i.map(lambda a: a, i.read_literally(1, kind))
    part = UNSIGNED[i.dtype.itemsize // max(len(sources), len(targets))]
    if len(sources) > 1:  # the first member is the lowest part
        write, reads = i.target(0, kind), [i.read(name, part) for name in sources]

        def pack(frame):
            whole = np.empty((frame.size, len(reads)), part)
            for column, read in enumerate(reads):
                whole[:, column] = read(frame)
            write(frame, whole.view(kind)[:, 0])

        return pack
    read, writes = i.source(1, kind), [i.target(name, part) for name in targets]

    def unpack(frame):
        parts = np.ascontiguousarray(read(frame)).view(part).reshape(-1, len(writes))
        for column, write in enumerate(writes):
            write(frame, np.ascontiguousarray(parts[:, column]))

    return unpack


@operation("cvta")
def _cvta(i):
    return i.map(lambda a: a, i.source(1, U64))


@operation("cvt")
def _convert(i):
    to, *of = i.types
    if i.has("rna", "rs", "relu", "satfinite") or any(name.endswith("x2") for name in of):
        raise i.unsupported()
    if to.endswith("x2"):  # the first operand goes to the upper half
        convert = numeric.converter(to[:-2], of[0], tuple(i.modifiers))
        high, low = i.source(1, TYPES[of[0]]), i.source(2, TYPES[of[0]])

        def both(a, b):
            a, b = (bits(convert(x)).astype(U32) for x in (a, b))
            return a << np.uint32(16) | b

        return i.map(both, high, low, dtype=U32)
    convert = numeric.converter(to, of[0], tuple(i.modifiers))
    if i.has("ftz"):
        plain = convert
        convert = lambda a: flushed(plain(flushed(a)))  # noqa: E731
    return i.map(convert, i.source(1, TYPES[of[0]]), dtype=TYPES[to])


# ---- bits ----


@operation("and", "or", "xor", "not", "cnot")
def _logic(i):
    functions = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert}
    functions["cnot"] = lambda a: (a == 0).astype(a.dtype)
    return i.map(functions[i.name])


@operation("shl", "shr")
def _shift(i):
    function = numeric.shift_left if i.name == "shl" else numeric.shift_right
    return i.map(function, i.source(1), i.source(2, U32))


@operation("shf")
def _funnel(i):
    mask = np.uint64(31)
    clamp = np.uint64(32)

    def shift(low, high, amount):
        amount = amount.astype(U64)
        amount = np.minimum(amount, clamp) if i.has("clamp") else amount & mask
        both = high.astype(U64) << clamp | low
        return (both << amount >> clamp if i.has("l") else both >> amount).astype(U32)

    return i.map(shift)


@operation("lop3")
def _lop3(i):
    if i.has("BOOL"):
        raise i.unsupported()
    table = int(i.operands[4], 0)

    def look_up(a, b, c):
        found = np.zeros(1, U32)
        for row in range(8):
            if table >> row & 1:
                found = found | (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        return found

    return i.map(look_up, i.source(1), i.source(2), i.source(3))


@operation("prmt")
def _permute(i):
    if len(i.modifiers) > 1:
        raise i.unsupported()

    def permute(a, b, selector):
        octets = np.broadcast_to(b.astype(U64) << np.uint64(32) | a, np.broadcast(a, b, selector).shape)
        found = np.zeros(octets.shape, U32)
        for place in range(4):
            chosen = selector >> np.uint32(4 * place)
            octet = (octets >> ((chosen & np.uint32(7)) * np.uint32(8)).astype(U64)).astype(U8)
            sign = np.where(octet & np.uint8(0x80), np.uint8(0xFF), np.uint8(0))
            octet = np.where(chosen & np.uint32(8), sign, octet)
            found |= octet.astype(U32) << np.uint32(8 * place)
        return found

    return i.map(permute)


@operation("bfe")
def _extract(i):
    size = 8 * i.dtype.itemsize
    count, words = np.uint32(size), UNSIGNED[i.dtype.itemsize]

    def extract(a, begin, length):
        begin, length = begin & np.uint32(255), np.minimum(length & np.uint32(255), count)
        if i.type[0] == "u":
            return numeric.shift_right(a, begin) & ~numeric.shift_left(~words.type(0), length)
        # The bits beyond the operand are its sign; the field's highest bit then fills the rest.
        field = numeric.shift_right(a, np.minimum(begin, np.uint32(size - 1)))
        rest = count - length
        return numeric.shift_right(numeric.shift_left(field, rest), rest)

    return i.map(extract, i.source(1), i.source(2, U32), i.source(3, U32))


@operation("bfi")
def _insert(i):
    ones = ~i.dtype.type(0)

    def insert(a, b, begin, length):
        begin, length = begin & np.uint32(255), length & np.uint32(255)
        mask = numeric.shift_left(~numeric.shift_left(ones, length), begin)
        return (numeric.shift_left(a, begin) & mask) | (b & ~mask)

    return i.map(insert, i.source(1), i.source(2), i.source(3, U32), i.source(4, U32))


@operation("popc", "clz", "bfind", "brev")
def _scan(i):
    size = np.uint32(8 * i.dtype.itemsize - 1)
    if i.name == "brev":
        return i.map(numeric.reverse_bits)
    if i.name == "bfind":

        def function(a):
            place = numeric.highest_bit(np.where(a < 0, ~a, a).view(UNSIGNED[a.itemsize]))
            return np.where(place <= size, size - place, place) if i.has("shiftamt") else place
    elif i.name == "clz":
        function = lambda a: size - numeric.highest_bit(a)  # noqa: E731 (of zero: size + 1)
    else:
        function = numeric.count_ones
    return i.map(function, i.source(1), dtype=U32)


# ---- memory ----


def _elements(i) -> tuple[np.dtype, int]:
    count = next((int(m[1:]) for m in i.modifiers if m in ("v2", "v4", "v8")), 1)
    return UNSIGNED[i.dtype.itemsize], count


@operation("ld", "ldu")
def _load(i):
    kind, count = _elements(i)
    size = kind.itemsize * count
    # A signed type fills a wider register by its sign; floats stay bits.
    element = i.dtype if i.dtype.kind == "i" else kind
    writes = [i.target(name, element) for name in i.members(0)]
    base, offset = i.address_parts(1)
    if i.has("param") and base in i.kernel.parameter_names:
        begin = int(offset[0])

        def load_parameter(frame):
            values = np.frombuffer(frame.launch.params[base], element, count, begin)
            for column, write in enumerate(writes):
                write(frame, values[column : column + 1])

        return load_parameter
    address = i.address(1)

    def load(frame):
        addresses = address(frame)
        if addresses.size == frame.size:
            words = frame.launch.memory.load(addresses, size, frame.lanes)
        else:  # all threads load the same
            words = frame.launch.memory.load(np.repeat(addresses, frame.size), size, frame.lanes)[:1]
        if count == 1:
            writes[0](frame, words[:, 0].view(element))
            return
        columns = words.view(element)
        for column, write in enumerate(writes):
            write(frame, np.ascontiguousarray(columns[:, column]))

    return load


@operation("st")
def _store(i):
    kind, count = _elements(i)
    size = kind.itemsize * count
    reads, address = [i.read(name, kind) for name in i.members(1)], i.address(0)
    unit = UNSIGNED[min(size, 8)]

    def store(frame):
        addresses = address(frame)
        if addresses.size != frame.size:
            addresses = np.repeat(addresses, frame.size)
        values = np.empty((frame.size, count), kind)
        for column, read in enumerate(reads):
            values[:, column] = read(frame)
        frame.launch.memory.store(addresses, values.view(unit), frame.lanes)

    return store


ATOMIC = {
    "add": np.add,
    "min": numeric.minimum,
    "max": numeric.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: new if old == expected else old,
    "inc": lambda old, limit: old.dtype.type(0) if old >= limit else old + old.dtype.type(1),
    "dec": lambda old, limit: limit if old == 0 or old > limit else old - old.dtype.type(1),
}


@operation("atom", "red")
def _atomic(i):
    function = ATOMIC[next(m for m in i.modifiers if m in ATOMIC)]
    if i.has("noftz", "v2", "v4") or i.type in ("f16", "f16x2", "bf16", "bf16x2"):
        raise i.unsupported()
    place = 1 if i.name == "atom" else 0
    write = i.target(0) if i.name == "atom" else lambda frame, value: None
    address = i.address(place)
    sources = [i.source(k) for k in range(place + 1, len(i.operands))]

    def update(frame):
        addresses = np.broadcast_to(address(frame), frame.size)
        values = [np.broadcast_to(source(frame), frame.size) for source in sources]
        write(frame, frame.launch.memory.update(addresses, i.dtype, frame.lanes, function, *values))

    return update


@operation("membar", "fence", "prefetch", "prefetchu", "discard", "applypriority", "nanosleep", "pmevent")
def _nothing(i):
    return ignored


# ---- control ----


def jump(i, target: int) -> Callable:
    """The step of an instruction that goes elsewhere, under its guard."""
    if i.guard is None:
        i.successors = [target]
        return lambda frame: target
    guard, onward = i.guard, i.place + 1
    i.successors = [target, onward]

    def step(frame):
        mask = guard(frame)
        count = np.count_nonzero(mask)
        if count == mask.size:
            return target
        return [(target, np.flatnonzero(mask)), (onward, np.flatnonzero(~mask))] if count else None

    return step


@operation("bra")
def _branch(i):
    return jump(i, i.kernel.body.labels[i.operands[0]])


@operation("ret", "exit")
def _end(i):
    return jump(i, len(i.kernel.body.statements))


@operation("brx")
def _branch_by_index(i):
    if i.guard is not None:
        raise i.unsupported()
    labels = i.kernel.body.labels
    targets = np.array([labels[name] for name in i.kernel.body.targets[i.operands[1]]])
    index = i.source(0, U32)
    i.successors = targets.tolist()

    def step(frame):
        found = targets[index(frame)]
        places = np.unique(found).tolist()
        return places[0] if len(places) == 1 else [(to, np.flatnonzero(found == to)) for to in places]

    return step


@operation("bar", "barrier")
def _barrier(i):
    if i.has("warp"):  # threads of a warp that run together are together: it orders what they access

        def synchronize(frame):
            frame.launch.memory.synchronize_warps(np.unique(_warps(frame)[0]))

        return synchronize
    if not i.has("sync") or len(i.operands) > 1:
        raise i.unsupported()
    number, onward = i.source(0, U32), i.place + 1

    def step(frame):
        if i.guard is None:
            frame.launch.wait(frame, slice(None), number(frame), onward)
            return WAIT
        mask = np.broadcast_to(i.guard(frame), frame.size)
        if not mask.any():
            return None
        places = np.flatnonzero(mask)
        frame.launch.wait(frame, places, np.broadcast_to(number(frame), frame.size)[places], onward)
        return [(WAIT, places), (onward, np.flatnonzero(~mask))]

    return step


# ---- threads of a warp ----


def _warps(frame) -> tuple[np.ndarray, np.ndarray]:
    """For each thread of a frame, the number of its warp's first thread, and its lane in the warp."""
    lane = frame.launch.thread[frame.lanes] % WARP
    return frame.lanes - lane, lane


def _member_check(i, operand: int) -> Callable:
    """A function that raises `Elsewhere` until all threads that a `membermask` names are here."""
    mask = i.source(operand, U32)

    def check(frame):
        first, lane = _warps(frame)
        mine = np.broadcast_to(mask(frame), frame.size)
        here = np.zeros(frame.launch.threads + WARP, U32)
        np.bitwise_or.at(here, first, np.uint32(1) << lane.astype(U32))
        living = np.zeros_like(here)
        alive = np.flatnonzero(frame.launch.alive)
        at = frame.launch.thread[alive] % WARP
        np.bitwise_or.at(living, alive - at, np.uint32(1) << at.astype(U32))
        if (mine & living[first] & ~here[first]).any():
            raise Elsewhere(f"{frame.launch.kernel.name}: threads named by its membermask are elsewhere")
        if (mine >> lane.astype(U32) & np.uint32(1) == 0).any():
            frame.launch.fail("it is executed by threads that its membermask does not name")
        return mine

    return check


def _at_threads(frame, threads: np.ndarray) -> np.ndarray:
    """Return the places of threads in a frame; -1 for those that are not in it."""
    places = np.full(frame.launch.threads + WARP, -1)
    places[frame.lanes] = np.arange(frame.size)
    return places[threads]


@operation("shfl")
def _shuffle(i):
    mode = next(m for m in i.modifiers if m in ("up", "down", "bfly", "idx"))
    result, _, found = i.operands[0].partition("|")
    write, write_found = i.target(result, U32), i.target(found or "_", BOOL)
    value, by, clamp = i.source(1, U32), i.source(2, U32), i.source(3, U32)
    check = _member_check(i, 4)

    def step(frame):
        check(frame)
        first, lane = _warps(frame)
        b = (by(frame) & np.uint32(31)).astype(np.int64)
        c = clamp(frame).astype(np.int64)
        bound, segment = c & 31, c >> 8 & 31
        highest = (lane & segment) | (bound & ~segment)
        if mode == "up":
            of = lane - b
            valid = of >= highest
        elif mode == "down":
            of = lane + b
            valid = of <= highest
        elif mode == "bfly":
            of = lane ^ b
            valid = of <= highest
        else:
            of = (lane & segment) | (b & ~segment)
            valid = of <= highest
        of = np.where(valid, of, lane)
        inside = frame.launch.thread[frame.lanes] - lane + of < frame.launch.block_size
        places = np.where(inside, _at_threads(frame, first + of), -1)
        values = np.broadcast_to(value(frame), frame.size)[places]
        write(frame, np.where(places < 0, np.uint32(0xA5A5A5A5), values))  # a thread that is not here: undefined
        write_found(frame, valid)

    return step


@operation("vote")
def _vote(i):
    mode = next(m for m in i.modifiers if m in ("all", "any", "uni", "ballot"))
    check, value = _member_check(i, 2), i.predicate(i.operands[1])
    write = i.target(0, U32 if mode == "ballot" else BOOL)

    def step(frame):
        mask = check(frame)
        first, lane = _warps(frame)
        votes = np.zeros(frame.launch.threads + WARP, U32)
        mine = np.where(np.broadcast_to(value(frame), frame.size), np.uint32(1) << lane.astype(U32), np.uint32(0))
        here = votes.copy()
        np.bitwise_or.at(votes, first, mine)
        np.bitwise_or.at(here, first, np.uint32(1) << lane.astype(U32))
        yes, asked = votes[first] & mask, here[first] & mask
        results = {"ballot": yes, "any": yes != 0, "all": yes == asked, "uni": (yes == asked) | (yes == 0)}
        write(frame, results[mode])

    return step


@operation("redux")
def _redux(i):
    functions = {**SIMPLE, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    function = functions[next(m for m in i.modifiers if m in functions)]
    check, value, write = _member_check(i, 2), i.source(1), i.target(0)
    if i.dtype.kind == "f":
        raise i.unsupported()

    def step(frame):
        mask, (first, _) = check(frame), _warps(frame)
        values = np.broadcast_to(value(frame), frame.size)
        # Threads reduce together that are of one warp and have the same mask.
        _, groups = np.unique(first.astype(U64) << np.uint64(32) | mask, return_inverse=True)
        found = np.empty(frame.size, i.dtype)
        for group in range(groups.max() + 1):
            members = groups == group
            total = values[members][:1]
            for other in values[members][1:]:
                total = function(total, other)
            found[members] = total
        write(frame, found)

    return step


@operation("activemask")
def _activemask(i):
    write = i.target(0, U32)

    def step(frame):
        first, lane = _warps(frame)
        here = np.zeros(frame.launch.threads + WARP, U32)
        np.bitwise_or.at(here, first, np.uint32(1) << lane.astype(U32))
        write(frame, here[first])

    return step
