// Products of bfloat16 matrices that fit the cache by the CPU's matrix tiles (AMX), for kernel files only. Sums are
// float32; the instruction treats subnormal numbers as zeros. Every CPU can run a stand-in for tests
// (IFDD_CPU_TILES=emulated), which replaces the instructions alone: packing, padding and addresses are the same code.
//
// A tile has 16 rows of 64 bytes. Left factors are rows of elements, right factors are packed: 512 elements for 16
// columns and 32 terms, each row of which holds two neighbouring terms of every column. Both are padded with zeros to
// multiples of kTileBlock.
#pragma once

#include "ifdd/vector/loops.h"

#if defined(IFDD_AVX512) && defined(IFDD_HAVE_TILES)
#define IFDD_MATRIX_TILES 1
#define IFDD_TILE_TARGET __attribute__((target("amx-tile,amx-bf16")))
#else
#define IFDD_TILE_TARGET
#endif

namespace ifdd::cpu::IFDD_ISA {

constexpr int64_t kTileSide = 16, kTileElements = kTileSide * kTileBlock;
static_assert(kTileBlock == 2 * kTileSide);

#if defined(IFDD_MATRIX_TILES)
// Sums of a square of kTileBlock, four tiles, in the tiles' registers.
struct CpuTiles {
  // Eight tiles of full size, until end.
  IFDD_TILE_TARGET static void begin() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
  }
  IFDD_TILE_TARGET static void end() { _tile_release(); }

