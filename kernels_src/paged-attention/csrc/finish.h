// The end of a row: what a query token and head has summed over its keys becomes its output and log-sum-exp, and what
// two parts have made of it comes together.
#pragma once

#include <cmath>

#include "visible.h"

namespace khub {

struct Finish {
  float factor;  // of the weighted values
  float lse;
};

// `total` is of exp(logit - maximum); 0 and -inf: no key was seen. Sinks and the values' scale come in here, once,
// whatever parts the sums were made in.
KHUB_ANYWHERE Finish finish(const Attention& a, int64_t head, float maximum, float total) {
  const float scale = a.v_scale ? *a.v_scale : 1.0f;
  const float sink = a.sinks ? a.sinks[head] : -INFINITY;
  if (sink == -INFINITY) {
    return total == 0.0f ? Finish{0.0f, -INFINITY} : Finish{scale / total, maximum + logf(total)};
  }
  const float larger = fmaxf(maximum, sink), kept = expf(maximum - larger);
  const float sum = total * kept + expf(sink - larger);
  return {scale * kept / sum, larger + logf(sum)};
}

struct MergeWeights {
  float first, second;  // of two partial outputs of a row
  float lse;
};

// Of the log-sum-exps of the parts; minus infinity: the part saw no key.
KHUB_ANYWHERE MergeWeights merge_weights(float first, float second) {
  const float larger = fmaxf(first, second);
  if (larger == -INFINITY) return {0.0f, 0.0f, larger};
  const float one = expf(first - larger), two = expf(second - larger);
  return {one / (one + two), two / (one + two), larger + logf(one + two)};
}

}  // namespace khub
