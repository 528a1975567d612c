// Included before every C++ source: keeps a newer libstdc++ from emitting references that the oldest
// supported one (GCC 8, manylinux_2_28) does not define.
//
// Strings and string streams are instantiated in place, because newer libraries gave them new members
// (the default constructor of std::ostringstream is GLIBCXX_3.4.26). Locales and the streams' base classes
// stay in the shared library: a facet is found by the address of its static id, of which there must be one.
#pragma once
#ifdef __cplusplus
#include <cstddef>

// The old ABI's strings share one empty representation, told apart by its address: a copy of it in a kernel
// would be freed by torch. They have no newer members to avoid, so they stay in the shared library too.
#if _GLIBCXX_USE_CXX11_ABI
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#endif
#include <string>

#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 1
#include <istream>
#include <locale>
#include <ostream>

#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#include <sstream>

// What newer libraries export and older ones held inside: said again in terms of what both export.
#include <exception>
extern "C" {
[[noreturn]] void kernel_hub_bad_array_length() __asm__("__cxa_throw_bad_array_new_length");
#if __GNUC__ >= 11
void kernel_hub_copy_exception(void* to, const void* from) __asm__("_ZNSt15__exception_ptr13exception_ptrC1ERKS0_");
void kernel_hub_drop_exception(void* pointer) __asm__("_ZNSt15__exception_ptr13exception_ptrD1Ev");
#endif
}
[[noreturn]] inline void std::__throw_bad_array_new_length() { kernel_hub_bad_array_length(); }
#if __GNUC__ >= 11
inline void std::__exception_ptr::exception_ptr::_M_addref() noexcept {
  void* counted;  // an exception_ptr is one pointer; the copy that counts is never dropped
  kernel_hub_copy_exception(&counted, this);
}
inline void std::__exception_ptr::exception_ptr::_M_release() noexcept { kernel_hub_drop_exception(this); }
#endif
#endif
