// Loops over rows of floats, compiled for several instruction sets, and a counter-based random
// generator: a number is a function of key and position, so the backward pass can reproduce the
// forward pass's numbers.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define D2V_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define D2V_CLONES
#endif

namespace d2v {

// Steele, Lea and Flood 2014 (SplitMix64).
inline uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// Random number at `position` of the sequence `start`: a 32-bit bijection (Appleby's MurmurHash3
// finalizer), so that positions of a row never share a number.
inline uint32_t draw(uint32_t start, uint32_t position) {
  uint32_t h = position * 0x9E3779B9u + start;
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  return h ^ (h >> 16);
}

// Returns 0 if the random number at `position` is below the threshold, else `x`.
inline float drop_value(float x, uint32_t start, int64_t position, uint32_t below) {
  return draw(start, static_cast<uint32_t>(position)) < below ? 0.0f : x;
}

// Threshold for dropping with probability p.
inline uint32_t threshold(double p) { return static_cast<uint32_t>(p * 4294967296.0); }

// Returns a new key from LibTorch's CPU generator (seeded by manual_seed).
uint64_t next_key();

// exp(x) for x <= 0, accurate to 2 ulp; exactly 0 where the result would be subnormal.
inline float exp_nonpositive(float x) {
  float clamped = x < -87.0f ? -87.0f : x;
  float n = static_cast<float>(static_cast<int32_t>(clamped * 1.44269504f - 0.5f));
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Minimax polynomial on |r| <= ln(2) / 2 (coefficients from Cephes).
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  // Branch-free, so that loops vectorise.
  uint32_t live = 0u - static_cast<uint32_t>(x >= -87.0f);
  uint32_t bits = (static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23) & live;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

inline float bf16_to_f32(uint16_t bf16) {
  uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Rounds to nearest, ties to even.
inline uint16_t f32_to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Drops values of a row by the random sequence `start` and multiplies the others by `factor`.
D2V_CLONES static void drop_row(const float *x, float *out, int64_t n, float factor, uint32_t start,
                                uint32_t below) {
  for (int64_t i = 0; i < n; ++i) out[i] = drop_value(x[i] * factor, start, i, below);
}

D2V_CLONES static void widen_row(const uint16_t *x, float *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_f32(x[i]);
}

D2V_CLONES static void narrow_row(const float *x, uint16_t *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = f32_to_bf16(x[i]);
}

}  // namespace d2v
