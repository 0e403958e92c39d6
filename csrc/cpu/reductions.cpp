// The ops that reduce a sample to numbers, from which follows what `step` reads like w: guidance rescale, the inner
// products of the two outputs of guidance, and dynamic threshold.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <torch/csrc/stable/library.h>

#include "tensors/check.h"
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/step.h"

namespace fastdiff {
namespace {

// Mean and sum of squared deviations of some numbers (Chan, Golub and LeVeque 1983).
struct Moments {
  double count = 0.0, mean = 0.0, squares = 0.0;

  static Moments of(const float* value, int64_t count) {
    Moments result{static_cast<double>(count)};
    for (int64_t i = 0; i < count; ++i) result.mean += value[i];
    result.mean /= result.count;
    for (int64_t i = 0; i < count; ++i) result.squares += (value[i] - result.mean) * (value[i] - result.mean);
    return result;
  }

  void add(const Moments& other) {
    const double total = count + other.count;
    const double apart = other.mean - mean;
    mean += apart * (other.count / total);
    squares += other.squares + apart * apart * (count * other.count / total);
    count = total;
  }
};

// The two outputs of guidance.
struct Outputs {
  Outputs(const Tensor& out, const Tensor& uncond)
      : shape("out", out, DeviceType::cpu), parts(parts_of(shape.elements)) {
    tensors.uses.add(GUIDED);
    tensors.out = image("out", out, shape, Access::read, pool);
    tensors.uncond = image("uncond", uncond, shape, Access::read, pool);
  }
  Outputs(const Outputs&) = delete;  // `tensors` points into `pool`

  // Calls visit(part, range) for the parts of all samples, which it numbers one after another.
  template <class Visit>
  void for_each_part(const Visit& visit) const {
    for_each_range(
        shape.samples, shape.elements, kGrain,
        [&](Range range) { visit(range.sample * parts + range.begin / kPart, range); }, kPart);
  }

  // Calls visit(conditional, guided, count) for the blocks of a part, which are zeros from `count` on.
  template <class Visit>
  void for_each_block(const Row& row, Range part, const Visit& visit) const {
    const Kernels& kernel = kernels();
    for (int64_t begin = part.begin; begin < part.end; begin += kBlock) {
      float conditional[kBlock], guided[kBlock];
      const int64_t end = std::min(begin + kBlock, part.end);
      kernel.guide(tensors, row, Range{part.sample, begin, end}, conditional, guided);
      visit(conditional, guided, end - begin);
    }
  }

  Shape shape;
  int64_t parts;  // of each sample
  StridesPool pool;
  StepTensors tensors;
};

Tensor guidance_rescale(const Tensor& out, const Tensor& uncond, const Tensor& w, double phi) {
  const Outputs outputs(out, uncond);
  const Shape& shape = outputs.shape;
  const int64_t parts = outputs.parts;
  const auto scale = floats("w", w, shape);

  std::vector<Moments> conditional(shape.samples * parts), guided(shape.samples * parts);
  outputs.for_each_part([&](int64_t part, Range range) {
    Row row;
    row.w = scale[range.sample];
    outputs.for_each_block(row, range, [&](const float* c, const float* g, int64_t count) {
      conditional[part].add(Moments::of(c, count));
      guided[part].add(Moments::of(g, count));
    });
  });

  Tensor factor = one_per_sample(out, shape.samples);
  float* to = static_cast<float*>(factor.mutable_data_ptr());
  for (int64_t b = 0; b < shape.samples; ++b) {
    Moments c, g;
    for (int64_t part = b * parts; part < (b + 1) * parts; ++part) {
      c.add(conditional[part]);
      g.add(guided[part]);
    }
    const bool flat = g.squares == 0.0 && g.count > 0.0;
    const double ratio = flat ? 1.0 : std::sqrt(c.squares / g.squares);
    to[b] = static_cast<float>(phi * ratio + (1.0 - phi));
  }
  return factor;
}

// Sums of products, each in chains side by side, which need not wait for each other.
struct Products {
  static constexpr int kProducts = 3, kChains = 8;
  double of[kProducts][kChains] = {};

