// The arguments of the kernels that reduce a sample to numbers: guidance rescale, inner products and dynamic threshold.
#pragma once

#include "cuda/noise_task.h"
#include "cuda/step_task.h"

namespace fastdiff {

// Both outputs of guidance, and the sums over parts of them.
struct OutputsTask {
  int64_t samples, elements;
  uint32_t vectors;
  Elements out, uncond;
  double* partial;  // [samples, parts, sums]
  Strides strides[2];
};

struct RescaleTask : OutputsTask {
  PerSample<float> w;
  double phi;
  float* factor;
};
constexpr int kRescaleSums = 4;

struct ProductsTask : OutputsTask {
  float* products;  // [kProducts, samples]
};
constexpr int kProducts = 3;

// What is known of an order statistic of a sample while it is searched digit by digit.
struct Search {
  int64_t smaller;   // values below all that have the digits so far
  int64_t equal;     // values that have them
  uint32_t word;     // the digits so far
  uint32_t greater;  // the least value above the order statistic
};
constexpr int kDigitValues = 2048;

struct ThresholdTask {
  StepTask step;
  double quantile;
  int shift, width;  // of the digit that is counted or chosen
  uint64_t* counts;  // [samples, kDigitValues]
  Search* search;    // [samples]
  float* threshold;
};

const char* launch_guidance_rescale(const RescaleTask& task, bool dense, Queue queue);
const char* launch_inner_products(const ProductsTask& task, bool dense, Queue queue);
// `counts` and `search` must be 0.
const char* launch_threshold(const ThresholdTask& task, bool dense, Queue queue);

}  // namespace fastdiff
