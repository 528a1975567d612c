// The activation functions. Included inside a namespace after two.h, once per instruction set.

// x / (1 + e^-y). e^-|y| cannot overflow, and for a negative y the sigmoid is e^y / (1 + e^y).
KHUB_INLINE f32v times_sigmoid(f32v x, f32v y) {
  const i32v negative = y < 0.0f;
  const f32v e = exp(-bit_cast<f32v>(bit_cast<i32v>(y) & 0x7fffffff));
  const f32v numerator = bit_cast<f32v>((bit_cast<i32v>(e) & negative) | (bit_cast<i32v>(splat(1.0f)) & ~negative));
  return x * numerator / (1.0f + e);
}

// erfc(z) for z >= 0 with a relative error below 1.2e-7: Numerical Recipes, erfcc.
KHUB_INLINE f32v erfc(f32v z) {
  const f32v t = 1.0f / (1.0f + 0.5f * z);
  f32v p = splat(0.17087277f);
  for (const float c : {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f, 0.37409196f,
                        1.00002368f, -1.26551223f}) {
    p = p * t + splat(c);
  }
  return t * exp(p - z * z);
}

template <Function kFunction>
KHUB_INLINE f32v activated(f32v x, float threshold) {
  if (kFunction == Function::silu) return times_sigmoid(x, x);
  if (kFunction == Function::gelu_quick) return times_sigmoid(x, 1.702f * x);
  if (kFunction == Function::gelu_tanh) {
    constexpr float kTwice = 1.5957691216057308f;  // 2 sqrt(2 / pi)
    return times_sigmoid(x, kTwice * (x + 0.044715f * x * x * x));
  }
  if (kFunction == Function::gelu) {
    const f32v magnitude = bit_cast<f32v>(bit_cast<i32v>(x) & 0x7fffffff);
    const f32v tail = 0.5f * erfc(magnitude * 0.70710678f);  // the probability beyond |x|
    return x * (x < 0.0f ? tail : 1.0f - tail);
  }
  const i32v dropped = x <= threshold;  // no number is not
  return bit_cast<f32v>(bit_cast<i32v>(x) & ~dropped);
}

// As torch's operators, one after the other, would round it.
template <class T>
KHUB_INLINE Two rounded(Two x) {
  if (std::is_same<T, float>::value) return x;
  T between[kTwo];
  store_two(between, x);
  return load_two(between);
}

template <class T, Function kFunction>
static void activate_rows(const Activation& a, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* gate = static_cast<const T*>(a.gate) + r * a.input_stride;
    const T* up = a.up ? static_cast<const T*>(a.up) + r * a.input_stride : nullptr;
    T* out = static_cast<T*>(a.out) + r * a.out_stride;
    for_twos(a.size, [&](int64_t i, int64_t count) {
      const Two x = load_two(gate + i, count);
      Two y = {activated<kFunction>(x.a, a.threshold), activated<kFunction>(x.b, a.threshold)};
      if (up) y = rounded<T>(y) * load_two(up + i, count);
      store_two(out + i, y, count);
    });
  }
}

template <class T>
static void activate_as(const Activation& a, int64_t begin, int64_t end) {
  switch (a.function) {
    case Function::silu: return activate_rows<T, Function::silu>(a, begin, end);
    case Function::gelu: return activate_rows<T, Function::gelu>(a, begin, end);
    case Function::gelu_tanh: return activate_rows<T, Function::gelu_tanh>(a, begin, end);
    case Function::gelu_quick: return activate_rows<T, Function::gelu_quick>(a, begin, end);
    case Function::fatrelu: return activate_rows<T, Function::fatrelu>(a, begin, end);
  }
}

static void run_activate(const Activation& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32: return activate_as<float>(a, begin, end);
    case DType::f16: return activate_as<Half>(a, begin, end);
    case DType::bf16: return activate_as<BFloat16>(a, begin, end);
  }
}
