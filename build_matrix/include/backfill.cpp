// The C functions that torch's stable ABI of 2.11 calls and older releases do not have, on top of their C++ interface.
//
// A binding written against the stable ABI is compiled once, with the newest headers, and linked with one object of
// this file for each older torch: what the binding calls is here or in that torch. Everything is hidden inside the
// library, so a torch that has some of these functions itself is not disturbed. Signatures and meaning are those of
// torch/csrc/stable/c/shim.h and torch/csrc/inductor/aoti_torch/c/shim.h; a value crosses the boundary in 64 bits
// ("boxed"), as torch/csrc/stable/stableivalue_conversions.h says. Handles made here are taken back here.
#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/jit_type.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/narrow.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/subtract.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#ifdef USE_CUDA
#include <ATen/cuda/CUDAContextLight.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace {

using Boxed = uint64_t;
using BoxedList = std::vector<Boxed>;
using BoxedKernel = void (*)(Boxed*, uint64_t, uint64_t);
using Error = int32_t;

template <class Body>
Error report(const char* function, const Body& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", function, error.what());
  } catch (...) {
    std::fprintf(stderr, "%s: an exception of an unknown type\n", function);
  }
  return 1;
}

#define REPORT(...) return report(__func__, [&] { __VA_ARGS__; })

template <class T>
Boxed box(const T& value) {
  static_assert(sizeof(T) <= sizeof(Boxed));
  Boxed boxed = 0;
  std::memcpy(&boxed, &value, sizeof(T));
  return boxed;
}

template <class T>
T unbox(Boxed boxed) {
  T value;
  std::memcpy(&value, &boxed, sizeof(T));
  return value;
}

// Takes back what `box` handed out as a pointer that owns.
template <class T>
T unbox_owned(Boxed boxed) {
  const std::unique_ptr<T> owner(unbox<T*>(boxed));
  return std::move(*owner);
}

Boxed from_ivalue(const c10::Type& type, const c10::IValue& value) {
  switch (type.kind()) {
    case c10::TypeKind::TensorType: return box(new at::Tensor(value.toTensor()));
    case c10::TypeKind::IntType: return box(value.toInt());
    case c10::TypeKind::FloatType: return box(value.toDouble());
    case c10::TypeKind::BoolType: return box(value.toBool());
    case c10::TypeKind::StringType: return box(new std::string(value.toStringRef()));
    case c10::TypeKind::DeviceObjType: {
      const c10::Device device = value.toDevice();
      const auto kind = uint32_t(static_cast<int8_t>(device.type()));
      return uint64_t(uint32_t(int32_t(device.index()))) | uint64_t(kind) << 32;
    }
    case c10::TypeKind::OptionalType:
      if (value.isNone()) return 0;
      return box(new Boxed(from_ivalue(*type.castRaw<c10::OptionalType>()->getElementType(), value)));
    case c10::TypeKind::ListType: {
      const c10::Type& element = *type.castRaw<c10::ListType>()->getElementType();
      auto list = std::make_unique<BoxedList>();
      for (const c10::IValue& item : value.toListRef()) list->push_back(from_ivalue(element, item));
      return box(list.release());
    }
    default: TORCH_CHECK(false, "the stable ABI of torch 2.11 has no ", type.str());
  }
}

c10::IValue to_ivalue(const c10::Type& type, Boxed boxed) {
  switch (type.kind()) {
    case c10::TypeKind::TensorType: return unbox_owned<at::Tensor>(boxed);
    case c10::TypeKind::IntType: return unbox<int64_t>(boxed);
    case c10::TypeKind::FloatType: return unbox<double>(boxed);
    case c10::TypeKind::BoolType: return unbox<bool>(boxed);
    case c10::TypeKind::StringType: return unbox_owned<std::string>(boxed);
    case c10::TypeKind::DeviceObjType:
      return c10::Device(static_cast<c10::DeviceType>(boxed >> 32), c10::DeviceIndex(int32_t(boxed)));
    case c10::TypeKind::OptionalType:
      if (boxed == 0) return {};
      return to_ivalue(*type.castRaw<c10::OptionalType>()->getElementType(), unbox_owned<Boxed>(boxed));
    case c10::TypeKind::ListType: {
      const c10::TypePtr& element = type.castRaw<c10::ListType>()->getElementType();
      c10::impl::GenericList list(element);
      for (const Boxed item : unbox_owned<BoxedList>(boxed)) list.push_back(to_ivalue(*element, item));
      return list;
    }
    default: TORCH_CHECK(false, "the stable ABI of torch 2.11 has no ", type.str());
  }
}