  void add(const float* c, const float* apart) {
    for (int i = 0; i < kBlock; i += kChains) {
      for (int k = 0; k < kChains; ++k) {
        const double a = c[i + k], b = apart[i + k];
        of[0][k] += a * a;
        of[1][k] += a * b;
        of[2][k] += b * b;
      }
    }
  }
};

Tensor inner_products(const Tensor& out, const Tensor& uncond) {
  Outputs outputs(out, uncond);
  outputs.tensors.uses.add(WEIGHTED);
  Row row;  // by which guidance gives the difference of the outputs
  row.w = 1.0f;
  row.w_uncond = -1.0f;
  std::vector<Products> partial(outputs.shape.samples * outputs.parts);
  outputs.for_each_part([&](int64_t part, Range range) {
    Products products;
    outputs.for_each_block(row, range, [&](const float* c, const float* apart, int64_t) { products.add(c, apart); });
    partial[part] = products;
  });

  const int64_t samples = outputs.shape.samples, parts = outputs.parts;
  Tensor result = three_per_sample(out, samples);
  float* to = static_cast<float*>(result.mutable_data_ptr());
  for (int k = 0; k < Products::kProducts; ++k) {
    for (int64_t b = 0; b < samples; ++b) {
      double sum = 0.0;
      for (int64_t part = b * parts; part < (b + 1) * parts; ++part) {
        for (double chain : partial[part].of[k]) sum += chain;
      }
      to[k * samples + b] = static_cast<float>(sum);
    }
  }
  return result;
}

// |x0| of one sample, block by block and as often as asked: it is computed again, not stored.
class AbsoluteX0 {
 public:
  AbsoluteX0(const StepCall& call, int64_t sample) : call_(call), row_(row_of(call, sample)), sample_(sample) {}

  // Calls visit(word) for the bits of each value; they are ordered as the values are.
  template <class Visit>
  void for_each(const Visit& visit) const {
    const Kernels& kernel = kernels();
    const int64_t elements = call_.shape.elements;
    for (int64_t begin = 0; begin < elements; begin += kBlock) {
      float x0[kBlock];
      const int64_t end = std::min(begin + kBlock, elements);
      kernel.predict_x0(call_.tensors, row_, Range{sample_, begin, end}, x0);
      for (int64_t i = 0; i < end - begin; ++i) visit(bits(x0[i]) & 0x7FFFFFFFu);
    }
  }

 private:
  const StepCall& call_;
  Row row_;
  int64_t sample_;
};

struct OrderStatistic {
  uint32_t word;
  int64_t not_greater;  // how many values are not greater than it
};

// The value of a rank (0 is the smallest), digit by digit: three counts of 11, 10 and 10 bits.
OrderStatistic select(const AbsoluteX0& values, int64_t rank) {
  struct Digit {
    int shift, width;
  };
  constexpr Digit digits[] = {{20, 11}, {10, 10}, {0, 10}};
  uint32_t prefix = 0;
  int64_t smaller = 0, equal = 0;
  for (const Digit& digit : digits) {
    const int above = digit.shift + digit.width;
    std::vector<int64_t> counts(size_t{1} << digit.width);
    values.for_each([&](uint32_t word) {
      const bool matches = static_cast<uint64_t>(word) >> above == static_cast<uint64_t>(prefix) >> above;
      if (matches) ++counts[word >> digit.shift & ((1u << digit.width) - 1)];
    });
    uint32_t chosen = 0;
    while (smaller + counts[chosen] <= rank) smaller += counts[chosen++];
    prefix |= chosen << digit.shift;
    equal = counts[chosen];
  }
  return {prefix, smaller + equal};
}

float quantile_of(const AbsoluteX0& values, int64_t elements, double quantile) {
  const double position = quantile * static_cast<double>(elements - 1);
  const int64_t rank = static_cast<int64_t>(position);
  const OrderStatistic lower = select(values, rank);
  uint32_t upper = lower.word;
  const double above = position - static_cast<double>(rank);
  if (above == 0.0) return from_bits(lower.word);
  if (rank + 1 >= lower.not_greater) {
    upper = std::numeric_limits<uint32_t>::max();
    values.for_each([&](uint32_t word) {
      if (word > lower.word && word < upper) upper = word;
    });
  }
  const double low = from_bits(lower.word), high = from_bits(upper);
  return static_cast<float>(low + (high - low) * above);
}

Tensor threshold(const Tensor& x, const Tensor& out, const Tensor& table, int64_t layout, const Tensor& row,
                 const MaybeTensor& uncond, const MaybeTensor& w, const MaybeTensor& scale, const MaybeTensor& w_uncond,
                 double quantile) {
  StepArguments arguments{x, out, table, layout, row, view_of(uncond), view_of(w)};
  arguments.scale = view_of(scale);
  arguments.w_uncond = view_of(w_uncond);
  const StepCall call(arguments, DeviceType::cpu);
  check_rows(call);
  check(quantile >= 0.0 && quantile <= 1.0, "quantile must be in 0..1, got ", quantile);
  const int64_t samples = call.shape.samples, elements = call.shape.elements;
  check(elements > 0 || samples == 0, "threshold needs samples with elements");
  Tensor result = one_per_sample(x, samples);
  float* to = static_cast<float*>(result.mutable_data_ptr());
  parallel_for(0, samples, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) to[b] = quantile_of(AbsoluteX0(call, b), elements, quantile);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fastdiff, CPU, m) {
  m.impl("guidance_rescale", TORCH_BOX(&guidance_rescale));
  m.impl("inner_products", TORCH_BOX(&inner_products));
  m.impl("threshold", TORCH_BOX(&threshold));
}

}  // namespace fastdiff
