// The row kernels. Included inside a namespace after lanes.h, once per instruction set.

// Calls body(offset, count) over `size` elements, whole vectors first.
template <class Body>
KHUB_INLINE void for_vectors(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, kLanes);
  if (i < size) body(i, size - i);
}

template <class T>
KHUB_INLINE f32v load_some(const T* from, int64_t count) {
  return count == kLanes ? load(from) : load_part(from, count);
}

template <class T>
KHUB_INLINE void store_some(T* to, f32v lanes, int64_t count) {
  if (count == kLanes) return store(to, lanes);
  for (int64_t i = 0; i < count; ++i) khub::from_float(lanes[i], to + i);
}

// One vector of the first pass: the sum of both is rounded only where it is stored.
template <class T>
KHUB_INLINE f32v add_some(const T* input, T* residual, float* row, int64_t count, f32v squares) {
  f32v x = load_some(input, count);
  if (residual) {
    x += load_some(residual, count);
    store_some(residual, x, count);
  }
  store_some(row, x, count);
  return squares + x * x;
}

// The rows are read once: while the second pass works from the nearest cache, the next row is asked for.
// Roofline: input and residual in and out.
template <class T, bool kResidual>
static void rms_norm_rows(const RmsNorm& n, int64_t begin, int64_t end, float* row) {
  for (int64_t r = begin; r < end; ++r) {
    const T* input = static_cast<const T*>(n.input) + r * n.input_stride;
    T* residual = kResidual ? static_cast<T*>(n.residual) + r * n.residual_stride : nullptr;
    T* out = static_cast<T*>(n.out) + r * n.out_stride;
    f32v squares[4] = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= n.size; i += 4 * kLanes) {
      for (int v = 0; v < 4; ++v) {
        const int64_t at = i + v * kLanes;
        squares[v] = add_some(input + at, kResidual ? residual + at : nullptr, row + at, kLanes, squares[v]);
      }
    }
    for (; i < n.size; i += kLanes) {
      const int64_t count = n.size - i < kLanes ? n.size - i : kLanes;
      squares[0] = add_some(input + i, kResidual ? residual + i : nullptr, row + i, count, squares[0]);
    }
    const float total = sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    const float scale = 1.0f / std::sqrt(total / float(n.size) + n.epsilon);
    const T* later = r + 1 < end ? input + n.input_stride : input;
    const T* later_residual = r + 1 < end && kResidual ? residual + n.residual_stride : residual;
    for_vectors(n.size, [&](int64_t at, int64_t count) {
      __builtin_prefetch(later + at);
      if (kResidual) __builtin_prefetch(later_residual + at, 1);
      const f32v weight = load_some(static_cast<const T*>(n.weight) + at, count);
      store_some(out + at, load_some(row + at, count) * scale * weight, count);
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
      const f32v x = load_some(gate + i, count);
      // e^-|x| cannot overflow, and for a negative x the sigmoid 1 / (1 + e^-x) is e^x / (1 + e^x).
      const i32v negative = x < 0.0f;
      const f32v magnitude = bit_cast<f32v>(bit_cast<i32v>(x) & 0x7fffffff);
      const f32v e = exp(-magnitude);
      const f32v numerator =
          bit_cast<f32v>((bit_cast<i32v>(e) & negative) | (bit_cast<i32v>(splat(1.0f)) & ~negative));
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
        const f32v x = load_some(head + i, count), y = load_some(head + half + i, count);
        const f32v c = load_some(cosines + i, count), s = load_some(sines + i, count);
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

// The cosines and sines of a token.
static void read_angles(const Rotary& r, int64_t token, float* angles) {
  const int64_t offset = r.positions[token] * r.cache_stride;
  switch (r.cache_dtype) {
    case DType::f32: return widen<float>(r.cos_sin_cache, offset, 2 * r.half, angles);
    case DType::f16: return widen<Half>(r.cos_sin_cache, offset, 2 * r.half, angles);
    case DType::bf16: return widen<BFloat16>(r.cos_sin_cache, offset, 2 * r.half, angles);
  }
}

template <class T>
static void rotary_tokens(const Rotary& r, int64_t begin, int64_t end, float* angles) {
  for (int64_t token = begin; token < end; ++token) {
    read_angles(r, token, angles);
    rotate_heads<T>(r.query, token, r.half, r.is_neox, angles, angles + r.half);
    rotate_heads<T>(r.key, token, r.half, r.is_neox, angles, angles + r.half);
  }
}

template <class T>
KHUB_INLINE T* row_of(const View& view, const int64_t* at) {
  return static_cast<T*>(view.data) + at[0] * view.strides[0] + at[1] * view.strides[1] + at[2] * view.strides[2];
}

template <class T>
static void apply_rotary_rows(const ApplyRotary& a, int64_t begin, int64_t end) {
  bool contiguous = true;
  for (const View* view : {&a.x1, &a.x2, &a.cos, &a.sin, &a.out1, &a.out2}) {
    contiguous = contiguous && (view->strides[3] == 1 || a.sizes[3] == 1);
  }
  const float sign = a.conj ? -1.0f : 1.0f;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at[3] = {row / a.sizes[2] / a.sizes[1], row / a.sizes[2] % a.sizes[1], row % a.sizes[2]};
    const T *x1 = row_of<T>(a.x1, at), *x2 = row_of<T>(a.x2, at), *cos = row_of<T>(a.cos, at), *sin = row_of<T>(a.sin, at);
    T *out1 = row_of<T>(a.out1, at), *out2 = row_of<T>(a.out2, at);
    for (int64_t i = 0; !contiguous && i < a.sizes[3]; ++i) {
      const float x = khub::to_float(x1[i * a.x1.strides[3]]), y = khub::to_float(x2[i * a.x2.strides[3]]);
      const float c = khub::to_float(cos[i * a.cos.strides[3]]), s = sign * khub::to_float(sin[i * a.sin.strides[3]]);
      khub::from_float(x * c - y * s, out1 + i * a.out1.strides[3]);
      khub::from_float(x * s + y * c, out2 + i * a.out2.strides[3]);
    }
    if (!contiguous) continue;
    for_vectors(a.sizes[3], [&](int64_t i, int64_t count) {
      const f32v x = load_some(x1 + i, count), y = load_some(x2 + i, count);
      const f32v c = load_some(cos + i, count), s = load_some(sin + i, count) * sign;
      store_some(out1 + i, x * c - y * s, count);
      store_some(out2 + i, x * s + y * c, count);
    });
  }
}

// One head through `row`, of floats, so that it is rounded once.
template <class T>
static void norm_and_rotate(const QkNormRopeCache& f, const T* from, const void* weight, const float* angles, float* row,
                            T* to) {
  f32v squares{};
  for_vectors(f.head_size, [&](int64_t i, int64_t count) {
    const f32v x = load_some(from + i, count);
    squares += x * x;
    store_some(row + i, x, count);
  });
  if (weight) {
    const float scale = 1.0f / std::sqrt(sum(squares) / float(f.head_size) + f.epsilon);
    for_vectors(f.head_size, [&](int64_t i, int64_t count) {
      const f32v by = load_some(static_cast<const T*>(weight) + i, count);
      store_some(row + i, load_some(row + i, count) * scale * by, count);
    });
  }
  const int64_t half = f.rotary.half;
  rotate_heads<float>({row, 1, 0, 0}, 0, half, f.rotary.is_neox, angles, angles + half);
  for_vectors(f.head_size, [&](int64_t i, int64_t count) { store_some(to + i, load_some(row + i, count), count); });
}

template <class T>
KHUB_INLINE T* head_at(const Heads& heads, int64_t token, int64_t h) {
  return static_cast<T*>(heads.data) + token * heads.token_stride + h * heads.head_stride;
}

template <class T>
KHUB_INLINE T* cached(const PagedHeads& cache, int64_t block, int64_t within, int64_t h) {
  return static_cast<T*>(cache.data) + block * cache.block_stride + within * cache.token_stride + h * cache.head_stride;
}

// Roofline: qkv in, and out of it as much.
template <class T>
static void qk_norm_rope_cache_tokens(const QkNormRopeCache& f, int64_t begin, int64_t end, float* angles, float* row) {
  const Rotary& r = f.rotary;
  for (int64_t token = begin; token < end; ++token) {
    read_angles(r, token, angles);
    for (int64_t h = 0; h < r.query.count; ++h) {
      T* head = head_at<T>(r.query, token, h);
      norm_and_rotate<T>(f, head, f.query_weight, angles, row, head);
    }
    const int64_t slot = token < f.num_mapped ? f.slot_mapping[token] : -1;
    if (slot < 0) continue;
    const int64_t block = slot / f.block_size, within = slot % f.block_size;
    for (int64_t h = 0; h < r.key.count; ++h) {
      T* key = cached<T>(f.key_cache, block, within, h);
      norm_and_rotate<T>(f, head_at<T>(r.key, token, h), f.key_weight, angles, row, key);
      T* value = cached<T>(f.value_cache, block, within, h);
      std::memcpy(value, head_at<T>(f.value, token, h), size_t(f.head_size) * sizeof(T));
    }
  }
}

template <class T>
static void rms_norm_of(const RmsNorm& n, int64_t begin, int64_t end, float* row) {
  n.residual ? rms_norm_rows<T, true>(n, begin, end, row) : rms_norm_rows<T, false>(n, begin, end, row);
}

static void run_rms_norm(const RmsNorm& n, int64_t begin, int64_t end, float* row) {
  switch (n.dtype) {
    case DType::f32: return rms_norm_of<float>(n, begin, end, row);
    case DType::f16: return rms_norm_of<Half>(n, begin, end, row);
    case DType::bf16: return rms_norm_of<BFloat16>(n, begin, end, row);
  }
}

static void run_silu_and_mul(const SiluAndMul& s, int64_t begin, int64_t end) {
  switch (s.dtype) {
    case DType::f32: return silu_and_mul_rows<float>(s, begin, end);
    case DType::f16: return silu_and_mul_rows<Half>(s, begin, end);
    case DType::bf16: return silu_and_mul_rows<BFloat16>(s, begin, end);
  }
}

static void run_rotary(const Rotary& r, int64_t begin, int64_t end, float* angles) {
  switch (r.dtype) {
    case DType::f32: return rotary_tokens<float>(r, begin, end, angles);
    case DType::f16: return rotary_tokens<Half>(r, begin, end, angles);
    case DType::bf16: return rotary_tokens<BFloat16>(r, begin, end, angles);
  }
}

static void run_apply_rotary(const ApplyRotary& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32: return apply_rotary_rows<float>(a, begin, end);
    case DType::f16: return apply_rotary_rows<Half>(a, begin, end);
    case DType::bf16: return apply_rotary_rows<BFloat16>(a, begin, end);
  }
}

static void run_qk_norm_rope_cache(const QkNormRopeCache& f, int64_t begin, int64_t end, float* angles, float* row) {
  switch (f.rotary.dtype) {
    case DType::f32: return qk_norm_rope_cache_tokens<float>(f, begin, end, angles, row);
    case DType::f16: return qk_norm_rope_cache_tokens<Half>(f, begin, end, angles, row);
    case DType::bf16: return qk_norm_rope_cache_tokens<BFloat16>(f, begin, end, angles, row);
  }
}