// A kernel of the binding, as the dispatcher calls one.
class StableKernel final : public c10::OperatorKernel {
 public:
  explicit StableKernel(BoxedKernel kernel) : kernel_(kernel) {}

  void operator()(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
    const auto& arguments = op.schema().arguments();
    const auto& returns = op.schema().returns();
    std::vector<Boxed> values(std::max(arguments.size(), returns.size()));
    const size_t first = stack->size() - arguments.size();
    for (size_t i = 0; i < arguments.size(); ++i) {
      values[i] = from_ivalue(*arguments[i].type(), (*stack)[first + i]);
    }
    torch::jit::drop(*stack, arguments.size());
    kernel_(values.data(), arguments.size(), returns.size());
    for (size_t i = 0; i < returns.size(); ++i) stack->push_back(to_ivalue(*returns[i].type(), values[i]));
  }

 private:
  BoxedKernel kernel_;
};

void register_kernel(void* library, const char* name, BoxedKernel kernel) {
  auto functor = std::make_unique<StableKernel>(kernel);
  static_cast<torch::Library*>(library)->impl(name,
                                              torch::CppFunction::makeFromBoxedFunctor(std::move(functor)));
}

void call(const char* name, const char* overload, Boxed* values) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, overload);
  const auto& arguments = op.schema().arguments();
  const auto& returns = op.schema().returns();
  torch::jit::Stack stack;
  stack.reserve(std::max(arguments.size(), returns.size()));
  for (size_t i = 0; i < arguments.size(); ++i) {
    stack.push_back(to_ivalue(*arguments[i].type(), values[i]));
  }
  op.callBoxed(&stack);
  for (size_t i = 0; i < returns.size(); ++i) values[i] = from_ivalue(*returns[i].type(), stack[i]);
}

at::Tensor& tensor(void* handle) { return *static_cast<at::Tensor*>(handle); }

void* handle(at::Tensor value) { return new at::Tensor(std::move(value)); }

at::TensorOptions options(const int32_t* dtype, const int32_t* layout, const int32_t* device, int32_t index,
                          const int32_t* pin_memory) {
  at::TensorOptions chosen;
  if (dtype) chosen = chosen.dtype(static_cast<c10::ScalarType>(*dtype));
  if (layout) chosen = chosen.layout(static_cast<c10::Layout>(*layout));
  if (device) {
    chosen = chosen.device(c10::Device(static_cast<c10::DeviceType>(*device), c10::DeviceIndex(index)));
  }
  if (pin_memory) chosen = chosen.pinned_memory(*pin_memory != 0);
  return chosen;
}

c10::DeviceType accelerator() { return at::getAccelerator(true).value(); }

c10::Device accelerator(int32_t index) { return {accelerator(), c10::DeviceIndex(index)}; }

template <class Enum>
int32_t number(Enum value) {
  return static_cast<int32_t>(value);
}

}  // namespace

