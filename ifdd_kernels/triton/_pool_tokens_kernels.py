"""Device code of ``pool_tokens``: see :mod:`ifdd_kernels.triton.pool_tokens`.

A tile is BLOCK_Y x BLOCK_X neighbouring cells of one clip and head with all channels, (rows, BLOCK_C). It
walks along time with the sums of three frames in registers: a loaded cell serves the outputs before, at
and after its frame, so that each input is loaded 9 times instead of 27, out of the first-level cache.
Channels lie side by side in memory; a cell is ``token`` elements after its neighbour in a row of the grid.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _cells(tile, tiles_x, block_y: tl.constexpr, block_x: tl.constexpr):
    """(y, x) of a tile's rows."""
    row = tl.arange(0, block_y * block_x)
    return tile // tiles_x * block_y + row // block_x, tile % tiles_x * block_x + row % block_x


@triton.jit
def _plane_tiles(height, width, stride_y: tl.constexpr, stride_x: tl.constexpr, block_y: tl.constexpr,
                 block_x: tl.constexpr):  # fmt: skip
    """Tiles of a plane of results."""
    return tl.cdiv(tl.cdiv(height, stride_y), block_y) * tl.cdiv(tl.cdiv(width, stride_x), block_x)


# ------------------------------------------------------------------------------------------- convolution
@triton.jit
def _frame(source, row, column, valid, previous, current, following, taps, has_channel, height, width, token,
           channels: tl.constexpr, all_three: tl.constexpr, kt: tl.constexpr):  # fmt: skip
    """Adds one input frame to the outputs around it, or (all_three=False) to ``current`` through tap kt.

    ``source`` points at the windows' centres in this frame, row and column are theirs; ``taps`` at the
    channels of the first tap.
    """
    for ky in range(3):  # a loop at run time: unrolled, its loads would fill the registers
        y = row + (ky - 1)
        for kx in tl.static_range(3):
            x = column + (kx - 1)
            mask = valid & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            cell = source + ((ky - 1) * width + (kx - 1)) * token
            value = tl.load(cell, mask=mask[:, None] & has_channel[None, :], other=0.0).to(tl.float32)
            tap = taps + (ky * 3 + kx) * channels
            if all_three:
                following += value * tl.load(tap, mask=has_channel, other=0.0)[None, :]
                current += value * tl.load(tap + 9 * channels, mask=has_channel, other=0.0)[None, :]
                previous += value * tl.load(tap + 18 * channels, mask=has_channel, other=0.0)[None, :]
            else:
                current += value * tl.load(tap + kt * 9 * channels, mask=has_channel, other=0.0)[None, :]
    return previous, current, following


