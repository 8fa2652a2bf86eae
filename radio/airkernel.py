"""The compiled inner loops of the simulated air; knows arrays and numbers only, no radio, no seed, no options.

The plain NumPy model that these loops are tested against is ``radio.airmodel``.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from jaxtyping import Complex64, Complex128, Float32, Float64
from numba import njit

BLOCK = 256  # samples between two exact evaluations of delay, phase and channel; also the grain of all rendering
TAPS = 32  # length of one fractional-delay filter
PHASES = 512  # table rows per sample of delay; linear interpolation between them errs by -109 dB
MARGIN = 0.125  # the table reaches this far beyond one sample, for delays that drift inside a block
BAND = 0.42  # passband edge of the fractional-delay filters, in sample rates


@cache
def fractional_table() -> Float32[np.ndarray, "row tap"]:
    """Tabulate least-squares fractional-delay filters for the band |f| <= 0.42.

    Row r holds the TAPS coefficients for the delay mu = r / PHASES - MARGIN: the filter h minimises the integral over
    the band of |sum_k h_k exp(-2 pi j f k) - exp(-2 pi j f mu)|^2, whose normal equations have sinc entries
    (Laakso et al., "Splitting the unit delay", IEEE Signal Processing Magazine 13(1), 1996, eq. 29).
    """
    width = 2.0 * BAND + 0.005
    tap = np.arange(TAPS) - TAPS // 2 + 1
    mu = np.arange(round((1.0 + 2.0 * MARGIN) * PHASES) + 2) / PHASES - MARGIN
    gram = width * np.sinc(width * (tap[:, None] - tap[None, :])) + 1e-12 * np.eye(TAPS)
    wanted = width * np.sinc(width * (tap[:, None] - mu[None, :]))
    table: np.ndarray = np.linalg.solve(gram, wanted).T.astype(np.float32)
    return np.ascontiguousarray(table)


@njit(cache=True, nogil=True)
def tap_gains(
    time_s: Float64[np.ndarray, " time"],
    fixed: Complex128[np.ndarray, " path"],
    weight: Float64[np.ndarray, " path"],
    doppler_hz: Float64[np.ndarray, "path wave"],
    phase_rad: Float64[np.ndarray, "path wave"],
) -> Complex128[np.ndarray, "time path"]:
    """Evaluate the path gains of a link: a fixed part plus a sum of sinusoids of mean power ``weight``^2 per path."""
    paths, waves = doppler_hz.shape
    out = np.empty((time_s.size, paths), np.complex128)
    for i in range(time_s.size):
        for p in range(paths):
            total = fixed[p]
            for s in range(waves):
                angle = 2.0 * math.pi * doppler_hz[p, s] * time_s[i] + phase_rad[p, s]
                total += weight[p] / math.sqrt(waves) * complex(math.cos(angle), math.sin(angle))
            out[i, p] = total
    return out


@njit(cache=True, nogil=True, fastmath={"contract"})
def _convolve_real(acc_re, acc_im, seg_re, seg_im, start, slope):  # type: ignore[no-untyped-def]
    """Filter a block with real taps that move linearly from ``start`` by ``slope`` per sample; four taps per pass."""
    for k in range(0, start.size, 4):
        a0, a1, a2, a3 = start[k], start[k + 1], start[k + 2], start[k + 3]
        d0, d1, d2, d3 = slope[k], slope[k + 1], slope[k + 2], slope[k + 3]
        # views, not seg[i + k]: only an index known to be non-negative lets the loop become vector code
        x0, x1, x2, x3 = seg_re[k:], seg_re[k + 1 :], seg_re[k + 2 :], seg_re[k + 3 :]
        y0, y1, y2, y3 = seg_im[k:], seg_im[k + 1 :], seg_im[k + 2 :], seg_im[k + 3 :]
        for i in range(BLOCK):
            w = np.float32(i)
            h0, h1, h2, h3 = a0 + w * d0, a1 + w * d1, a2 + w * d2, a3 + w * d3
            acc_re[i] += h0 * x0[i] + h1 * x1[i] + h2 * x2[i] + h3 * x3[i]
            acc_im[i] += h0 * y0[i] + h1 * y1[i] + h2 * y2[i] + h3 * y3[i]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _convolve_complex(acc_re, acc_im, seg_re, seg_im, start_re, start_im, slope_re, slope_im):  # type: ignore[no-untyped-def]
    """Filter a block with complex taps that move linearly; two taps per pass."""
    for k in range(0, start_re.size, 2):
        a0, a1, b0, b1 = start_re[k], start_re[k + 1], start_im[k], start_im[k + 1]
        c0, c1, d0, d1 = slope_re[k], slope_re[k + 1], slope_im[k], slope_im[k + 1]
        x0, x1, y0, y1 = seg_re[k:], seg_re[k + 1 :], seg_im[k:], seg_im[k + 1 :]
        for i in range(BLOCK):
            w = np.float32(i)
            p0, p1, q0, q1 = a0 + w * c0, a1 + w * c1, b0 + w * d0, b1 + w * d1
            acc_re[i] += p0 * x0[i] - q0 * y0[i] + p1 * x1[i] - q1 * y1[i]
            acc_im[i] += p0 * y0[i] + q0 * x0[i] + p1 * y1[i] + q1 * x1[i]


@njit(cache=True, nogil=True, fastmath={"contract"})
def _phasor(rot_re, rot_im, start_rad, end_rad):  # type: ignore[no-untyped-def]
    """Write exp(j phase) for a phase that runs linearly over a block, by doubling: eight roundings, not 256."""
    rot_re[0] = math.cos(start_rad)
    rot_im[0] = math.sin(start_rad)
    step = (end_rad - start_rad) / BLOCK
    half = 1
    while half < BLOCK:
        c = np.float32(math.cos(step * half))
        s = np.float32(math.sin(step * half))
        for i in range(half):
            re, im = rot_re[i], rot_im[i]
            rot_re[half + i] = re * c - im * s
            rot_im[half + i] = re * s + im * c
        half *= 2


@njit(cache=True, nogil=True, fastmath={"contract"})
def _wobble(rot_re, rot_im, phi, noise, start, end):  # type: ignore[no-untyped-def]
    """Turn a phasor by a small phase noise, linear between grid values; cosine and sine to third order."""
    first = int(start)
    grid = noise[first:]
    begin = np.float32(start - first)
    step = np.float32((end - start) / BLOCK)
    for i in range(BLOCK):  # look-ups apart from arithmetic: the second loop becomes vector code
        position = begin + step * np.float32(i)
        cell = np.int32(position)
        w = position - np.float32(cell)
        low = grid[np.uint32(cell)]
        phi[i] = low + w * (grid[np.uint32(cell + 1)] - low)
    for i in range(BLOCK):
        square = phi[i] * phi[i]
        c = np.float32(1.0) - np.float32(0.5) * square
        s = phi[i] - phi[i] * square * np.float32(1.0 / 6.0)
        re, im = rot_re[i], rot_im[i]
        rot_re[i] = re * c - im * s
        rot_im[i] = re * s + im * c


@njit(cache=True, nogil=True)
def rotation(
    phase_rad: Float64[np.ndarray, " edge"],
    noise: Float32[np.ndarray, " grid"],
    noise_at: Float64[np.ndarray, " edge"],
) -> Float32[np.ndarray, "2 sample"]:
    """Write exp(j phase) over whole blocks, as real and imaginary rows.

    Args:
        phase_rad: phase at each edge between blocks, linear between them.
        noise: phase noise on a grid, in rad (empty: none), added on top.
        noise_at: grid position of each edge.
    """
    out = np.empty((2, (phase_rad.size - 1) * BLOCK), np.float32)
    phi = np.empty(BLOCK, np.float32)
    for b in range(phase_rad.size - 1):
        rot_re = out[0, b * BLOCK : (b + 1) * BLOCK]
        rot_im = out[1, b * BLOCK : (b + 1) * BLOCK]
        _phasor(rot_re, rot_im, phase_rad[b], phase_rad[b + 1])
        if noise.size > 1:
            _wobble(rot_re, rot_im, phi, noise, noise_at[b], noise_at[b + 1])
    return out


@njit(cache=True, nogil=True)
def _taps_at(out_re, out_im, base, position, delays, gains, table):  # type: ignore[no-untyped-def]
    """Lay the filters of all paths into one complex filter; ``base`` fixes each path's whole samples."""
    out_re[:] = 0.0
    out_im[:] = 0.0
    for p in range(delays.size):
        whole = math.floor(base - delays[p])
        row = (position - delays[p] - whole + MARGIN) * PHASES
        low = math.floor(row)
        w = np.float32(row - low)
        re, im = np.float32(gains[p].real), np.float32(gains[p].imag)
        for k in range(TAPS):
            h = table[low, k] + w * (table[low + 1, k] - table[low, k])
            out_re[whole + k] += re * h
            out_im[whole + k] += im * h