extern "C" {

// Constants.
uint64_t aoti_torch_abi_version() {
  return uint64_t(TORCH_VERSION_MAJOR) << 56 | uint64_t(TORCH_VERSION_MINOR) << 48 |
         uint64_t(TORCH_VERSION_PATCH) << 40;
}
int32_t aoti_torch_device_type_meta() { return number(c10::kMeta); }
int32_t aoti_torch_device_type_xpu() { return number(c10::kXPU); }
int32_t aoti_torch_device_type_mps() { return number(c10::kMPS); }
int32_t aoti_torch_device_type_privateuse1() { return number(c10::kPrivateUse1); }
int32_t aoti_torch_layout_sparse_coo() { return number(c10::kSparse); }
int32_t aoti_torch_layout_sparse_csr() { return number(c10::kSparseCsr); }
int32_t aoti_torch_layout_sparse_csc() { return number(c10::kSparseCsc); }
int32_t aoti_torch_layout_sparse_bsr() { return number(c10::kSparseBsr); }
int32_t aoti_torch_layout_sparse_bsc() { return number(c10::kSparseBsc); }
int32_t aoti_torch_layout_jagged() { return number(c10::kJagged); }
int32_t aoti_torch_memory_format_contiguous_format() { return number(c10::MemoryFormat::Contiguous); }
int32_t aoti_torch_memory_format_channels_last() { return number(c10::MemoryFormat::ChannelsLast); }
int32_t aoti_torch_memory_format_channels_last_3d() { return number(c10::MemoryFormat::ChannelsLast3d); }
int32_t aoti_torch_memory_format_preserve_format() { return number(c10::MemoryFormat::Preserve); }
#if TORCH_VERSION_MINOR >= 7
int32_t torch_dtype_float8_e8m0fnu() { return number(c10::ScalarType::Float8_e8m0fnu); }
#else
int32_t torch_dtype_float8_e8m0fnu() { return -1; }  // no tensor has it
#endif
#if TORCH_VERSION_MINOR >= 8
int32_t torch_dtype_float4_e2m1fn_x2() { return number(c10::ScalarType::Float4_e2m1fn_x2); }
#else
int32_t torch_dtype_float4_e2m1fn_x2() { return -1; }
#endif
size_t aoti_torch_dtype_element_size(int32_t dtype) {
  return c10::elementSize(static_cast<c10::ScalarType>(dtype));
}

// Registration and calls through the dispatcher.
Error aoti_torch_library_init_impl(const char* name, const char* key, const char* file, uint32_t line,
                                   void** library) {
  REPORT(*library = new torch::Library(torch::Library::IMPL, name, c10::parseDispatchKey(key), file, line));
}
Error aoti_torch_library_init_def(const char* name, const char* file, uint32_t line, void** library) {
  REPORT(*library = new torch::Library(torch::Library::DEF, name, std::nullopt, file, line));
}
Error aoti_torch_library_init_fragment(const char* name, const char* file, uint32_t line, void** library) {
  REPORT(*library = new torch::Library(torch::Library::FRAGMENT, name, std::nullopt, file, line));
}
Error aoti_torch_library_def(void* library, const char* schema) {
  REPORT(static_cast<torch::Library*>(library)->def(schema));
}
Error aoti_torch_library_impl(void* library, const char* name, BoxedKernel kernel) {
  REPORT(register_kernel(library, name, kernel));
}
Error torch_library_impl(void* library, const char* name, BoxedKernel kernel, uint64_t) {
  REPORT(register_kernel(library, name, kernel));
}
Error aoti_torch_delete_library_object(void* library) { REPORT(delete static_cast<torch::Library*>(library)); }
Error aoti_torch_call_dispatcher(const char* name, const char* overload, Boxed* values) {
  REPORT(call(name, overload, values));
}
Error torch_call_dispatcher(const char* name, const char* overload, Boxed* values, uint64_t) {
  REPORT(call(name, overload, values));
}

// Lists and strings.
Error torch_new_list_reserve_size(size_t size, void** list) {
  REPORT(auto made = std::make_unique<BoxedList>(); made->reserve(size); *list = made.release());
}
Error torch_list_size(void* list, size_t* size) { REPORT(*size = static_cast<BoxedList*>(list)->size()); }
Error torch_list_get_item(void* list, size_t index, Boxed* item) {
  REPORT(*item = static_cast<BoxedList*>(list)->at(index));
}
Error torch_list_set_item(void* list, size_t index, Boxed item) {
  REPORT(static_cast<BoxedList*>(list)->at(index) = item);
}
Error torch_list_push_back(void* list, Boxed item) { REPORT(static_cast<BoxedList*>(list)->push_back(item)); }
Error torch_delete_list(void* list) { REPORT(delete static_cast<BoxedList*>(list)); }
Error torch_new_string_handle(const char* data, size_t length, void** string) {
  REPORT(*string = new std::string(data, length));
}
Error torch_delete_string(void* string) { REPORT(delete static_cast<std::string*>(string)); }
Error torch_string_length(void* string, size_t* length) {
  REPORT(*length = static_cast<std::string*>(string)->size());
}
Error torch_string_c_str(void* string, const char** data) {
  REPORT(*data = static_cast<std::string*>(string)->c_str());
}

// Tensors.
Error aoti_torch_new_tensor_handle(void* original, void** copy) { REPORT(*copy = handle(tensor(original))); }
Error aoti_torch_is_defined(void* self, bool* defined) { REPORT(*defined = tensor(self).defined()); }
Error aoti_torch_is_contiguous(void* self, bool* contiguous) {
  REPORT(*contiguous = tensor(self).is_contiguous());
}
Error aoti_torch_get_layout(void* self, int32_t* layout) { REPORT(*layout = number(tensor(self).layout())); }
Error aoti_torch_zero_(void* self) { REPORT(tensor(self).zero_()); }
Error aoti_torch_as_strided(void* self, const int64_t* sizes, const int64_t* strides, void** result) {
  REPORT(const size_t dim = tensor(self).dim();
         *result = handle(at::as_strided(tensor(self), {sizes, dim}, {strides, dim})));
}
Error torch_from_blob(void* data, int64_t dims, const int64_t* sizes, const int64_t* strides, int64_t offset,
                      int32_t dtype, int32_t device, int32_t index, void** result, int32_t layout,
                      const uint8_t*, int64_t, void (*deleter)(void*, void*), void* context) {
  REPORT(TORCH_CHECK(layout == number(c10::kStrided), "from_blob makes strided tensors alone");
         auto made = at::for_blob(data, {sizes, size_t(dims)});
         made.strides(at::IntArrayRef(strides, size_t(dims))).storage_offset(offset); made.options(
             options(&dtype, nullptr, &device, index, nullptr));
         if (deleter) { made.deleter([=](void* blob) { deleter(blob, context); }); }
         *result = handle(made.make_tensor()));
}
Error torch_get_mutable_data_ptr(void* self, void** data) { REPORT(*data = tensor(self).mutable_data_ptr()); }
Error torch_get_const_data_ptr(void* self, const void** data) {
  REPORT(*data = tensor(self).const_data_ptr());
}
Error torch_set_requires_grad(void* self, bool requires_grad) {
  REPORT(tensor(self).set_requires_grad(requires_grad));
}
Error aoti_torch_aten_amax(void* self, const int64_t* dim, int64_t dims, int32_t keepdim, void** result) {
  REPORT(*result = handle(at::amax(tensor(self), {dim, size_t(dims)}, keepdim != 0)));
}
Error aoti_torch_aten_fill__Scalar(void* self, double value) { REPORT(tensor(self).fill_(value)); }
Error aoti_torch_aten_full(const int64_t* size, int64_t dims, double value, const int32_t* dtype,
                           const int32_t* layout, const int32_t* device, int32_t index,
                           const int32_t* pin_memory, void** result) {
  REPORT(*result = handle(
             at::full({size, size_t(dims)}, value, options(dtype, layout, device, index, pin_memory))));
}
Error aoti_torch_aten_narrow(void* self, int64_t dim, int64_t start, int64_t length, void** result) {
  REPORT(*result = handle(at::narrow(tensor(self), dim, start, length)));
}
Error aoti_torch_aten_new_empty(void* self, const int64_t* size, int64_t dims, const int32_t* dtype,
                                const int32_t* layout, const int32_t* device, int32_t index,
                                const int32_t* pin_memory, void** result) {
  REPORT(*result = handle(tensor(self).new_empty({size, size_t(dims)},
                                                 options(dtype, layout, device, index, pin_memory))));
}
Error aoti_torch_aten_new_zeros(void* self, const int64_t* size, int64_t dims, const int32_t* dtype,
                                const int32_t* layout, const int32_t* device, int32_t index,
                                const int32_t* pin_memory, void** result) {
  REPORT(*result = handle(tensor(self).new_zeros({size, size_t(dims)},
                                                 options(dtype, layout, device, index, pin_memory))));
}
Error aoti_torch_aten_pad(void* self, const int64_t* pad, int64_t count, const char* mode,
                          const double* value, void** result) {
  REPORT(*result = handle(at::pad(tensor(self), {pad, size_t(count)}, mode,
                                  value ? std::optional<double>(*value) : std::nullopt)));
}
Error aoti_torch_aten_subtract_Tensor(void* self, void* other, double alpha, void** result) {
  REPORT(*result = handle(at::subtract(tensor(self), tensor(other), alpha)));
}

// Devices, streams and threads.
Error torch_parse_device_string(const char* text, uint32_t* type, int32_t* index) {
  REPORT(const c10::Device device{std::string(text)}; *type = uint32_t(number(device.type()));
         *index = device.index());
}
Error aoti_torch_create_device_guard(int32_t index, void** guard) {
  REPORT(*guard = new c10::DeviceGuard(accelerator(index)));
}
Error aoti_torch_delete_device_guard(void* guard) { REPORT(delete static_cast<c10::DeviceGuard*>(guard)); }
Error aoti_torch_device_guard_set_index(void* guard, int32_t index) {
  REPORT(static_cast<c10::DeviceGuard*>(guard)->set_index(c10::DeviceIndex(index)));
}
Error aoti_torch_get_current_device_index(int32_t* index) {
  REPORT(*index = c10::impl::VirtualGuardImpl(accelerator()).getDevice().index());
}
Error aoti_torch_get_current_stream(int32_t index, void** stream) {
  REPORT(*stream = new c10::Stream(c10::impl::VirtualGuardImpl(accelerator()).getStream(accelerator(index))));
}
Error aoti_torch_delete_stream(void* stream) { REPORT(delete static_cast<c10::Stream*>(stream)); }
Error aoti_torch_stream_id(void* stream, int64_t* id) {
  REPORT(*id = static_cast<c10::Stream*>(stream)->id());
}
Error torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                         void* context) {
  REPORT(at::parallel_for(begin, end, grain, [&](int64_t b, int64_t e) { body(b, e, context); }));
}
Error torch_get_thread_idx(uint32_t* index) { REPORT(*index = uint32_t(at::get_thread_num())); }
Error torch_get_num_threads(uint32_t* threads) { REPORT(*threads = uint32_t(at::get_num_threads())); }
void aoti_torch_warn(const char* function, const char* file, uint32_t line, const char* message) {
  c10::warn(c10::Warning(c10::UserWarning(), {function, file, line}, message, false));
}