  IFDD_TILE_TARGET IFDD_INLINE void zero() {
    // Loads of tiles do not tell the compiler that they read memory.
    __asm__ volatile("" : : : "memory");
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  // += the products of two tiles of rows, `stride` apart, with two tiles of columns.
  IFDD_TILE_TARGET IFDD_INLINE void add_products(const bf16* above, const bf16* below, int64_t stride, const bf16* left,
                                                 const bf16* right) {
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(bf16));
    _tile_loadd(4, above, bytes);
    _tile_loadd(5, below, bytes);
    _tile_loadd(6, left, 64);
    _tile_loadd(7, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  IFDD_TILE_TARGET IFDD_INLINE void store(float* sums) {
    constexpr int64_t row = kTileBlock * sizeof(float);
    _tile_stored(0, sums, row);
    _tile_stored(1, sums + kTileSide, row);
    _tile_stored(2, sums + kTileSide * kTileBlock, row);
    _tile_stored(3, sums + kTileSide * kTileBlock + kTileSide, row);
  }
};
#endif

// The same in plain C++, in the order that Intel's manual gives for TDPBF16PS: the products of a block's even terms and
// those of its odd terms are summed in two chains of fused multiply-adds that start at zero, their sums are added, and
// that to the tile. Every rounding is to nearest even, subnormal inputs and results are zeros. A product of two
// bfloat16 numbers fits float32, so a separate addition rounds like a fused one, but for products below 2^-134 (their
// last bits are lost) and from 2^128 on (infinite, where the CPU may still add a negative sum). NaNs have other bits.
struct EmulatedTiles {
  float memory[kTileBlock * kTileBlock];

  static void begin() {}
  static void end() {}

  IFDD_INLINE Bits<float> flushed(Bits<float> bits) { return (bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits; }
  IFDD_INLINE Vec<float> flushed(Vec<float> v) { return bits_as<Vec<float>>(flushed(bits_as<Bits<float>>(v))); }
  // From pairs of elements, the even ones in the lower halves.
  IFDD_INLINE Vec<float> even_terms(Bits<float> pairs) { return bits_as<Vec<float>>(flushed(pairs << 16)); }
  IFDD_INLINE Vec<float> odd_terms(Bits<float> pairs) { return bits_as<Vec<float>>(flushed(pairs & 0xffff0000u)); }

  // A vector of a tile's row. The row of the right factor with terms 2k and 2k + 1 is k * kTileBlock behind `column`.
  IFDD_INLINE void add_products(const bf16* row, const bf16* column, float* sums) {
    Vec<float> even{}, odd{};
    for (int64_t k = 0; k < kTileSide; ++k) {
      uint32_t pair;
      Bits<float> pairs;
      __builtin_memcpy(&pair, row + 2 * k, sizeof pair);
      __builtin_memcpy(&pairs, column + k * kTileBlock, sizeof pairs);
      const Bits<float> factors = Bits<float>{} + pair;
      even = flushed(even + even_terms(factors) * even_terms(pairs));
      odd = flushed(odd + odd_terms(factors) * odd_terms(pairs));
    }
    write(sums, flushed(read(sums) + flushed(even + odd)));
  }

  void zero() {
    for (float& sum : memory) sum = 0;
  }
  void add_products(const bf16* above, const bf16* below, int64_t stride, const bf16* left, const bf16* right) {
    for (int64_t r = 0; r < kTileBlock; ++r) {
      const bf16* row = r < kTileSide ? above + r * stride : below + (r - kTileSide) * stride;
      for (int64_t x = 0; x < kTileSide; x += kWidth<float>) {
        float* sums = memory + r * kTileBlock + x;
        add_products(row, left + 2 * x, sums);
        add_products(row, right + 2 * x, sums + kTileSide);
      }
    }
  }
  void store(float* sums) const { __builtin_memcpy(sums, memory, sizeof memory); }
};

// sums (32, 32) = a (32, 32 blocks) b, b in two packed columns of blocks.
template <class Tiles>
IFDD_TILE_TARGET __attribute__((noinline)) static void tile_sums(const bf16* a, int64_t a_stride, const bf16* b,
                                                                 int64_t blocks, float* sums) {
  const bf16 *below = a + kTileSide * a_stride, *right = b + blocks * kTileElements;
  Tiles tiles;
  tiles.zero();
  for (int64_t k = 0; k < blocks; ++k) {
    const int64_t terms = k * kTileBlock, elements = k * kTileElements;
    tiles.add_products(a + terms, below + terms, a_stride, b + elements, right + elements);
  }
  tiles.store(sums);
}

// c (m, n) = alpha a b (+ c), written in whole vectors; `sums` is memory for one square of kTileBlock.
template <class Tiles, bool add>
static void multiply_tiles(int64_t m, int64_t n, int64_t depth, float alpha, const bf16* a, int64_t a_stride,
                           const bf16* b, float* sums, float* c, int64_t c_stride) {
  const int64_t blocks = round_up(depth, kTileBlock) / kTileBlock;
  for (int64_t j = 0; j < n; j += kTileBlock) {
    for (int64_t i = 0; i < m; i += kTileBlock) {
      tile_sums<Tiles>(a + i * a_stride, a_stride, b + j / kTileSide * blocks * kTileElements, blocks, sums);
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
IFDD_INLINE void tile_rows(const float* rows, int64_t stride, int64_t count, int64_t total, int64_t d, bf16* out) {
  const int64_t width = round_up(d, kTileBlock);
  for (int64_t i = 0; i < total; ++i) {
    const int64_t used = i < count ? d : 0;
    narrow(rows + i * stride, used, out + i * width);
    for (int64_t c = used; c < width; ++c) out[i * width + c] = bf16{0};
  }
}

// The left factor whose rows are the columns of the rows given; these are read in whole vectors.
IFDD_INLINE void tile_transposed(const float* rows, int64_t stride, int64_t count, int64_t d, bf16* out) {
  constexpr int L = kWidth<float>;
  const int64_t width = round_up(count, kTileBlock);
  for (int64_t j = 0; j < round_up(d, kTileBlock); j += L) {
    for (int64_t i = 0; i < width; i += L) {
      Vec<float> block[L];
#pragma GCC unroll 16
      for (int r = 0; r < L; ++r) {
        block[r] = Vec<float>{};
        if (i + r < count && j < d) block[r] = first_lanes(read(rows + (i + r) * stride + j), d - j);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) write(out + (j + l) * width + i, block[l]);
    }
  }
}

// The right factor whose columns are the rows given: pairs of terms, transposed.
IFDD_INLINE void tile_columns(const bf16* rows, int64_t stride, int64_t count, int64_t d, bf16* out) {
  constexpr int L = kWidth<float>;
  const int64_t width = round_up(d, kTileBlock);
  for (int64_t first = 0; first < round_up(count, kTileBlock); first += L) {
    bf16* columns = out + first / kTileSide * kTileSide * width + first % kTileSide * 2;
    for (int64_t k = 0; k < width; k += 2 * L) {
      const int64_t left = d - k, terms = left < 0 ? 0 : left < 2 * L ? left : 2 * L;
      Bits<float> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) {
        bf16 pairs[2 * L] = {};
        if (first + i < count) __builtin_memcpy(pairs, rows + (first + i) * stride + k, terms * sizeof(bf16));
        __builtin_memcpy(&block[i], pairs, sizeof pairs);
      }
      transpose(block);
#pragma GCC unroll 16
      for (int l = 0; l < L; ++l) __builtin_memcpy(columns + (k / 2 + l) * kTileBlock, &block[l], sizeof block[l]);
    }
  }
}

// The right factor with the rows given.
template <class T>
IFDD_INLINE void tile_terms(const T* rows, int64_t stride, int64_t count, int64_t d, bf16* out) {
  constexpr int L = kWidth<float>;
  const int64_t depth = round_up(count, kTileBlock);
  for (int64_t k = 0; k < depth; k += 2) {
    for (int64_t c = 0; c < round_up(d, kTileBlock); c += L) {
      bf16 pair[2][L];
      for (int64_t r = 0; r < 2; ++r) {
        const T* in = rows + (k + r) * stride + c;
        Vec<float> v{};
        if (k + r < count && c < d) v = c + L <= d ? read(in) : Partial{static_cast<int>(d - c)}.read(in);
        write(pair[r], v);
      }
      bf16* line = out + c / kTileSide * kTileSide * depth + k / 2 * kTileBlock + c % kTileSide * 2;
      for (int l = 0; l < L; ++l) {
        line[2 * l] = pair[0][l];
        line[2 * l + 1] = pair[1][l];
      }
    }
  }
}

}  // namespace ifdd::cpu::IFDD_ISA
