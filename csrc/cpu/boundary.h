// Errors on their way out of a kernel. A call of PyTorch's C interface that fails says which call it was, and an
// allocation of ours only that it failed: what the caller reads is PyTorch's own text, by which tools that look for a
// batch size that fits recognise that memory ran out.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <new>
#include <stdexcept>
#include <string>

#include "buffer.h"

namespace ifdd::cpu {

// What the last failed call of this thread said; empty where PyTorch is older than 2.13, which does not keep it.
inline std::string failure_of_torch() {
  using Text = const char* (*)();
  static const Text text = [] {
    Dl_info library{};
    if (dladdr(reinterpret_cast<const void*>(&torch_call_dispatcher), &library) == 0) return Text(nullptr);
    void* const handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Text>(handle == nullptr ? nullptr
                                                    : dlsym(handle, "torch_exception_get_what_without_backtrace"));
  }();
  return text == nullptr ? "" : text();
}

// A boxed kernel with its errors in PyTorch's words.
template <void (*boxed)(StableIValue*, uint64_t, uint64_t)>
void guarded(StableIValue* stack, uint64_t arguments, uint64_t results) {
  try {
    boxed(stack, arguments, results);
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(kOutOfMemory);
  } catch (const std::runtime_error& error) {
    const bool by_torch = std::string(error.what()).find("API call failed") != std::string::npos;
    const std::string cause = by_torch ? failure_of_torch() : "";
    if (cause.empty()) throw;
    throw std::runtime_error(cause);
  }
}

}  // namespace ifdd::cpu

#define IFDD_BOX(function) (&guarded<TORCH_BOX(function)>)
