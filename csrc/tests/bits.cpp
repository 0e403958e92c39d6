// Runs the CPU kernels by themselves, without torch's library: their noise against known answers, and each instruction
// set of this machine against plain C++ on pseudo-random inputs. Prints a checksum of the bits of each case; it is the
// same on every little-endian machine, which `make test-aarch64` checks.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/level.h"

using namespace fastdiff;

namespace {

constexpr int kSamples = 3, kHeight = 17, kWidth = 23;
constexpr int kElements = kHeight * kWidth;  // three blocks and seven elements
constexpr int kGap = 5;                      // elements between samples, which no kernel may touch
const Strides kTransposed = {2, {kHeight, kWidth}, {1, kHeight}};

// FNV-1a.
struct Checksum {
  uint64_t value = 14695981039346656037u;

  void add(const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) value = (value ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  }
};

using Random = std::mt19937;  // the standard says which numbers it gives

// The bits of a number with a magnitude in [1/8, 2); or, where `extreme`, of any finite one, subnormal and huge ones
// too, with so few digits that rounding it to 16 bits is often a tie.
uint32_t random_bits(Random& random, Float kind, bool extreme) {
  const uint32_t word = random();
  if (kind == Float::float16) return extreme ? word & 0xFBFFu : (word & 0x8FFFu) | 0x3000u;
  const uint32_t wide = extreme ? word & 0xFF7FF000u : (word & 0x81FFFFFFu) | 0x3E000000u;
  return kind == Float::bfloat16 ? wide >> 16 : wide;
}

Row random_row(Random& random) {
  uint32_t words[sizeof(Row) / sizeof(float)];
  for (uint32_t& word : words) word = random_bits(random, Float::float32, false);
  Row row;
  std::memcpy(&row, words, sizeof row);
  row.c[CLIP] = 1.0f;
  row.c[SLOT] = 2.0f;
  row.c[CX] = row.scale = 4.7f;  // extreme numbers become infinite
  return row;
}

// The images of one call, filled with random numbers.
struct Images {
  const Strides* strides;
  bool extreme = false;
  Random random{};
  std::deque<std::vector<char>> memory{};

