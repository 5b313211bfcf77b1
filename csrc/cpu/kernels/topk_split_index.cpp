// Inner loops of topk_split_index; compiled once per instruction set (see ifdd/isa.h), no standard library code here.
#include "topk_split_index.h"

#include "ifdd/pooling.h"
#include "ifdd/vector/loops.h"

namespace ifdd::cpu::IFDD_ISA {

template <class T>
void topk_mean(const TopkScores<T>& op, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const TokenSizes& size = op.size;
  const A share = 1 / static_cast<A>(size.T);
  for (int64_t cell = begin; cell < end; ++cell) {
    const T* x = op.x.data + cell / size.N * op.x.batch + cell % size.N * op.x.token;
    A* __restrict__ mean = op.mean + cell * size.C;
    for_each(size.C, [&](int64_t j) { mean[j] = 0; });
    for (int64_t t = 0; t < size.T; ++t) {
      const T* __restrict__ row = x + t * op.x.frame;
      for_each(size.C, [&](int64_t j) { mean[j] += load(row + j); });
    }
    for_each(size.C, [&](int64_t j) { mean[j] *= share; });
  }
}

template <class A>
void topk_pool(const TokenSizes& size, const A* mean, int64_t begin, int64_t end, A* scratch, A* direction) {
  const int64_t C = size.C, clip = size.N * C;
  for (int64_t b = begin; b < end; ++b) {
    A* __restrict__ out = direction + b * clip;
    for_each(size.cells() * C, [&](int64_t i) { scratch[i] = 0; });
    for_each(clip, [&](int64_t i) { out[i] = 0; });
    for_each_window<A>(size.H, size.W, size.P, [&](int64_t p, Window rows, Window columns, A share) {
      A* __restrict__ pooled = scratch + p * C;
      for (int64_t y = rows.first; y < rows.last; ++y) {
        for (int64_t c = columns.first; c < columns.last; ++c) {
          const A* __restrict__ in = mean + b * clip + (y * size.W + c) * C;
          for_each(C, [&](int64_t j) { pooled[j] += share * in[j]; });
        }
      }
      for (int64_t y = rows.first; y < rows.last; ++y) {
        for (int64_t c = columns.first; c < columns.last; ++c) {
          A* __restrict__ cell = out + (y * size.W + c) * C;
          for_each(C, [&](int64_t j) { cell[j] += share * pooled[j]; });
        }
      }
    });
  }
}

template <class T>
void topk_products(const TopkScores<T>& op, int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const TokenSizes& size = op.size;
  for (int64_t cell = begin; cell < end; ++cell) {
    const T* x = op.x.data + cell / size.N * op.x.batch + cell % size.N * op.x.token;
    const A* __restrict__ direction = op.direction + cell * size.C;
    for (int64_t t = 0; t < size.T; ++t) {
      const T* __restrict__ row = x + t * op.x.frame;
      LaneSum<A> sum;
      for_lanes(size.C, [&](int64_t j, int l) { sum.lane[l] += load(row + j) * direction[j]; });
      op.partial[cell * size.T + t] = total(sum);
    }
  }
}

#define INSTANTIATE(T)                                                \
  template void topk_mean<T>(const TopkScores<T>&, int64_t, int64_t); \
  template void topk_products<T>(const TopkScores<T>&, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bf16)
INSTANTIATE(fp16)
#undef INSTANTIATE
template void topk_pool<float>(const TokenSizes&, const float*, int64_t, int64_t, float*, float*);
template void topk_pool<double>(const TokenSizes&, const double*, int64_t, int64_t, double*, double*);

}  // namespace ifdd::cpu::IFDD_ISA
