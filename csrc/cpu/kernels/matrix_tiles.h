// Products of bfloat16 matrices that fit the cache by the CPU's matrix tiles (AMX), for kernel files only. Sums are
// float32; the instruction treats subnormal numbers as zeros.
//
// A tile has 16 rows of 64 bytes. Left factors are rows of elements, right factors are packed: 512 elements for 16
// columns and 32 terms, each row of which holds two neighbouring terms of every column. Both are padded with zeros to
// multiples of kTileBlock.
#pragma once

#include "ifdd/vector/vector.h"

#if defined(IFDD_AVX512) && defined(__linux__) && (defined(__clang__) || __GNUC__ >= 11)
#define IFDD_MATRIX_TILES 1
#define IFDD_TILE_TARGET __attribute__((noinline, unused, target("amx-tile,amx-bf16")))
#else
#define IFDD_TILE_TARGET __attribute__((unused))
#endif

namespace ifdd::cpu::IFDD_ISA {

// Whether this copy of the kernels has them; ifdd::matrix_tiles() says whether the machine does.
#if defined(IFDD_MATRIX_TILES)
constexpr bool kMatrixTiles = true;
#else
constexpr bool kMatrixTiles = false;
#endif

constexpr int64_t kTileSide = 16, kTileElements = kTileSide * kTileBlock;
static_assert(kTileBlock == 2 * kTileSide);

// Eight tiles of full size, until end_tiles.
IFDD_TILE_TARGET static void begin_tiles() {
#if defined(IFDD_MATRIX_TILES)
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config;
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
#endif
}

IFDD_TILE_TARGET static void end_tiles() {
#if defined(IFDD_MATRIX_TILES)
  _tile_release();
#endif
}

// sums (32, 32) = a (32, 32 blocks) b, b in two packed columns of blocks.
IFDD_TILE_TARGET static void tile_sums([[maybe_unused]] const bf16* a, [[maybe_unused]] int64_t a_stride,
                                       [[maybe_unused]] const bf16* b, [[maybe_unused]] int64_t blocks,
                                       [[maybe_unused]] float* sums) {
#if defined(IFDD_MATRIX_TILES)
  // Loads of tiles do not tell the compiler that they read memory.
  __asm__ volatile("" : : : "memory");
  const bf16 *below = a + kTileSide * a_stride, *right = b + blocks * kTileElements;
  const int64_t stride = a_stride * static_cast<int64_t>(sizeof(bf16));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < blocks; ++k) {
    _tile_loadd(4, a + k * kTileBlock, stride);
    _tile_loadd(5, below + k * kTileBlock, stride);
    _tile_loadd(6, b + k * kTileElements, 64);
    _tile_loadd(7, right + k * kTileElements, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  constexpr int64_t row = kTileBlock * sizeof(float);
  _tile_stored(0, sums, row);
  _tile_stored(1, sums + kTileSide, row);
  _tile_stored(2, sums + kTileSide * kTileBlock, row);
  _tile_stored(3, sums + kTileSide * kTileBlock + kTileSide, row);
#endif
}

// c (m, n) = alpha a b (+ c), written in whole vectors; `sums` is memory for one square of kTileBlock.
template <bool add>
static void multiply_tiles(int64_t m, int64_t n, int64_t depth, float alpha, const bf16* a, int64_t a_stride,
                           const bf16* b, float* sums, float* c, int64_t c_stride) {
  const int64_t blocks = round_up(depth, kTileBlock) / kTileBlock;
  for (int64_t j = 0; j < n; j += kTileBlock) {
    for (int64_t i = 0; i < m; i += kTileBlock) {
      tile_sums(a + i * a_stride, a_stride, b + j / kTileSide * blocks * kTileElements, blocks, sums);
      const int64_t rows = m - i < kTileBlock ? m - i : kTileBlock;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t x = 0; x < kTileBlock && j + x < n; x += kWidth<float>) {
          float* out = c + (i + r) * c_stride + j + x;
          const Vec<float> product = alpha * read(sums + r * kTileBlock + x);
          write(out, add ? Vec<float>(read(out) + product) : product);
        }
      }
    }
  }
}

// Rows of d elements, `stride` apart, as a left factor of `total` rows.
IFDD_INLINE void tile_rows(const bf16* rows, int64_t stride, int64_t count, int64_t total, int64_t d, bf16* out) {
  const int64_t width = round_up(d, kTileBlock);
  for (int64_t i = 0; i < total; ++i) {
    const int64_t used = i < count ? d : 0;
    for (int64_t c = 0; c < used; ++c) out[i * width + c] = rows[i * stride + c];
    for (int64_t c = used; c < width; ++c) out[i * width + c] = bf16{0};
  }
}

// The right factor whose columns are the rows given.
IFDD_INLINE void tile_columns(const bf16* rows, int64_t stride, int64_t count, int64_t d, bf16* out) {
  const int64_t width = round_up(d, kTileBlock);
  for (int64_t j = 0; j < round_up(count, kTileBlock); ++j) {
    bf16* column = out + j / kTileSide * kTileSide * width + j % kTileSide * 2;
    for (int64_t k = 0; k < width; ++k) {
      column[k / 2 * kTileBlock + k % 2] = j < count && k < d ? rows[j * stride + k] : bf16{0};
    }
  }
}

// The right factor with the rows given.
IFDD_INLINE void tile_terms(const bf16* rows, int64_t stride, int64_t count, int64_t d, bf16* out) {
  const int64_t depth = round_up(count, kTileBlock);
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t c = 0; c < round_up(d, kTileBlock); ++c) {
      out[c / kTileSide * kTileSide * depth + k / 2 * kTileBlock + c % kTileSide * 2 + k % 2] =
          k < count && c < d ? rows[k * stride + c] : bf16{0};
    }
  }
}

}  // namespace ifdd::cpu::IFDD_ISA
