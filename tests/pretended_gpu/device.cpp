// A CUDA device for a CPU build of torch: tensors on it lie in host memory of their own, and each
// operation runs the CPU's kernel on aliases of them. What a real device would refuse is refused:
// tensors of both places in one operation.

#include <cstring>
#include <functional>
#include <unordered_map>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/op_registration/adaption.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using Sizes = c10::SymIntArrayRef;

const c10::Device DEVICE(c10::DeviceType::CUDA, 0);
const c10::Stream STREAM(c10::Stream::DEFAULT, DEVICE);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return STREAM; }
  c10::Stream exchangeStream(c10::Stream) const override { return STREAM; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
c10::impl::DeviceGuardImplRegistrar guard(c10::DeviceType::CUDA, new Guard());

// New memory is full of NaN: nothing may count on zeros.
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t num_bytes) override {
    void* data = num_bytes ? c10::alloc_cpu(num_bytes) : nullptr;
    if (data) std::memset(data, 0xFF, num_bytes);
    return {data, data, &free, DEVICE};
  }
  static void free(void* data) {
    if (data) c10::free_cpu(data);
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, size_t num_bytes) const override {
    std::memcpy(to, from, num_bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &memory);

bool is_there(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == c10::DeviceType::CUDA;
}

// The same memory as a tensor of another place.
Tensor moved(const Tensor& tensor, c10::Device device, c10::DispatchKey key) {
  auto storage = tensor.storage();
  c10::DataPtr data(
      storage.mutable_data(),
      new Tensor(tensor),
      [](void* held) { delete static_cast<Tensor*>(held); },
      device);
  c10::Storage shared(
      c10::Storage::use_byte_size_t(),
      storage.nbytes(),
      std::move(data),
      c10::GetAllocator(device.type()),
      /*resizable=*/true);
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(shared), c10::DispatchKeySet(key), tensor.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(
      tensor.sizes(), tensor.strides(), tensor.storage_offset());
  return made;
}

Tensor here(const Tensor& tensor) {
  return is_there(tensor) ? moved(tensor, at::kCPU, c10::DispatchKey::CPU) : tensor;
}

Tensor there(const Tensor& tensor) {
  const bool is_moved = tensor.defined() && !is_there(tensor);
  return is_moved ? moved(tensor, DEVICE, c10::DispatchKey::CUDA) : tensor;
}

// Every tensor in some values of a stack, also those in lists.
void replace(torch::jit::Stack* stack, size_t begin, const std::function<Tensor(Tensor)>& by) {
  for (size_t index = begin; index < stack->size(); index++) {
    auto& value = (*stack)[index];
    if (value.isTensor()) {
      value = by(value.toTensor());
    } else if (value.isTensorList()) {
      auto tensors = value.toTensorVector();
      for (auto& tensor : tensors) tensor = by(tensor);
      value = c10::IValue(tensors);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> tensors;
      for (std::optional<Tensor> tensor : value.toOptionalTensorList())
        tensors.push_back(tensor ? std::optional<Tensor>(by(*tensor)) : std::nullopt);
      value = c10::IValue(tensors);
    } else if (value.isDevice()) {
      value = c10::IValue(c10::Device(at::kCPU));
    }
  }
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string name = op.schema().name();
  // Numbers may lie anywhere, and so may what picks elements.
  const bool picks = name.rfind("aten::index", 0) == 0 || name.rfind("aten::_index", 0) == 0;
  std::unordered_map<c10::TensorImpl*, Tensor> origins;
  const Tensor* stray = nullptr;
  std::vector<Tensor> strays;
  replace(stack, stack->size() - op.schema().arguments().size(), [&](Tensor tensor) {
    if (!is_there(tensor)) {
      if (tensor.defined() && tensor.dim() > 0 && !picks) strays.push_back(tensor);
      return tensor;
    }
    Tensor found = here(tensor);
    origins[found.unsafeGetTensorImpl()] = tensor;
    return found;
  });
  if (!strays.empty() && !origins.empty()) stray = &strays.front();
  TORCH_CHECK(!stray, name, ": expected all tensors to be on one device; ", stray->sizes(), " is on the host");
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  replace(stack, stack->size() - op.schema().returns().size(), [&](Tensor tensor) {
    auto found = tensor.defined() ? origins.find(tensor.unsafeGetTensorImpl()) : origins.end();
    if (found == origins.end()) return there(tensor);
    Tensor origin = found->second;
    if (origin.sizes() != tensor.sizes() || origin.strides() != tensor.strides()) {  // `out=` grew
      auto* target = origin.unsafeGetTensorImpl();
      target->set_storage_keep_dtype(there(tensor).storage());
      target->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
    }
    return origin;
  });
}

// Operations on places, not on numbers

at::ScalarType dtype_of(std::optional<at::ScalarType> dtype) {
  return dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype()));
}

Tensor empty(
    Sizes sizes,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device>,
    std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(sizes),
      &memory,
      c10::DispatchKeySet(c10::DispatchKey::CUDA),
      dtype_of(dtype),
      format);
}

Tensor empty_strided(
    Sizes sizes,
    Sizes strides,
    std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>,
    std::optional<at::Device>,
    std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(sizes),
      C10_AS_INTARRAYREF_SLOW(strides),
      &memory,
      c10::DispatchKeySet(c10::DispatchKey::CUDA),
      dtype_of(dtype));
}

Tensor& copy(Tensor& self, const Tensor& source, bool) {
  here(self).copy_(here(source));
  return self;
}

Tensor view(const Tensor& self, Sizes sizes) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(sizes));
}

Tensor as_strided(
    const Tensor& self, Sizes sizes, Sizes strides, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->expect_int();
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), start);
}

Tensor reshape_alias(const Tensor& self, Sizes sizes, Sizes strides) {
  return at::native::_reshape_alias(
      self, C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides));
}

Tensor& set_storage(
    Tensor& self, at::Storage source, c10::SymInt offset, Sizes sizes, Sizes strides) {
  auto* target = self.unsafeGetTensorImpl();
  target->set_storage_keep_dtype(source);
  target->set_sizes_and_strides(
      C10_AS_INTARRAYREF_SLOW(sizes), C10_AS_INTARRAYREF_SLOW(strides), offset.expect_int());
  return self;
}

const Tensor& resize(const Tensor& self, Sizes sizes, std::optional<at::MemoryFormat>) {
  auto made = empty(sizes, self.scalar_type(), {}, {}, {}, {});
  auto* target = self.unsafeGetTensorImpl();
  target->set_storage_keep_dtype(made.storage());
  target->set_sizes_contiguous(made.sizes());
  return self;
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("copy_", &copy);
  library.impl("view", &view);
  library.impl("as_strided", &as_strided);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("unfold", &at::native::unfold);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("resize_", &resize);
}
