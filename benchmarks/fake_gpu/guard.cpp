// Makes a CPU build of PyTorch believe in a CUDA device that does nothing, and takes that back.
//
// Autograd asks a device for its current stream wherever a gradient is recorded or added up, and a CPU build has nobody
// to ask. With an answer, autograd and autocast treat fake CUDA tensors as a CUDA build does.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <new>

namespace {

struct Hooks final : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};

// What PyTorch has asked for once it keeps: the object stays where it is and changes its kind. It has no data.
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));

// One stream a device, and nothing to wait for.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Stream getStream(c10::Device device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, c10::Device(c10::DeviceType::CUDA, device.has_index() ? device.index() : 0));
  }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};

}  // namespace

extern "C" void ifdd_fake_cuda(bool there) {
  auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  if (there) {
    new (hooks) Hooks;
  } else {
    new (hooks) at::CUDAHooksInterface;
  }
  static const auto* guard = new Guard;  // guards outlive everything
  c10::impl::device_guard_impl_registry[static_cast<int>(c10::DeviceType::CUDA)].store(there ? guard : nullptr);
}
