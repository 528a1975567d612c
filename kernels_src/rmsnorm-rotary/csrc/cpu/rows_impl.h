// The row kernels. Included inside a namespace after lanes.h, once per instruction set.

// Calls body(offset, count) over `size` elements, whole vectors first.
template <class Body>
KHUB_INLINE void for_vectors(int64_t size, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, kLanes);
  if (i < size) body(i, size - i);
}

// The rows are read once: while the second pass works from the nearest cache, the next row is asked for. A sum with the
// residual is rounded only where it is stored: float32's is read there again, a narrower one from `row`.
// Roofline: input and residual in and out.
template <class T, bool kResidual>
static void rms_norm_rows(const RmsNorm& n, int64_t begin, int64_t end, float* row) {
  constexpr bool kRounded = kResidual && sizeof(T) < sizeof(float);
  const T* weight = static_cast<const T*>(n.weight);
  for (int64_t r = begin; r < end; ++r) {
    const T* input = static_cast<const T*>(n.input) + r * n.input_stride;
    T* residual = kResidual ? static_cast<T*>(n.residual) + r * n.residual_stride : nullptr;
    T* out = static_cast<T*>(n.out) + r * n.out_stride;
    Two squares[2] = {};  // by turns: a product waits for the one before it
    const auto add = [&](int64_t at, int64_t count, Two& to) {
      Two x = load_two(input + at, count);
      if (kResidual) {
        x = x + load_two(residual + at, count);
        store_two(residual + at, x, count);
      }
      if (kRounded) store_two(row + at, x);
      to = to + x * x;
    };
    int64_t i = 0;
    for (; i + 2 * kTwo <= n.size; i += 2 * kTwo) {
      add(i, kTwo, squares[0]);
      add(i + kTwo, kTwo, squares[1]);
    }
    for (; i < n.size; i += kTwo) add(i, n.size - i < kTwo ? n.size - i : kTwo, squares[0]);
    const Two both = squares[0] + squares[1];
    const float scale = 1.0f / std::sqrt(sum(both.a + both.b) / float(n.size) + n.epsilon);
    const T* later = r + 1 < end ? input + n.input_stride : input;
    const T* later_residual = r + 1 < end && kResidual ? residual + n.residual_stride : residual;
    for_twos(n.size, [&](int64_t at, int64_t count) {
      __builtin_prefetch(later + at);
      if (kResidual) __builtin_prefetch(later_residual + at, 1);
      const Two x = kRounded ? load_two(row + at) : load_two((kResidual ? residual : input) + at, count);
      store_two(out + at, x * scale * load_two(weight + at, count), count);
    });
  }
}

// Angles of a token as floats: cosines, then sines, each padded to whole vectors, in the order in which the heads' own
// elements come. A NaN is as arithmetic makes it.
KHUB_INLINE int64_t padded(int64_t half) { return (half + kTwo - 1) / kTwo * kTwo; }

template <class T, class C>
static void read_angles(const Rotary& r, int64_t token, float* angles) {
  const C* from = static_cast<const C*>(r.cos_sin_cache) + r.positions[token] * r.cache_stride;
  for (float* to : {angles, angles + padded(r.half)}) {
    for_twos(r.half, [&](int64_t i, int64_t count) {
      Two x = load_halves(from + i, count);
      if (std::is_same<T, BFloat16>::value) {
        if (r.is_neox) x = apart(x);
        const auto plain = [](f32v v) { return bit_cast<f32v>(select(v != v, u32v{} + 0x7fc00000u, bit_cast<u32v>(v))); };
        x = {plain(x.a), plain(x.b)};
      }
      store_two(to + i, x);
    });
    from += r.half;
  }
}

template <class T>
static void read_angles(const Rotary& r, int64_t token, float* angles) {
  switch (r.cache_dtype) {
    case DType::f32: return read_angles<T, float>(r, token, angles);
    case DType::f16: return read_angles<T, Half>(r, token, angles);
    case DType::bf16: return read_angles<T, BFloat16>(r, token, angles);
  }
}