@njit(cache=True, nogil=True, fastmath={"contract"})
def add_burst(
    out_re: Float32[np.ndarray, " sample"],
    out_im: Float32[np.ndarray, " sample"],
    position: Float64[np.ndarray, " edge"],
    rot: Float32[np.ndarray, "2 sample"],
    gains: Complex128[np.ndarray, "edge path"],
    delays: Float64[np.ndarray, " path"],
    table: Float32[np.ndarray, "row tap"],
    src_re: Float32[np.ndarray, " source"],
    src_im: Float32[np.ndarray, " source"],
) -> None:
    """Add one burst as a receiver hears it, in blocks of BLOCK samples between ``edge`` instants.

    Args:
        out_re, out_im: accumulators, BLOCK samples per pair of edges.
        position: index into the source (fractional) that arrives at each edge.
        rot: carrier of the transmitter against the receiver, from ``rotation``.
        gains: complex gain of every path at each edge, linear between.
        delays: extra delay of every path, in source samples, >= 0.
        table: ``fractional_table()``.
        src_re, src_im: the burst; zero outside.
    """
    reach = 0
    for p in range(delays.size):
        reach = max(reach, math.ceil(delays[p]) + 1)
    if delays.size == 1 and delays[0] == 0.0:
        reach = 0
    length = TAPS + 4 * ((reach + 3) // 4)
    single = length == TAPS
    seg_re = np.zeros(BLOCK + length, np.float32)
    seg_im = np.zeros(BLOCK + length, np.float32)
    acc_re = np.zeros(BLOCK, np.float32)
    acc_im = np.zeros(BLOCK, np.float32)
    a_re, a_im = np.zeros(length, np.float32), np.zeros(length, np.float32)
    b_re, b_im = np.zeros(length, np.float32), np.zeros(length, np.float32)
    unit = np.ones(1, np.complex128)
    share = np.float32(1.0 / BLOCK)
    for b in range(position.size - 1):
        floor = math.floor(position[b])
        first = int(floor) - reach
        low = first - TAPS // 2 + 1
        if low >= src_re.size or low + BLOCK + length <= 0:
            continue
        for i in range(BLOCK + length):
            j = low + i
            inside = 0 <= j < src_re.size
            seg_re[i] = src_re[j] if inside else np.float32(0.0)
            seg_im[i] = src_im[j] if inside else np.float32(0.0)
        base = position[b] - first
        ahead = position[b + 1] - BLOCK - first
        acc_re[:] = 0.0
        acc_im[:] = 0.0
        if single:
            _taps_at(a_re, a_im, base, base, delays, unit, table)
            _taps_at(b_re, b_im, base, ahead, delays, unit, table)
            for k in range(length):
                b_re[k] = (b_re[k] - a_re[k]) * share
            _convolve_real(acc_re, acc_im, seg_re, seg_im, a_re, b_re)
        else:
            _taps_at(a_re, a_im, base, base, delays, gains[b], table)
            _taps_at(b_re, b_im, base, ahead, delays, gains[b + 1], table)
            for k in range(length):
                b_re[k] = (b_re[k] - a_re[k]) * share
                b_im[k] = (b_im[k] - a_im[k]) * share
            _convolve_complex(acc_re, acc_im, seg_re, seg_im, a_re, a_im, b_re, b_im)
        rot_re = rot[0, b * BLOCK : (b + 1) * BLOCK]
        rot_im = rot[1, b * BLOCK : (b + 1) * BLOCK]
        hear_re = out_re[b * BLOCK : (b + 1) * BLOCK]
        hear_im = out_im[b * BLOCK : (b + 1) * BLOCK]
        g_re, g_im, s_re, s_im = np.float32(1.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
        if single:
            g_re, g_im = np.float32(gains[b, 0].real), np.float32(gains[b, 0].imag)
            s_re = np.float32((gains[b + 1, 0].real - gains[b, 0].real) / BLOCK)
            s_im = np.float32((gains[b + 1, 0].imag - gains[b, 0].imag) / BLOCK)
        for i in range(BLOCK):
            w = np.float32(i)
            c, s = g_re + w * s_re, g_im + w * s_im
            p = rot_re[i] * c - rot_im[i] * s
            q = rot_re[i] * s + rot_im[i] * c
            hear_re[i] += acc_re[i] * p - acc_im[i] * q
            hear_im[i] += acc_re[i] * q + acc_im[i] * p


@njit(cache=True, nogil=True, fastmath={"contract"})
def add_tone(
    out_re: Float32[np.ndarray, " sample"],
    out_im: Float32[np.ndarray, " sample"],
    rot: Float32[np.ndarray, "2 sample"],
    gain: Complex128[np.ndarray, " edge"],
    begin: int,
    end: int,
) -> None:
    """Add a carrier, as ``add_burst`` would a burst of ones, at the output samples from ``begin`` up to ``end``."""
    for b in range(gain.size - 1):
        low, high = max(begin, b * BLOCK), min(end, (b + 1) * BLOCK)
        if low >= high:
            continue
        hear_re, hear_im = out_re[low:high], out_im[low:high]
        rot_re, rot_im = rot[0, low:high], rot[1, low:high]
        g_re, g_im = np.float32(gain[b].real), np.float32(gain[b].imag)
        s_re = np.float32((gain[b + 1].real - gain[b].real) / BLOCK)
        s_im = np.float32((gain[b + 1].imag - gain[b].imag) / BLOCK)
        skip = np.float32(low - b * BLOCK)
        for i in range(hear_re.size):
            w = skip + np.float32(i)
            c, s = g_re + w * s_re, g_im + w * s_im
            hear_re[i] += rot_re[i] * c - rot_im[i] * s
            hear_im[i] += rot_re[i] * s + rot_im[i] * c


@njit(cache=True, nogil=True, fastmath={"contract"})
def turn(
    out_re: Float32[np.ndarray, " sample"],
    out_im: Float32[np.ndarray, " sample"],
    rot: Float32[np.ndarray, "2 sample"],
) -> None:
    """Take the receiver's own phase noise, as a rotation, out of everything it hears."""
    rot_re, rot_im = rot[0], rot[1]
    for i in range(out_re.size):
        re, im = out_re[i], out_im[i]
        out_re[i] = re * rot_re[i] + im * rot_im[i]
        out_im[i] = im * rot_re[i] - re * rot_im[i]


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def gaussian(key: int, start: int, re: Float32[np.ndarray, " sample"], im: Float32[np.ndarray, " sample"]) -> None:
    """Fill two arrays with independent standard normal values that depend on ``key`` and the sample index alone.

    A counter through the finaliser of SplitMix64 (Steele et al., OOPSLA 2014) gives the uniform pair of the Box-Muller
    transform; with 24 bits the tail ends at 5.8 standard deviations. Logarithm, sine and cosine are series of their
    own, exact to single precision, since calls of the library's would keep the loops from becoming vector code.
    """
    one, half, root = np.float32(1.0), np.float32(0.5), np.float32(math.sqrt(2.0))
    mantissa, angle = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    bits = mantissa.view(np.int32)
    for low in range(0, re.size, BLOCK):
        count = min(BLOCK, re.size - low)
        for i in range(count):
            z = np.uint64(key) + np.uint64(start + low + i) * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            mantissa[i] = np.float32(np.int32(z >> np.uint64(40)) + np.int32(1))
            angle[i] = np.int32(z & np.uint64(0xFFFFFF))
        x, y = re[low : low + count], im[low : low + count]
        for i in range(count):  # x = -2 ln(u), u = m 2^e
            y[i] = np.float32((bits[i] >> np.int32(23)) - np.int32(127 + 24))
            bits[i] = (bits[i] & np.int32(0x7FFFFF)) | np.int32(0x3F800000)
        for i in range(count):
            m, e = mantissa[i], y[i]
            large = m > root
            m = m * half if large else m
            e = e + one if large else e
            s = (m - one) / (m + one)
            q = s * s
            series = one + q * (
                np.float32(1 / 3) + q * (np.float32(1 / 5) + q * (np.float32(1 / 7) + q * np.float32(1 / 9)))
            )
            x[i] = max(np.float32(-4.0) * s * series - np.float32(2.0 * math.log(2.0)) * e, np.float32(0.0))
        for i in range(count):
            size = np.sqrt(x[i])
            quarter = (angle[i] + np.int32(1 << 21)) >> np.int32(22)
            t = np.float32(angle[i] - (quarter << np.int32(22))) * np.float32(2.0 * math.pi / (1 << 24))
            q = t * t
            sine = t * (one - q * (np.float32(1 / 6) - q * (np.float32(1 / 120) - q * np.float32(1 / 5040))))
            cosine = one - q * (half - q * (np.float32(1 / 24) - q * (np.float32(1 / 720) - q * np.float32(1 / 40320))))
            odd = (quarter & np.int32(1)) == np.int32(1)
            c, s = (sine, cosine) if odd else (cosine, sine)
            turned = quarter & np.int32(3)
            x[i] = -size * c if turned == 1 or turned == 2 else size * c
            y[i] = -size * s if turned == 2 or turned == 3 else size * s


@njit(cache=True, nogil=True, fastmath={"contract"})
def convert(
    re: Float32[np.ndarray, " sample"],
    im: Float32[np.ndarray, " sample"],
    noise_re: Float32[np.ndarray, " sample"],
    noise_im: Float32[np.ndarray, " sample"],
    noise_rms: float,
    gain: float,
    image: complex,
    offset: complex,
    levels: float,
    out: Complex64[np.ndarray, " sample"],
) -> int:
    """Add noise, gain, IQ image and DC offset, then quantise; return how many samples hit a rail.

    ``noise_rms`` is per component. The image model is y = x + image * conj(x) + offset. ``levels`` counts the steps
    from zero to full scale (2048 for 12 bits; 0: an unbounded float converter).
    """
    scale, sigma = np.float32(gain), np.float32(noise_rms)
    k_re, k_im = np.float32(image.real), np.float32(image.imag)
    o_re, o_im = np.float32(offset.real), np.float32(offset.imag)
    steps = np.float32(levels)
    one = np.float32(1.0)
    hits = 0
    for i in range(out.size):
        a = scale * (re[i] + sigma * noise_re[i])
        b = scale * (im[i] + sigma * noise_im[i])
        x = a + k_re * a + k_im * b + o_re
        y = b + k_im * a - k_re * b + o_im
        if steps > 0:
            top = one - one / steps
            if x > top or x < -one or y > top or y < -one:
                hits += 1
            x = min(max(np.float32(np.rint(x * steps)) / steps, -one), top)
            y = min(max(np.float32(np.rint(y * steps)) / steps, -one), top)
        out[i] = complex(x, y)
    return hits
