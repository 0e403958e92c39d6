// Noise on a range of elements: into a tensor, into clean data, against a prediction.
#pragma once

#include "cpu/blocks.h"

#include "common/step.h"

namespace fastdiff {
namespace {

void normal_range(const Operand& z, const NoiseKey& key, Range range) {
  Buffer buffer;
  RangeNoise noise(key, range);
  for_each_block(range, [&](Place place) {
    if (place.direct(z) && z.kind == Float::float32) {
      draw_here(key, place.begin, kBlock, place.open_state(z, buffer).data);
    } else if (z.kind == Float::float32) {
      draw(key, place.begin, place.count, buffer.floats());
    } else {
      const FloatBlock from = noise.at(place);
      const Block to = place.open(z, buffer);
      for (int e = 0; e < kBlock; e += kPass) to.store(e, from.load(e));
    }
    place.close(z, buffer);
  });
}

void q_sample_range(const Operand& x0, const Operand& noise, const Operand& x_t, const Operand& drawn, float alpha,
                    float sigma, const NoiseKey& key, Range range) {
  Buffer x0_buffer, noise_buffer, x_t_buffer, drawn_buffer;
  RangeNoise own_noise(key, range);
  for_each_block(range, [&](Place place) {
    const Block clean = place.read(x0, x0_buffer);
    const FloatBlock z = noise.given() ? place.read_state(noise, noise_buffer) : own_noise.at(place);
    const Block noisy = place.open(x_t, x_t_buffer);
    for (int e = 0; e < kBlock; e += kPass) {
      noisy.store(e, q_sample(alpha, sigma, clean.load(e), z.load(e)));
    }
    place.close(x_t, x_t_buffer);
    if (drawn.given()) {
      const Block copy = place.open(drawn, drawn_buffer);
      for (int e = 0; e < kBlock; e += kPass) copy.store(e, z.load(e));
      place.close(drawn, drawn_buffer);
    }
  });
}

// pred - target of one block; 0 beyond the end of the sample.
FASTDIFF_INLINE void error_of(const Operand& pred, const Target& target, RangeNoise& noise, Place place,
                              Buffer& error) {
  Buffer pred_buffer, x0_buffer;
  const FloatBlock to{error.floats()};
  const Block predicted = place.read(pred, pred_buffer);
  const FloatBlock z = noise.at(place);
  if (target.x0.given()) {
    const Block clean = place.read(target.x0, x0_buffer);
    for (int e = 0; e < kBlock; e += kPass) {
      to.store(e, predicted.load(e) - q_sample(target.t0, target.te, clean.load(e), z.load(e)));
    }
  } else {
    for (int e = 0; e < kBlock; e += kPass) to.store(e, predicted.load(e) - z.load(e));
  }
  std::memset(error.floats() + place.count, 0, (kBlock - place.count) * sizeof(float));
}

// Sixteen sums side by side whatever the width of the registers is, so that every instruction set adds in one order.
double noise_loss_range(const Operand& pred, const Target& target, const NoiseKey& key, Range range) {
  constexpr int kSums = 16;
  double sum[kSums] = {};
  Buffer error;
  RangeNoise noise(key, range);
  for_each_block(range, [&](Place place) {
    error_of(pred, target, noise, place, error);
    const float* d = error.floats();
    for (int e = 0; e < kBlock; e += kSums) {
      for (int k = 0; k < kSums; ++k) sum[k] += static_cast<double>(d[e + k]) * static_cast<double>(d[e + k]);
    }
  });
  double total = 0.0;
  for (double part : sum) total += part;
  return total;
}

void noise_loss_backward_range(const Operand& pred, const Target& target, const Operand& grad, float scale,
                               const NoiseKey& key, Range range) {
  Buffer error, buffer;
  RangeNoise noise(key, range);
  for_each_block(range, [&](Place place) {
    error_of(pred, target, noise, place, error);
    const Block to = place.open(grad, buffer);
    for (int e = 0; e < kBlock; e += kPass) {
      to.store(e, scale * load_floats<Lanes>(error.bytes, Float::float32, e));
    }
    place.close(grad, buffer);
  });
}

}  // namespace
}  // namespace fastdiff
