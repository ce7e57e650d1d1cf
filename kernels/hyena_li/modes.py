"""What Hyena-LI's kernels share: rows of a projection, the featurizer, and one step of every mode, all in registers."""

# B batch, L length, D width, E = 3D projected channels, S segments, N modes, F featurizer taps, H = F - 1
# C channels a program; a tuple of n tensors [C] is written n x [C]; the thirds of E are 0 = q, 1 = k, 2 = v

import triton
import triton.language as tl

from kernels.rows import everywhere, push


@triton.jit
def load_rows(p, left, stride, U: tl.constexpr):
    """Load U rows: U x [C]; zeros if none is left."""
    more_C = everywhere(left, p) > 0
    out = ()
    for u in tl.static_range(U):
        out = out + (tl.load(p + u * stride, mask=more_C, other=0.0),)
    return out


@triton.jit
def load_thirds(p, left, stride, D: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, U: tl.constexpr):
    """Load U rows of some thirds of a projection: (HIGH - LOW) x U x [C]."""
    out = ()
    for third in tl.static_range(LOW, HIGH):
        out = out + (load_rows(p + third * D, left, stride, U),)
    return out


@triton.jit
def pick(rows, u: tl.constexpr, COUNT: tl.constexpr):
    """Row u of every loaded third, as float32."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (rows[i][u].to(tl.float32),)
    return out


@triton.jit
def push_all(newest, past, COUNT: tl.constexpr, F: tl.constexpr):
    """The history of every third before the next row."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (push(newest[i], past[i], F),)
    return out


@triton.jit
def decayed(x, rate, PRECISE: tl.constexpr):
    """One step's decay; a precise rate is lambda - 1, of which float32 keeps more where lambda is close to 1."""
    if PRECISE:
        return rate * x + x
    else:
        return rate * x


@triton.jit
def advance(modes, x, rates, N: tl.constexpr, PRECISE: tl.constexpr):
    """One step of every mode's recurrence: N x [C]."""
    out = ()
    for n in tl.static_range(N):
        out = out + (decayed(modes[n], rates[n], PRECISE) + x,)
    return out


@triton.jit
def weigh(modes, residues, start, N: tl.constexpr):
    """`start` and the modes by their residues, in two sums: each addition waits for the one before."""
    even = start + modes[0] * residues[0]
    if N == 1:
        return even
    else:
        odd = modes[1] * residues[1]
        for n in tl.static_range(2, N):
            if n % 2 == 0:
                even += modes[n] * residues[n]
            else:
                odd += modes[n] * residues[n]
        return even + odd


@triton.jit
def load_modes(p, mask_C, stride, N: tl.constexpr):
    """Load N x [C]; the modes lie `stride` apart."""
    out = ()
    for n in tl.static_range(N):
        out = out + (tl.load(p + n * stride, mask=mask_C, other=0.0),)
    return out


@triton.jit
def store_modes(p, modes, mask_C, stride, N: tl.constexpr):
    """Store N x [C]; the modes lie `stride` apart."""
    for n in tl.static_range(N):
        tl.store(p + n * stride, modes[n], mask=mask_C)


@triton.jit
def zeros(C: tl.constexpr, N: tl.constexpr):
    """N x [C] zeros."""
    out = ()
    for _ in tl.static_range(N):
        out = out + (tl.zeros((C,), tl.float32),)
    return out


@triton.jit
def nonzero(residues, N: tl.constexpr):
    """Residues to divide by: too small to change any result where they are not the true ones."""
    out = ()
    for n in tl.static_range(N):
        out = out + (tl.where(tl.abs(residues[n]) < 1e-18, 1e-18, residues[n]),)
    return out


@triton.jit
def widen(window, oldest, COUNT: tl.constexpr):
    """Rows t .. t-H of every third, newest first, from rows t .. t-H+1 and the one before them."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (window[i] + (oldest[i],),)
    return out


@triton.jit
def narrow(rows, COUNT: tl.constexpr):
    """All rows but the newest."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (rows[i][1:],)
    return out


@triton.jit
def gather(sums, gradient_C, rows, F: tl.constexpr, BIAS: tl.constexpr):
    """Add one row's part of the gradient of a featurizer filter: F taps and the bias, if there is one."""
    out = ()
    for j in tl.static_range(F):
        out = out + (sums[j] + gradient_C * rows[j],)
    if BIAS:
        out = out + (sums[F] + gradient_C,)
    return out
