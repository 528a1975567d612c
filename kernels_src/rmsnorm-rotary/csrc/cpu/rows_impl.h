// The row kernels. Included inside a namespace after lanes.h, once per instruction set.

// Calls body(offset, count) over `size` elements, whole vectors first.
template <class Body>
KHUB_INLINE void for_vectors(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, kLanes);
  if (i < size) body(i, size - i);
}

template <class T>
KHUB_INLINE f32x8 load_some(const T* from, int64_t count) {
  return count == kLanes ? load(from) : load_part(from, count);
}

template <class T>
KHUB_INLINE void store_some(T* to, f32x8 lanes, int64_t count) {
  if (count == kLanes) return store(to, lanes);
  for (int64_t i = 0; i < count; ++i) khub::from_float(lanes[i], to + i);
}

template <class T>
static void rms_norm_rows(const RmsNorm& n, int64_t begin, int64_t end) {
  std::vector<float> row(n.size);  // as float32: the residual sum is rounded only where it is stored
  for (int64_t r = begin; r < end; ++r) {
    const T* input = static_cast<const T*>(n.input) + r * n.input_stride;
    T* residual = n.residual ? static_cast<T*>(n.residual) + r * n.residual_stride : nullptr;
    T* out = static_cast<T*>(n.out) + r * n.out_stride;
    f32x8 squares{};
    for_vectors(n.size, [&](int64_t i, int64_t count) {
      f32x8 x = load_some(input + i, count);
      if (residual) {
        x += load_some(residual + i, count);
        store_some(residual + i, x, count);
      }
      store_some(row.data() + i, x, count);
      squares += x * x;
    });
    const float scale = 1.0f / std::sqrt(sum(squares) / float(n.size) + n.epsilon);
    for_vectors(n.size, [&](int64_t i, int64_t count) {
      const f32x8 weight = load_some(static_cast<const T*>(n.weight) + i, count);
      store_some(out + i, load_some(row.data() + i, count) * scale * weight, count);
    });
  }
}

template <class T>
static void silu_and_mul_rows(const SiluAndMul& s, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* gate = static_cast<const T*>(s.input) + r * s.input_stride;
    const T* up = gate + s.size;
    T* out = static_cast<T*>(s.out) + r * s.out_stride;
    for_vectors(s.size, [&](int64_t i, int64_t count) {
      const f32x8 x = load_some(gate + i, count);
      // e^-|x| cannot overflow, and for a negative x the sigmoid 1 / (1 + e^-x) is e^x / (1 + e^x).
      const i32x8 negative = x < 0.0f;
      const f32x8 magnitude = bit_cast<f32x8>(bit_cast<i32x8>(x) & 0x7fffffff);
      const f32x8 e = exp(-magnitude);
      const f32x8 numerator =
          bit_cast<f32x8>((bit_cast<i32x8>(e) & negative) | (bit_cast<i32x8>(splat(1.0f)) & ~negative));
      store_some(out + i, x * numerator / (1.0f + e) * load_some(up + i, count), count);
    });
  }
}

template <class T>
static void rotate_heads(const Heads& heads, int64_t token, int64_t half, bool is_neox, const float* cosines,
                         const float* sines) {
  for (int64_t h = 0; h < heads.count; ++h) {
    T* head = static_cast<T*>(heads.data) + token * heads.token_stride + h * heads.head_stride;
    if (is_neox) {
      for_vectors(half, [&](int64_t i, int64_t count) {
        const f32x8 x = load_some(head + i, count), y = load_some(head + half + i, count);
        const f32x8 c = load_some(cosines + i, count), s = load_some(sines + i, count);
        store_some(head + i, x * c - y * s, count);
        store_some(head + half + i, y * c + x * s, count);
      });
    } else {
      for (int64_t i = 0; i < half; ++i) {
        const float x = khub::to_float(head[2 * i]), y = khub::to_float(head[2 * i + 1]);
        khub::from_float(x * cosines[i] - y * sines[i], head + 2 * i);
        khub::from_float(y * cosines[i] + x * sines[i], head + 2 * i + 1);
      }
    }
  }
}

template <class T>
static void widen(const void* from, int64_t offset, int64_t size, float* to) {
  for (int64_t i = 0; i < size; ++i) to[i] = khub::to_float(static_cast<const T*>(from)[offset + i]);
}

template <class T>
static void rotary_tokens(const Rotary& r, int64_t begin, int64_t end) {
  std::vector<float> angles(2 * r.half);
  for (int64_t token = begin; token < end; ++token) {
    const int64_t offset = r.positions[token] * r.cache_stride;
    switch (r.cache_dtype) {
      case DType::f32: widen<float>(r.cos_sin_cache, offset, 2 * r.half, angles.data()); break;
      case DType::f16: widen<Half>(r.cos_sin_cache, offset, 2 * r.half, angles.data()); break;
      case DType::bf16: widen<BFloat16>(r.cos_sin_cache, offset, 2 * r.half, angles.data()); break;
    }
    rotate_heads<T>(r.query, token, r.half, r.is_neox, angles.data(), angles.data() + r.half);
    rotate_heads<T>(r.key, token, r.half, r.is_neox, angles.data(), angles.data() + r.half);
  }
}

static void rms_norm(const RmsNorm& n, int64_t begin, int64_t end) {
  switch (n.dtype) {
    case DType::f32: return rms_norm_rows<float>(n, begin, end);
    case DType::f16: return rms_norm_rows<Half>(n, begin, end);
    case DType::bf16: return rms_norm_rows<BFloat16>(n, begin, end);
  }
}

static void silu_and_mul(const SiluAndMul& s, int64_t begin, int64_t end) {
  switch (s.dtype) {
    case DType::f32: return silu_and_mul_rows<float>(s, begin, end);
    case DType::f16: return silu_and_mul_rows<Half>(s, begin, end);
    case DType::bf16: return silu_and_mul_rows<BFloat16>(s, begin, end);
  }
}

static void rotary(const Rotary& r, int64_t begin, int64_t end) {
  switch (r.dtype) {
    case DType::f32: return rotary_tokens<float>(r, begin, end);
    case DType::f16: return rotary_tokens<Half>(r, begin, end);
    case DType::bf16: return rotary_tokens<BFloat16>(r, begin, end);
  }
}
