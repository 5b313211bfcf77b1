// Adaptive average pooling of an (H, W) grid to (P, P): output i of an axis averages the cells
// floor(i size / P) .. ceil((i + 1) size / P) - 1, which overlap where P does not divide the size, or exceeds it.
#pragma once

#include <cstdint>

#include "ifdd/isa.h"

namespace ifdd {

struct Window {
  int64_t first, last;
};

IFDD_INLINE Window window(int64_t i, int64_t size, int64_t out) {
  return {i * size / out, ((i + 1) * size + out - 1) / out};
}

// Calls body(p, rows, columns, 1 / number of cells) for every pooled cell p.
template <class A, class Body>
IFDD_INLINE void for_each_window(int64_t H, int64_t W, int64_t P, const Body& body) {
  for (int64_t i = 0; i < P; ++i) {
    const Window rows = window(i, H, P);
    for (int64_t j = 0; j < P; ++j) {
      const Window columns = window(j, W, P);
      const int64_t count = (rows.last - rows.first) * (columns.last - columns.first);
      body(i * P + j, rows, columns, 1 / static_cast<A>(count));
    }
  }
}

}  // namespace ifdd
