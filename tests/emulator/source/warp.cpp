#include "emulator/warp.h"

#include <cstring>

#include "ifdd/scalar.h"

namespace emulator {
namespace {

constexpr unsigned kAll = ~0u;

struct Shuffle {
  uint64_t value;  // in and out
  int source;      // lane
};

void shuffle(void* const* records, unsigned lanes) {
  uint64_t values[32];
  for (int lane = 0; lane < 32; ++lane) {
    values[lane] = lanes >> lane & 1 ? static_cast<const Shuffle*>(records[lane])->value : ~uint64_t{0};
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) {
      auto* own = static_cast<Shuffle*>(records[lane]);
      own->value = values[own->source];
    }
  }
}

struct Ballot {
  bool value;
  unsigned votes;
};

void vote(void* const* records, unsigned lanes) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1 && static_cast<const Ballot*>(records[lane])->value) votes |= 1u << lane;
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) static_cast<Ballot*>(records[lane])->votes = votes;
  }
}

struct Fragments {
  Site site;
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  Element element;
};

// Element `place` of a register that holds one float or two halves.
float element_of(uint32_t bits, int place, Element element) {
  const uint16_t half = static_cast<uint16_t>(place == 0 ? bits : bits >> 16);
  const ifdd::fp16 fp16{half};
  const ifdd::bf16 bf16{half};
  switch (element) {
    case Element::half:
      return ifdd::load(&fp16);
    case Element::bfloat16:
      return ifdd::load(&bf16);
    default: {
      const uint32_t seen = bits & ~0x1fffu;
      float value;
      std::memcpy(&value, &seen, sizeof value);
      return value;
    }
  }
}

void multiply(void* const* records, unsigned lanes) {
  const auto lane_at = [&](int lane) { return static_cast<const Fragments*>(records[lane]); };
  const Fragments& any = *lane_at(__builtin_ctz(lanes));
  if (lanes != kAll) fail(any.site, "needs all lanes of the warp, some have ended");
  const Element element = any.element;
  const int packed = element == Element::tf32 ? 1 : 2;  // elements of a register
  const int depth = 8 * packed;
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, column = lane % 4 * packed;
    for (int place = 0; place < packed; ++place) {
      for (int i = 0; i < 4; ++i) {
        a[group + i % 2 * 8][column + place + i / 2 * depth / 2] = element_of(lane_at(lane)->a[i], place, element);
      }
      for (int i = 0; i < 2; ++i) {
        b[column + place + i * depth / 2][group] = element_of(lane_at(lane)->b[i], place, element);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = lane_at(lane)->d[i];
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
      lane_at(lane)->d[i] = sum;
    }
  }
}

struct Rows {
  Site site;
  uint32_t* r;
  const MatrixRow* row;
  bool transposed;
};

void distribute(void* const* records, unsigned lanes) {
  const auto lane_at = [&](int lane) { return static_cast<const Rows*>(records[lane]); };
  const Rows& any = *lane_at(__builtin_ctz(lanes));
  if (lanes != kAll) fail(any.site, "needs all lanes of the warp, some have ended");
  for (int lane = 0; lane < 32; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t pair[2];
      for (int place = 0; place < 2; ++place) {
        const int across = lane % 4 * 2 + place, along = lane / 4;
        const int row = any.transposed ? across : along, column = any.transposed ? along : across;
        pair[place] = lane_at(matrix * 8 + row)->row->element[column];
      }
      lane_at(lane)->r[matrix] = pair[0] | pair[1] << 16;
    }
  }
}

}  // namespace

uint64_t exchange_bits(const Site& site, unsigned mask, uint64_t value, int source) {
  Shuffle record{value, source};
  warp_meet(site, mask, &record, &shuffle);
  return record.value;
}

unsigned ballot(const Site& site, unsigned mask, bool value) {
  Ballot record{value, 0};
  warp_meet(site, mask, &record, &vote);
  return record.votes;
}

void mma(const Site& site, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Element element) {
  Fragments record{site, d, a, b, element};
  warp_meet(site, kAll, &record, &multiply);
}

void load_matrices(const Site& site, uint32_t (&r)[4], const MatrixRow& row, bool transposed) {
  Rows record{site, r, &row, transposed};
  warp_meet(site, kAll, &record, &distribute);
}

}  // namespace emulator