// One head, from `from` to `to`, which may be the same. What is read is multiplied by `scale` and the weight first, where
// kNormed says so.
template <class T, bool kNormed>
KHUB_INLINE void rotate_head(const Rotary& r, const float* angles, const T* from, T* to, float scale, const T* weight) {
  const auto scaled = [&](Two x, Two by) { return kNormed ? x * scale * by : x; };
  const float* sines = angles + padded(r.half);
  if (r.is_neox) {
    for_twos(r.half, [&](int64_t i, int64_t count) {
      const int64_t j = r.half + i;
      const Two x = scaled(load_two(from + i, count), kNormed ? load_two(weight + i, count) : Two{});
      const Two y = scaled(load_two(from + j, count), kNormed ? load_two(weight + j, count) : Two{});
      const Two c = load_two(angles + i), s = load_two(sines + i);
      store_two(to + i, x * c - y * s, count);
      store_two(to + j, y * c + x * s, count);
    });
  } else {
    for_vectors(r.half, [&](int64_t i, int64_t count) {
      const Two by = kNormed ? load_pairs(weight + 2 * i, count) : Two{};
      const Two x = scaled(load_pairs(from + 2 * i, count), by);
      const f32v c = load(angles + i), s = load(sines + i);
      store_pairs(to + 2 * i, {x.a * c - x.b * s, x.b * c + x.a * s}, count);
    });
  }
}

template <class T>
KHUB_INLINE T* head_at(const Heads& heads, int64_t token, int64_t h) {
  return static_cast<T*>(heads.data) + token * heads.token_stride + h * heads.head_stride;
}

template <class T>
static void rotary_tokens(const Rotary& r, int64_t begin, int64_t end, float* angles) {
  for (int64_t token = begin; token < end; ++token) {
    read_angles<T>(r, token, angles);
    for (const Heads* heads : {&r.query, &r.key}) {
      for (int64_t h = 0; h < heads->count; ++h) {
        T* head = head_at<T>(*heads, token, h);
        rotate_head<T, false>(r, angles, head, head, 1.0f, nullptr);
      }
    }
  }
}

template <class T>
KHUB_INLINE T* row_of(const View& view, const int64_t* at) {
  return static_cast<T*>(view.data) + at[0] * view.strides[0] + at[1] * view.strides[1] + at[2] * view.strides[2];
}

// Elements `stride` apart.
template <class T>
KHUB_INLINE Two gather(const T* from, int64_t stride, int64_t count) {
  T some[kTwo] = {};
  for (int64_t i = 0; i < count; ++i) some[i] = from[i * stride];
  return load_two(some);
}

template <class T>
KHUB_INLINE void scatter(T* to, int64_t stride, const Two& x, int64_t count) {
  T some[kTwo];
  store_two(some, x);
  for (int64_t i = 0; i < count; ++i) to[i * stride] = some[i];
}

// Both kinds of rows are computed alike, so that a view and its copy give the same bits.
template <class T, bool kContiguous>
static void apply_rotary_rows(const ApplyRotary& a, int64_t begin, int64_t end) {
  const float sign = a.conj ? -1.0f : 1.0f;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at[3] = {row / a.sizes[2] / a.sizes[1], row / a.sizes[2] % a.sizes[1], row % a.sizes[2]};
    const T *x1 = row_of<T>(a.x1, at), *x2 = row_of<T>(a.x2, at), *cos = row_of<T>(a.cos, at), *sin = row_of<T>(a.sin, at);
    T *out1 = row_of<T>(a.out1, at), *out2 = row_of<T>(a.out2, at);
    for_twos(a.sizes[3], [&](int64_t i, int64_t count) {
      const auto read = [&](const T* from, const View& view) {
        return kContiguous ? load_two(from + i, count) : gather(from + i * view.strides[3], view.strides[3], count);
      };
      const auto write = [&](T* to, const View& view, const Two& result) {
        if (kContiguous) return store_two(to + i, result, count);
        scatter(to + i * view.strides[3], view.strides[3], result, count);
      };
      const Two x = read(x1, a.x1), y = read(x2, a.x2), c = read(cos, a.cos), s = read(sin, a.sin) * sign;
      write(out1, a.out1, x * c - y * s);
      write(out2, a.out2, x * s + y * c);
    });
  }
}