#ifdef USE_CUDA
Error torch_get_current_cuda_blas_handle(void** blas) { REPORT(*blas = at::cuda::getCurrentCUDABlasHandle()); }
Error torch_set_current_cuda_stream(void* stream, int32_t index) {
  REPORT(c10::cuda::setCurrentCUDAStream(
      c10::cuda::getStreamFromExternal(static_cast<cudaStream_t>(stream), c10::DeviceIndex(index))));
}
Error torch_get_cuda_stream_from_pool(bool high_priority, int32_t index, void** stream) {
  REPORT(*stream = c10::cuda::getStreamFromPool(high_priority, c10::DeviceIndex(index)).stream());
}
Error torch_cuda_stream_synchronize(void* stream, int32_t index) {
  REPORT(c10::cuda::getStreamFromExternal(static_cast<cudaStream_t>(stream), c10::DeviceIndex(index))
             .synchronize());
}
Error torch_c10_cuda_check_msg(int32_t code, const char* file, const char* function, uint32_t line, bool,
                               char** message) {
  *message = nullptr;
  if (code == 0) return 0;
  (void)cudaGetLastError();  // reported once, as torch does
  const std::string text = std::string("CUDA error: ") + cudaGetErrorString(static_cast<cudaError_t>(code)) +
                           " (" + file + ":" + std::to_string(line) + ", " + function + ")";
  *message = static_cast<char*>(std::malloc(text.size() + 1));
  if (*message) std::memcpy(*message, text.c_str(), text.size() + 1);
  return 1;
}
void torch_c10_cuda_free_error_msg(char* message) { std::free(message); }
#endif

}  // extern "C"
