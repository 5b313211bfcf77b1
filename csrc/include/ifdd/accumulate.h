// The type that sums of elements of type T are kept in.
#pragma once

namespace ifdd {

// float for all types but double.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulate<T>::type;

}  // namespace ifdd