  Operand add(Float kind, int samples = kSamples) {
    const int64_t size = size_of(kind), sample_stride = (kElements + kGap) * size;
    std::vector<char>& bytes = memory.emplace_back(samples * sample_stride);
    for (size_t to = 0; to < bytes.size(); to += size) {
      const uint32_t number = random_bits(random, kind, extreme);
      std::memcpy(&bytes[to], &number, size);
    }
    return {bytes.data(), sample_stride, strides, kind};
  }
};

Range whole(int sample) { return {sample, 0, kElements}; }
NoiseKey key_of(int sample) { return noise_key(0xFEDCBA9876543210u, (uint64_t{1} << 40) + sample, 999, kStepStream); }

void normal(const Kernels& kernel, Images& images, Float kind, Checksum&) {
  const Operand z = images.add(kind);
  for (int b = 0; b < kSamples; ++b) kernel.normal(z, key_of(b), whole(b));
}

void q_sample(const Kernels& kernel, Images& images, Float kind, Checksum&) {
  const Operand x0 = images.add(kind), x_t = images.add(kind);
  const Operand noise = images.add(Float::float32), drawn = images.add(Float::float32);
  kernel.q_sample(x0, noise, x_t, {}, 0.8f, 0.6f, {}, whole(0));
  kernel.q_sample(x0, {}, x_t, drawn, 0.8f, 0.6f, key_of(1), whole(1));
}

// To `kind` and from it: 1 x0 + 0 noise changes nothing.
void conversions(const Kernels& kernel, Images& images, Float kind, Checksum&) {
  images.extreme = true;
  const Operand wide = images.add(Float::float32), rounded = images.add(kind);
  const Operand narrow = images.add(kind), widened = images.add(Float::float32), noise = images.add(Float::float32);
  for (int b = 0; b < kSamples; ++b) {
    kernel.q_sample(wide, noise, rounded, {}, 1.0f, 0.0f, {}, whole(b));
    kernel.q_sample(narrow, noise, widened, {}, 1.0f, 0.0f, {}, whole(b));
  }
}

void noise_loss(const Kernels& kernel, Images& images, Float kind, Checksum& sum) {
  const Operand pred = images.add(kind), x0 = images.add(kind);
  for (const Target& target : {Target{}, Target{x0, -0.6f, 0.8f}}) {
    const Operand grad = images.add(kind);
    for (int b = 0; b < kSamples; ++b) {
      const double loss = kernel.noise_loss(pred, target, key_of(b), whole(b));
      sum.add(&loss, sizeof loss);
      kernel.noise_loss_backward(pred, target, grad, 0.3f, key_of(b), whole(b));
    }
  }
}

// As any other image, but with 1 in every third place.
Operand add_mask(Images& images) {
  const Operand mask = images.add(Float::float32);
  std::vector<char>& bytes = images.memory.back();
  const float known = 1.0f;
  for (size_t to = 0; to < bytes.size(); to += 3 * sizeof known) std::memcpy(&bytes[to], &known, sizeof known);
  return mask;
}

StepTensors step_tensors(Images& images, Float kind, Uses uses) {
  StepTensors tensors;
  tensors.uses = uses;
  for (Operand* state : {&tensors.x, &tensors.y, &tensors.x0_out, &tensors.known}) *state = images.add(Float::float32);
  tensors.mask = add_mask(images);
  for (Operand& slot : tensors.history) slot = images.add(Float::float32);
  for (Operand* image : {&tensors.out, &tensors.uncond, &tensors.variance}) *image = images.add(kind);
  tensors.samples = kSamples;
  tensors.branches = 2;
  tensors.model_input = images.add(kind, 2 * kSamples);
  return tensors;
}

void step(const Kernels& kernel, Images& images, Float kind, Checksum& sum, Uses uses) {
  const StepTensors tensors = step_tensors(images, kind, uses);
  for (int b = 0; b < kSamples; ++b) {
    const int not_finite = kernel.step(tensors, random_row(images.random), key_of(b), whole(b));
    sum.add(&not_finite, sizeof not_finite);
  }
}

Uses set_of(std::initializer_list<int> columns) {
  Uses uses;
  for (int column : columns) uses.add(column);
  return uses;
}

void reductions(const Kernels& kernel, Images& images, Float kind, Checksum& sum) {
  const StepTensors tensors = step_tensors(images, kind, set_of({PX, PO, GUIDED}));
  const Row row = random_row(images.random);
  for (int64_t begin = 0; begin < kElements; begin += kBlock) {
    const Range block = {0, begin, std::min<int64_t>(begin + kBlock, kElements)};
    float conditional[kBlock], guided[kBlock], x0[kBlock];
    kernel.guide(tensors, row, block, conditional, guided);
    kernel.predict_x0(tensors, row, block, x0);
    for (const float* result : {conditional, guided, x0}) sum.add(result, (block.end - begin) * sizeof(float));
  }
}

struct Case {
  std::string name;
  std::function<void(const Kernels&, Images&, Float, Checksum&)> run;
};

Case step_case(const char* name, Uses uses, bool extreme = false) {
  const auto run = [uses, extreme](const Kernels& kernel, Images& images, Float kind, Checksum& sum) {
    images.extreme = extreme;
    step(kernel, images, kind, sum, uses);
  };
  return {std::string("step, ") + name, run};
}

// The sets of columns that kernels are specialised on, then general ones.
std::vector<Case> cases() {
  return {
      {"normal", normal},
      {"q_sample", q_sample},
      {"conversions", conversions},
      {"noise_loss", noise_loss},
      {"guide and predict_x0", reductions},
      step_case("DDIM, clipped", set_of({SCALE_IN, PX, PO, CLIP, EX, E0, C0, CE, MODEL_INPUT})),
      step_case("DDIM", set_of({PX, PO, EO, C0, CE, CZ, FIRST_BAD})),
      step_case("DDIM, v-prediction", set_of({PX, PO, EX, EO, C0, CE, GUIDED})),
      step_case("ancestral, clipped", set_of({PX, PO, CLIP, CX, C0, CZ, GUIDED, MODEL_INPUT})),
      step_case("ancestral", set_of({PX, PO, CX, C0, CZ})),
      step_case("multistep, clipped", set_of({PX, PO, CLIP, CX, C0, CH0, SLOT, MODEL_INPUT})),
      step_case("multistep", set_of({PX, PO, CX, C0, CH0, SLOT, CZ})),
      step_case("history of x0", set_of({PX, PO, CX, C0, CH0, CH1, CH2, CH3, SLOT})),
      step_case("history of eps", set_of({EX, EO, CX, CE, CH0, CH1, SLOT, STORES_EPS})),
      step_case("anchor state", set_of({PO, CY, C0, DX, DY, D0, DZ, ANCHORED})),
      step_case("learned variance", set_of({PX, PO, CLIP, SCALED, THRESHOLDED, CX, C0, CZ, CV})),
      step_case("two weights of guidance", set_of({PX, PO, CX, C0, GUIDED, WEIGHTED, SCALED})),
      step_case("inpainting", set_of({PX, PO, CX, C0, CZ, K0, KZ, MODEL_INPUT, FIRST_BAD})),
      step_case("inpainting without noise", set_of({PX, PO, CX, C0, K0})),
      step_case("beyond the largest number", set_of({PO, CLIP, SCALED, CX, C0, FIRST_BAD}), true),
      step_case("everything", Uses{(uint64_t{2} << FIRST_BAD) - 1}),
  };
}

uint64_t checksum(const Case& test, const Kernels& kernel, Float kind) {
  Checksum sum;
  for (const Strides* strides : {static_cast<const Strides*>(nullptr), &kTransposed}) {
    Images images{strides};
    test.run(kernel, images, kind, sum);
    for (const std::vector<char>& bytes : images.memory) sum.add(bytes.data(), bytes.size());
  }
  return sum.value;
}

// Two cases of tests/truth/noise.json: the first normals of one key, and the sum of the bits of very many of another.
bool draws_known_noise(const Kernels& kernel) {
  const std::vector<uint32_t> expected = {0xbebcf773, 0xbf3f71c2, 0x3f950cb7, 0xbfc62033, 0x3f8dc045,
                                          0xbf4b10a9, 0x3f13a4d7, 0xc00d8d3c, 0x3fb8b826};
  std::vector<uint32_t> first(expected.size()), many(1048576);
  kernel.normal({reinterpret_cast<char*>(first.data())}, noise_key(~uint64_t{0}, 1099511627779, 999, 2), {0, 0, 9});
  kernel.normal({reinterpret_cast<char*>(many.data())}, noise_key(42, 0, 0, kStepStream), {0, 0, 1048576});
  return first == expected && std::accumulate(many.begin(), many.end(), uint64_t{0}) == 2234120675917667u;
}

struct InstructionSet {
  const char* name;
  const Kernels& kernel;
};

// Those of this machine, plain C++ first.
std::vector<InstructionSet> instruction_sets() {
  const char* const names[] = {"plain C++", "AVX2", "AVX-512"};  // in the order of Level
  std::vector<InstructionSet> sets;
  for (int level = kScalar; level <= best_level(); ++level) {
    sets.push_back({names[level], kernels_of(static_cast<Level>(level))});
  }
  return sets;
}

}  // namespace

int main() {
  const char* const kinds[] = {"float32", "bfloat16", "float16"};  // in the order of Float
  int failures = 0;
  for (const InstructionSet& set : instruction_sets()) {
    if (draws_known_noise(set.kernel)) continue;
    std::fprintf(stderr, "the noise of %s is not that of tests/truth/noise.json\n", set.name);
    ++failures;
  }
  for (const Case& test : cases()) {
    for (int kind = 0; kind < 3; ++kind) {
      const uint64_t expected = checksum(test, kScalarKernels, Float(kind));
      std::printf("%016llx  %s, %s\n", static_cast<unsigned long long>(expected), test.name.c_str(), kinds[kind]);
      for (const InstructionSet& set : instruction_sets()) {
        if (checksum(test, set.kernel, Float(kind)) == expected) continue;
        std::fprintf(stderr, "%s, %s: %s and plain C++ differ\n", test.name.c_str(), kinds[kind], set.name);
        ++failures;
      }
    }
  }
  return failures != 0;
}