template <class T>
static void apply_rotary_of(const ApplyRotary& a, int64_t begin, int64_t end) {
  bool contiguous = true;
  for (const View* view : {&a.x1, &a.x2, &a.cos, &a.sin, &a.out1, &a.out2}) {
    contiguous = contiguous && (view->strides[3] == 1 || a.sizes[3] == 1);
  }
  contiguous ? apply_rotary_rows<T, true>(a, begin, end) : apply_rotary_rows<T, false>(a, begin, end);
}

// One head: its norm where it has a weight, its rotation, and the rest of it as it is or normalised; rounded once.
template <class T>
KHUB_INLINE void norm_and_rotate(const QkNormRopeCache& f, const float* angles, const T* from, const void* weight, T* to) {
  const int64_t rotated = 2 * f.rotary.half;
  const T* by = static_cast<const T*>(weight);
  if (!by) {
    rotate_head<T, false>(f.rotary, angles, from, to, 1.0f, by);
    if (to != from) std::memcpy(to + rotated, from + rotated, size_t(f.head_size - rotated) * sizeof(T));
    return;
  }
  Two squares = {};
  for_twos(f.head_size, [&](int64_t i, int64_t count) {
    const Two x = load_two(from + i, count);
    squares = squares + x * x;
  });
  const float scale = 1.0f / std::sqrt(sum(squares.a + squares.b) / float(f.head_size) + f.epsilon);
  rotate_head<T, true>(f.rotary, angles, from, to, scale, by);
  for_twos(f.head_size - rotated, [&](int64_t i, int64_t count) {
    const int64_t at = rotated + i;
    store_two(to + at, load_two(from + at, count) * scale * load_two(by + at, count), count);
  });
}

template <class T>
KHUB_INLINE T* cached(const PagedHeads& cache, int64_t block, int64_t within, int64_t h) {
  return static_cast<T*>(cache.data) + block * cache.block_stride + within * cache.token_stride + h * cache.head_stride;
}

// Roofline: qkv in, and out of it as much.
template <class T>
static void qk_norm_rope_cache_tokens(const QkNormRopeCache& f, int64_t begin, int64_t end, float* angles) {
  const Rotary& r = f.rotary;
  for (int64_t token = begin; token < end; ++token) {
    read_angles<T>(r, token, angles);
    for (int64_t h = 0; h < r.query.count; ++h) {
      T* head = head_at<T>(r.query, token, h);
      norm_and_rotate<T>(f, angles, head, f.query_weight, head);
    }
    const int64_t slot = token < f.num_mapped ? f.slot_mapping[token] : -1;
    if (slot < 0) continue;
    const int64_t block = slot / f.block_size, within = slot % f.block_size;
    for (int64_t h = 0; h < r.key.count; ++h) {
      T* key = cached<T>(f.key_cache, block, within, h);
      norm_and_rotate<T>(f, angles, head_at<T>(r.key, token, h), f.key_weight, key);
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

static void run_rotary(const Rotary& r, int64_t begin, int64_t end, float* angles) {
  switch (r.dtype) {
    case DType::f32: return rotary_tokens<float>(r, begin, end, angles);
    case DType::f16: return rotary_tokens<Half>(r, begin, end, angles);
    case DType::bf16: return rotary_tokens<BFloat16>(r, begin, end, angles);
  }
}

static void run_apply_rotary(const ApplyRotary& a, int64_t begin, int64_t end) {
  switch (a.dtype) {
    case DType::f32: return apply_rotary_of<float>(a, begin, end);
    case DType::f16: return apply_rotary_of<Half>(a, begin, end);
    case DType::bf16: return apply_rotary_of<BFloat16>(a, begin, end);
  }
}

static void run_qk_norm_rope_cache(const QkNormRopeCache& f, int64_t begin, int64_t end, float* angles) {
  switch (f.rotary.dtype) {
    case DType::f32: return qk_norm_rope_cache_tokens<float>(f, begin, end, angles);
    case DType::f16: return qk_norm_rope_cache_tokens<Half>(f, begin, end, angles);
    case DType::bf16: return qk_norm_rope_cache_tokens<BFloat16>(f, begin, end, angles);
  }
}
