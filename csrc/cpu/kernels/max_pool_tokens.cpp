// Inner loops of max_pool_tokens; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "max_pool_tokens.h"

#include "ifdd/vector/loops.h"

namespace ifdd::cpu::IFDD_ISA {
namespace {

// Channels whose running maxima stay in the first-level cache.
constexpr int64_t kBlock = 256;

struct Range {
  int64_t begin, end;
};

// Input cells of the window of output o.
IFDD_INLINE Range window(const PoolAxis& axis, int64_t o) {
  const int64_t first = o * axis.stride - axis.before, last = first + axis.kernel;
  return {first > 0 ? first : 0, last < axis.in ? last : axis.in};
}

// Outputs whose windows hold input cell i.
IFDD_INLINE Range covering(const PoolAxis& axis, int64_t i) {
  const int64_t past = i + axis.before;  // of the window that begins at the grid's (virtual) first cell
  const int64_t first = past < axis.kernel ? 0 : (past - axis.kernel) / axis.stride + 1;
  const int64_t last = past / axis.stride + 1;
  return {first, last < axis.out ? last : axis.out};
}

template <class Body>
IFDD_INLINE void for_cells(const Range& t, const Range& y, const Range& x, const PoolAxis& along_y,
                           const PoolAxis& along_x, int64_t PoolAxis::* extent, const Body& body) {
  for (int64_t i = t.begin; i < t.end; ++i) {
    for (int64_t j = y.begin; j < y.end; ++j) {
      for (int64_t k = x.begin; k < x.end; ++k) body((i * (along_y.*extent) + j) * (along_x.*extent) + k);
    }
  }
}

}  // namespace

template <class T>
void max_pool_tokens(const MaxPool& size, const T* in, int64_t clip, int64_t token, int64_t begin, int64_t end, T* out,
                     int32_t* rows) {
  using A = acc_t<T>;
  const int64_t C = size.C, cells = size.out_cells();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / cells, cell = unit % cells;
    const T* clip_in = in + b * clip;
    if (cell == 0) {
      T* to = out + b * (1 + cells) * C;
      for_each(C, [&](int64_t c) { to[c] = clip_in[c]; });
    }
    const Range t = window(size.t, cell / (size.y.out * size.x.out));
    const Range y = window(size.y, cell / size.x.out % size.y.out), x = window(size.x, cell % size.x.out);
    const int64_t first = (t.begin * size.y.in + y.begin) * size.x.in + x.begin;
    for (int64_t start = 0; start < C; start += kBlock) {
      const int64_t count = C - start < kBlock ? C - start : kBlock;
      A largest[kBlock];
      int32_t from[kBlock];
      const T* row = clip_in + (1 + first) * token + start;
      for_each(count, [&](int64_t c) {
        largest[c] = load(row + c);
        from[c] = static_cast<int32_t>(1 + first);
      });
      for_cells(t, y, x, size.y, size.x, &PoolAxis::in, [&](int64_t other) {
        const T* candidate = clip_in + (1 + other) * token + start;
        const auto place = static_cast<int32_t>(1 + other);
        for_each(count, [&](int64_t c) {
          const A value = load(candidate + c);
          const bool take = value > largest[c] || value != value;
          largest[c] = take ? value : largest[c];
          from[c] = take ? place : from[c];
        });
      });
      T* to = out + (b * (1 + cells) + 1 + cell) * C + start;
      int32_t* to_rows = rows + unit * C + start;
      for_each(count, [&](int64_t c) {
        store(to + c, largest[c]);
        to_rows[c] = from[c];
      });
    }
  }
}

template <class T>
void max_pool_tokens_backward(const MaxPool& size, const T* grad, const int32_t* rows, int64_t begin, int64_t end,
                              T* grad_x) {
  using A = acc_t<T>;
  const int64_t C = size.C, in_cells = size.in_cells(), out_cells = size.out_cells();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t b = unit / in_cells, cell = unit % in_cells;
    const T* clip_grad = grad + b * (1 + out_cells) * C;
    T* clip_grad_x = grad_x + b * (1 + in_cells) * C;
    if (cell == 0) for_each(C, [&](int64_t c) { clip_grad_x[c] = clip_grad[c]; });
    const Range t = covering(size.t, cell / (size.y.in * size.x.in));
    const Range y = covering(size.y, cell / size.x.in % size.y.in), x = covering(size.x, cell % size.x.in);
    const auto place = static_cast<int32_t>(1 + cell);
    for (int64_t start = 0; start < C; start += kBlock) {
      const int64_t count = C - start < kBlock ? C - start : kBlock;
      A sum[kBlock];
      for_each(count, [&](int64_t c) { sum[c] = 0; });
      for_cells(t, y, x, size.y, size.x, &PoolAxis::out, [&](int64_t other) {
        const T* part = clip_grad + (1 + other) * C + start;
        const int32_t* from = rows + (b * out_cells + other) * C + start;
        for_each(count, [&](int64_t c) { sum[c] += from[c] == place ? load(part + c) : A(0); });
      });
      T* to = clip_grad_x + (1 + cell) * C + start;
      for_each(count, [&](int64_t c) { store(to + c, sum[c]); });
    }
  }
}

#define INSTANTIATE(T)                                                                                          \
  template void max_pool_tokens<T>(const MaxPool&, const T*, int64_t, int64_t, int64_t, int64_t, T*, int32_t*); \
  template void max_pool_tokens_backward<T>(const MaxPool&, const T*, const int32_t*, int64_t, int64_t, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE

}  // namespace ifdd::cpu::IFDD_ISA