@triton.jit
def _finish(total, row, valid, out, stats, grad, gamma, beta, grad_gamma, grad_beta, eps, has_channel,
            row_step, channels: tl.constexpr, gradient: tl.constexpr):  # fmt: skip
    """The norm of finished sums, or its gradient.

    ``out`` points at (channel,) of row 0; so does ``grad``; ``stats`` at (mean, rstd) of row 0.
    """
    place = row.to(tl.int64) * row_step
    mask = valid[:, None] & has_channel[None, :]
    stats += row.to(tl.int64) * (row_step // channels * 2)
    if gradient:
        mean = tl.load(stats, mask=valid, other=0.0)
        rstd = tl.load(stats + 1, mask=valid, other=0.0)
        normalised = tl.where(mask, (total - mean[:, None]) * rstd[:, None], 0.0)
        arriving = tl.load(grad + place[:, None], mask=mask, other=0.0).to(tl.float32)
        grad_gamma += arriving * normalised
        grad_beta += arriving
        arriving *= gamma
        along = tl.sum(arriving * normalised, 1) / channels
        centre = tl.sum(arriving, 1) / channels
        result = (arriving - centre[:, None] - normalised * along[:, None]) * rstd[:, None]
    else:
        mean = tl.sum(total, 1) / channels
        centred = tl.where(has_channel[None, :], total - mean[:, None], 0.0)
        rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
        result = centred * rstd[:, None] * gamma + beta
        tl.store(stats, mean, mask=valid)
        tl.store(stats + 1, rstd, mask=valid)
    tl.store(out + place[:, None], result.to(out.dtype.element_ty), mask=mask)
    return grad_gamma, grad_beta


@triton.jit
def _pool(x, token, weight, gamma, beta, out, stats, grad, partial, tile, eps, row_step,
          frames, height, width, stride_t: tl.constexpr, stride_y: tl.constexpr, stride_x: tl.constexpr,
          channels: tl.constexpr, block_c: tl.constexpr, block_t: tl.constexpr, block_y: tl.constexpr,
          block_x: tl.constexpr, gradient: tl.constexpr):  # fmt: skip
    """One tile of one of q, k, v: convolution and norm, or the gradient of the convolution's result.

    Pointers are those of one clip and head: x at its class token, out, stats and grad at row 0.
    """
    out_frames = tl.cdiv(frames, stride_t)
    out_height = tl.cdiv(height, stride_y)
    out_width = tl.cdiv(width, stride_x)
    tiles_x = tl.cdiv(out_width, block_x)
    tiles = tl.cdiv(out_height, block_y) * tiles_x
    row, column = _cells(tile % tiles, tiles_x, block_y, block_x)
    valid = (row < out_height) & (column < out_width)
    place = 1 + row * out_width + column
    row *= stride_y
    column *= stride_x
    begin = tile // tiles * block_t
    end = tl.minimum(begin + block_t, out_frames)
    step = out_height * out_width
    frame = tl.cast(height * width, tl.int64) * token

    channel = tl.arange(0, block_c)
    has_channel = channel < channels
    taps = weight + channel
    out += channel[None, :]
    grad += channel[None, :]
    scale = tl.load(gamma + channel, mask=has_channel, other=0.0).to(tl.float32)[None, :]
    shift = scale
    if not gradient:
        shift = tl.load(beta + channel, mask=has_channel, other=0.0).to(tl.float32)[None, :]
    centre = x + (1 + row * width + column).to(tl.int64)[:, None] * token + channel[None, :]
    zeros = tl.zeros((block_y * block_x, block_c), tl.float32)
    grad_gamma = zeros
    grad_beta = zeros
    if stride_t == 1:
        previous = zeros
        current = zeros
        for t in range(tl.maximum(begin - 1, 0), tl.minimum(end + 1, frames)):
            source = centre + t * frame
            previous, current, following = _frame(
                source, row, column, valid, previous, current, zeros, taps, has_channel,
                height, width, token, channels, True, 0)  # fmt: skip
            # Masked, not branched around: the compiler would move the sums into the branch, and all the
            # loaded cells and taps would wait for it in registers.
            grad_gamma, grad_beta = _finish(
                previous, place + (t - 1) * step, valid & (t > begin), out, stats, grad, scale, shift,
                grad_gamma, grad_beta, eps, has_channel, row_step, channels, gradient)  # fmt: skip
            previous = current
            current = following
        if end == frames:
            grad_gamma, grad_beta = _finish(
                previous, place + (end - 1) * step, valid, out, stats, grad, scale, shift, grad_gamma,
                grad_beta, eps, has_channel, row_step, channels, gradient)  # fmt: skip
    else:
        for t in range(begin, end):
            total = zeros
            for kt in tl.static_range(3):
                source_t = t * stride_t + (kt - 1)
                seen = valid & (source_t >= 0) & (source_t < frames)
                source = centre + source_t * frame
                _, total, _ = _frame(source, row, column, seen, zeros, total, zeros, taps,
                                     has_channel, height, width, token, channels, False, kt)  # fmt: skip
            grad_gamma, grad_beta = _finish(
                total, place + t * step, valid, out, stats, grad, scale, shift, grad_gamma, grad_beta, eps,
                has_channel, row_step, channels, gradient)  # fmt: skip
    if tile == 0:  # the class token: no convolution
        first = tl.arange(0, block_y * block_x) == 0
        everywhere = tl.zeros((block_y * block_x, 1), tl.int32) + channel[None, :]
        token_0 = tl.load(x + everywhere, mask=first[:, None] & has_channel[None, :], other=0.0).to(
            tl.float32
        )
        grad_gamma, grad_beta = _finish(
            token_0, place * 0, first, out, stats, grad, scale, shift, grad_gamma, grad_beta, eps,
            has_channel, row_step, channels, gradient)  # fmt: skip
    if gradient:
        tl.store(partial + channel, tl.sum(grad_gamma, 0), mask=has_channel)
        tl.store(partial + channels + channel, tl.sum(grad_beta, 0), mask=has_channel)


@triton.jit
def pool_kernel(
    q_source, kv_source, q_batch, q_token, kv_batch, kv_token, key_offset, value_offset,
    weights, gamma_q, beta_q, gamma_k, beta_k, gamma_v, beta_v,
    out_q, out_k, out_v, stats_q, stats_k, stats_v, grad_q, grad_k, grad_v, partial, eps, heads,
    q_rows, kv_rows, q_frames, q_height, q_width, kv_frames, kv_height, kv_width,
    q_stride_t: tl.constexpr, q_stride_y: tl.constexpr, q_stride_x: tl.constexpr,
    kv_stride_t: tl.constexpr, kv_stride_y: tl.constexpr, kv_stride_x: tl.constexpr,
    channels: tl.constexpr, block_c: tl.constexpr, gradient: tl.constexpr,
    block_t: tl.constexpr, block_y: tl.constexpr, block_x: tl.constexpr,
):  # fmt: skip
    """q, k and v in one launch: programs are (clip, head, tiles of k, of v, of q)."""
    program = tl.program_id(0)
    q_tiles = tl.cdiv(tl.cdiv(q_frames, q_stride_t), block_t) * _plane_tiles(
        q_height, q_width, q_stride_y, q_stride_x, block_y, block_x)  # fmt: skip
    kv_tiles = tl.cdiv(tl.cdiv(kv_frames, kv_stride_t), block_t) * _plane_tiles(
        kv_height, kv_width, kv_stride_y, kv_stride_x, block_y, block_x)  # fmt: skip
    tiles = 2 * kv_tiles + q_tiles
    tile = program % tiles
    batch = (program // tiles // heads).to(tl.int64)
    head = program // tiles % heads
    row_step = heads * channels
    partial += program.to(tl.int64) * 2 * channels
    if tile < 2 * kv_tiles:
        place = batch * kv_rows * heads + head
        source = kv_source + batch * kv_batch + head * channels
        weight = weights + 27 * channels
        if tile < kv_tiles:
            source += key_offset
            gamma = gamma_k
            beta = beta_k
            out = out_k
            stats = stats_k
            grad = grad_k
        else:
            source += value_offset
            weight += 27 * channels
            gamma = gamma_v
            beta = beta_v
            out = out_v
            stats = stats_v
            grad = grad_v
        _pool(source, kv_token, weight, gamma, beta, out + place * channels, stats + place * 2,
              grad + place * channels, partial, tile % kv_tiles, eps, row_step, kv_frames, kv_height,
              kv_width, kv_stride_t, kv_stride_y, kv_stride_x, channels, block_c, block_t, block_y, block_x,
              gradient)  # fmt: skip
    else:
        place = batch * q_rows * heads + head
        _pool(q_source + batch * q_batch + head * channels, q_token, weights, gamma_q, beta_q,
              out_q + place * channels, stats_q + place * 2, grad_q + place * channels, partial,
              tile - 2 * kv_tiles, eps, row_step, q_frames, q_height, q_width, q_stride_t, q_stride_y,
              q_stride_x, channels, block_c, block_t, block_y, block_x, gradient)  # fmt: skip


# -------------------------------------------------------------------------------------- input's gradient
@triton.jit
def _gradient_frame(source, residue_y, residue_x, row, column, valid, previous, current, following, taps,
                    has_channel, height, width, step, stride_y: tl.constexpr, stride_x: tl.constexpr,
                    channels: tl.constexpr, all_three: tl.constexpr, kt: tl.constexpr):  # fmt: skip
    """Adds one frame of the result's gradient to the inputs whose windows they are: _frame transposed.

    Input y = stride * row + residue is tap ky of output (y + 1 - ky) / stride where that is whole, the same
    for all rows of a tile: no input tests a tap that is not its own.
    """
    for ky in range(3):
        shift_y = residue_y + 1 - ky
        up = shift_y // stride_y
        y = row + up
        for kx in tl.static_range(3):
            shift_x = residue_x + (1 - kx)
            if (shift_y % stride_y == 0) & (shift_x % stride_x == 0):
                left = shift_x // stride_x
                x = column + left
                mask = valid & (y >= 0) & (y < height) & (x >= 0) & (x < width)
                cell = source + (up * width + left) * step
                value = tl.load(cell, mask=mask[:, None] & has_channel[None, :], other=0.0).to(tl.float32)
                tap = taps + (ky * 3 + kx) * channels
                if all_three:
                    previous += value * tl.load(tap, mask=has_channel, other=0.0)[None, :]
                    current += value * tl.load(tap + 9 * channels, mask=has_channel, other=0.0)[None, :]
                    following += value * tl.load(tap + 18 * channels, mask=has_channel, other=0.0)[None, :]
                else:
                    current += value * tl.load(tap + kt * 9 * channels, mask=has_channel, other=0.0)[None, :]
    return previous, current, following


@triton.jit
def _spread(grad, step, weight, out, token, tile, frames, height, width, stride_t: tl.constexpr,
            stride_y: tl.constexpr, stride_x: tl.constexpr, channels: tl.constexpr, block_c: tl.constexpr,
            block_t: tl.constexpr, block_y: tl.constexpr, block_x: tl.constexpr):  # fmt: skip
    """One tile of the gradient of one of q, k, v: the inputs of one residue modulo the stride.

    Pointers are those of one clip and head, at the class token; ``token`` is the step of ``out``, ``step``
    that of ``grad``.
    """
    out_frames = tl.cdiv(frames, stride_t)
    out_height = tl.cdiv(height, stride_y)
    out_width = tl.cdiv(width, stride_x)
    tiles_x = tl.cdiv(out_width, block_x)
    tiles = tl.cdiv(out_height, block_y) * tiles_x
    row, column = _cells(tile % tiles, tiles_x, block_y, block_x)
    residue = tile // tiles % (stride_y * stride_x)
    residue_y = residue // stride_x
    residue_x = residue % stride_x
    begin = tile // (tiles * stride_y * stride_x) * block_t
    end = tl.minimum(begin + block_t, frames)
    y = row * stride_y + residue_y
    x = column * stride_x + residue_x
    valid = (y < height) & (x < width)
    frame = tl.cast(out_height * out_width, tl.int64) * step

    channel = tl.arange(0, block_c)
    has_channel = channel < channels
    taps = weight + channel
    centre = grad + (1 + row * out_width + column).to(tl.int64)[:, None] * step + channel[None, :]
    out_row = out + (1 + y * width + x).to(tl.int64)[:, None] * token + channel[None, :]
    out_frame = tl.cast(height * width, tl.int64) * token
    store = valid[:, None] & has_channel[None, :]
    zeros = tl.zeros((block_y * block_x, block_c), tl.float32)
    if stride_t == 1:
        previous = zeros
        current = zeros
        for t in range(tl.maximum(begin - 1, 0), tl.minimum(end + 1, frames)):
            source = centre + t * frame
            previous, current, following = _gradient_frame(
                source, residue_y, residue_x, row, column, valid, previous, current, zeros, taps,
                has_channel, out_height, out_width, step, stride_y, stride_x, channels, True, 0)  # fmt: skip
            tl.store(out_row + (t - 1) * out_frame, previous.to(out.dtype.element_ty),
                     mask=store & (t > begin))  # fmt: skip
            previous = current
            current = following
        tl.store(out_row + (end - 1) * out_frame, previous.to(out.dtype.element_ty),
                 mask=store & (end == frames))  # fmt: skip
    else:
        for t in range(begin, end):
            total = zeros
            for kt in tl.static_range(3):
                shift = t + (1 - kt)
                source_t = shift // stride_t
                seen = valid & (shift % stride_t == 0) & (shift >= 0) & (source_t < out_frames)
                source = centre + source_t * frame
                _, total, _ = _gradient_frame(
                    source, residue_y, residue_x, row, column, seen, zeros, total, zeros, taps,
                    has_channel, out_height, out_width, step, stride_y, stride_x, channels, False,
                    kt)  # fmt: skip
            tl.store(out_row + t * out_frame, total.to(out.dtype.element_ty), mask=store)
    if tile == 0:
        tl.store(out + channel, tl.load(grad + channel, mask=has_channel), mask=has_channel)


@triton.jit
def input_gradient_kernel(
    grad_q, grad_k, grad_v, weights, out_q, out_kv, q_batch, q_token, kv_batch, kv_token, key_offset,
    value_offset, heads, q_rows, kv_rows, q_frames, q_height, q_width, kv_frames,
    kv_height, kv_width,
    q_stride_t: tl.constexpr, q_stride_y: tl.constexpr, q_stride_x: tl.constexpr,
    kv_stride_t: tl.constexpr, kv_stride_y: tl.constexpr, kv_stride_x: tl.constexpr,
    channels: tl.constexpr, block_c: tl.constexpr,
    block_t: tl.constexpr, block_y: tl.constexpr, block_x: tl.constexpr,
):  # fmt: skip
    """Gradient of qkv in its own layout: programs are (clip, head, tiles of k, of v, of q)."""
    program = tl.program_id(0)
    q_tiles = tl.cdiv(q_frames, block_t) * q_stride_y * q_stride_x * _plane_tiles(
        q_height, q_width, q_stride_y, q_stride_x, block_y, block_x)  # fmt: skip
    kv_tiles = tl.cdiv(kv_frames, block_t) * kv_stride_y * kv_stride_x * _plane_tiles(
        kv_height, kv_width, kv_stride_y, kv_stride_x, block_y, block_x)  # fmt: skip
    tiles = 2 * kv_tiles + q_tiles
    tile = program % tiles
    batch = (program // tiles // heads).to(tl.int64)
    head = program // tiles % heads
    step = heads * channels
    if tile < 2 * kv_tiles:
        out = out_kv + batch * kv_batch + head * channels
        weight = weights + 27 * channels
        if tile < kv_tiles:
            out += key_offset
            grad = grad_k
        else:
            out += value_offset
            weight += 27 * channels
            grad = grad_v
        _spread(grad + (batch * kv_rows * heads + head) * channels, step, weight, out, kv_token,
                tile % kv_tiles, kv_frames, kv_height, kv_width, kv_stride_t, kv_stride_y, kv_stride_x,
                channels, block_c, block_t, block_y, block_x)  # fmt: skip
    else:
        _spread(grad_q + (batch * q_rows * heads + head) * channels, step, weights,
                out_q + batch * q_batch + head * channels, q_token, tile - 2 * kv_tiles, q_frames, q_height,
                q_width, q_stride_t, q_stride_y, q_stride_x, channels, block_c, block_t, block_y,
                block_x)  # fmt: skip


# ----------------------------------------------------------------------------------- weights' gradients
@triton.jit
def _correlate(source, token, row, column, valid, before, here, after, sums, has_channel, height, width,
               all_three: tl.constexpr, kt: tl.constexpr):  # fmt: skip
    """Adds one input frame times the gradients of the outputs around it to the 27 taps' sums."""
    result = ()
    for tap in tl.static_range(9):
        y = row + (tap // 3 - 1)
        x = column + (tap % 3 - 1)
        mask = valid & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        cell = source + ((tap // 3 - 1) * width + (tap % 3 - 1)) * token
        value = tl.load(cell, mask=mask[:, None] & has_channel[None, :], other=0.0).to(tl.float32)
        if all_three:
            result = result + (
                sums[tap * 3] + value * after,
                sums[tap * 3 + 1] + value * here,
                sums[tap * 3 + 2] + value * before,
            )
        else:
            for place in tl.static_range(3):
                if place == kt:
                    result = result + (sums[tap * 3 + place] + value * here,)
                else:
                    result = result + (sums[tap * 3 + place],)
    return result


@triton.jit
def _weight_sums(x, token, grad, step, partial, first_tile, last_tile, frames, height, width,
                 stride_t: tl.constexpr, stride_y: tl.constexpr, stride_x: tl.constexpr,
                 channels: tl.constexpr, block_c: tl.constexpr, block_y: tl.constexpr,
                 block_x: tl.constexpr):  # fmt: skip
    """Sums of input times gradient over some tiles of one clip and head, for the 27 taps."""
    out_frames = tl.cdiv(frames, stride_t)
    out_height = tl.cdiv(height, stride_y)
    out_width = tl.cdiv(width, stride_x)
    tiles_x = tl.cdiv(out_width, block_x)
    channel = tl.arange(0, block_c)
    has_channel = channel < channels
    zeros = tl.zeros((block_y * block_x, block_c), tl.float32)
    frame = tl.cast(height * width, tl.int64) * token
    grad_frame = tl.cast(out_height * out_width, tl.int64) * step
    sums = (zeros,) * 27
    for tile in range(first_tile, last_tile):
        row, column = _cells(tile, tiles_x, block_y, block_x)
        valid = (row < out_height) & (column < out_width)
        present = valid[:, None] & has_channel[None, :]
        arriving = grad + (1 + row * out_width + column).to(tl.int64)[:, None] * step + channel[None, :]
        row *= stride_y
        column *= stride_x
        centre = x + (1 + row * width + column).to(tl.int64)[:, None] * token + channel[None, :]
        if stride_t == 1:
            before = zeros
            here = tl.load(arriving, mask=present, other=0.0).to(tl.float32)
            for t in range(frames):
                after = tl.load(
                    arriving + (t + 1) * grad_frame, mask=present & (t + 1 < frames), other=0.0
                ).to(tl.float32)
                sums = _correlate(centre + t * frame, token, row, column, valid, before, here, after, sums,
                                  has_channel, height, width, True, 0)  # fmt: skip
                before = here
                here = after
        else:
            for t in range(out_frames):
                here = tl.load(arriving + t * grad_frame, mask=present, other=0.0).to(tl.float32)
                for kt in tl.static_range(3):
                    source_t = t * stride_t + (kt - 1)
                    seen = valid & (source_t >= 0) & (source_t < frames)
                    sums = _correlate(centre + source_t * frame, token, row, column, seen, here, here, here,
                                      sums, has_channel, height, width, False, kt)  # fmt: skip
    for tap in tl.static_range(9):
        for kt in tl.static_range(3):
            tl.store(partial + (kt * 9 + tap) * channels + channel, tl.sum(sums[tap * 3 + kt], 0),
                     mask=has_channel)  # fmt: skip


@triton.jit
def weight_gradient_kernel(
    q_source, kv_source, q_batch, q_token, kv_batch, kv_token, key_offset, value_offset, grad_q, grad_k,
    grad_v, partial, heads, q_chunks, kv_chunks, q_per_chunk, kv_per_chunk, q_rows,
    kv_rows, q_frames, q_height, q_width, kv_frames, kv_height, kv_width,
    q_stride_t: tl.constexpr, q_stride_y: tl.constexpr, q_stride_x: tl.constexpr,
    kv_stride_t: tl.constexpr, kv_stride_y: tl.constexpr, kv_stride_x: tl.constexpr,
    channels: tl.constexpr, block_c: tl.constexpr, block_y: tl.constexpr, block_x: tl.constexpr,
):  # fmt: skip
    """Partial sums (program, 27, channels): programs are (clip, head, chunks of k, of v, of q)."""
    program = tl.program_id(0)
    q_tiles = _plane_tiles(q_height, q_width, q_stride_y, q_stride_x, block_y, block_x)
    kv_tiles = _plane_tiles(kv_height, kv_width, kv_stride_y, kv_stride_x, block_y, block_x)
    chunks = 2 * kv_chunks + q_chunks
    chunk = program % chunks
    batch = (program // chunks // heads).to(tl.int64)
    head = program // chunks % heads
    step = heads * channels
    partial += program.to(tl.int64) * 27 * channels
    if chunk < 2 * kv_chunks:
        source = kv_source + batch * kv_batch + head * channels
        if chunk < kv_chunks:
            source += key_offset
            grad = grad_k
        else:
            source += value_offset
            grad = grad_v
        first = chunk % kv_chunks * kv_per_chunk
        _weight_sums(source, kv_token, grad + (batch * kv_rows * heads + head) * channels, step, partial,
                     first, tl.minimum(first + kv_per_chunk, kv_tiles), kv_frames, kv_height, kv_width,
                     kv_stride_t, kv_stride_y, kv_stride_x, channels, block_c, block_y, block_x)  # fmt: skip
    else:
        first = (chunk - 2 * kv_chunks) * q_per_chunk
        _weight_sums(q_source + batch * q_batch + head * channels, q_token,
                     grad_q + (batch * q_rows * heads + head) * channels, step, partial, first,
                     tl.minimum(first + q_per_chunk, q_tiles), q_frames, q_height, q_width, q_stride_t,
                     q_stride_y, q_stride_x, channels, block_c, block_y, block_x)  # fmt: skip
