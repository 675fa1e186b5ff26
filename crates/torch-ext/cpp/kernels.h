// Loops over rows of floats, compiled for several instruction sets, and random numbers that are a
// function of a key and a place: the backward pass draws the forward pass's numbers again.
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

// Number `place` of the sequence that begins at `start`: a bijection of 32 bits (Appleby's MurmurHash3
// finalizer), so that places of a row never share a number.
inline uint32_t draw(uint32_t start, uint32_t place) {
  uint32_t h = place * 0x9E3779B9u + start;
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  return h ^ (h >> 16);
}

// `x` or 0: dropped if the draw at its place is below the threshold.
inline float kept(float x, uint32_t start, int64_t place, uint32_t below) {
  return draw(start, static_cast<uint32_t>(place)) < below ? 0.0f : x;
}

// Draws below it are dropped.
inline uint32_t threshold(double p) { return static_cast<uint32_t>(p * 4294967296.0); }

// A key of one call, from LibTorch's generator, which the caller seeds.
uint64_t next_key();

// exp for x <= 0, to 2 units in the last place; exactly 0 below the smallest normal number.
inline float exp_of_negative(float x) {
  float clamped = x < -87.0f ? -87.0f : x;
  float n = static_cast<float>(static_cast<int32_t>(clamped * 1.44269504f - 0.5f));
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  // Taylor's series with the error spread over |r| <= ln(2) / 2 (Cephes).
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  // No branch, or loops would not be vectorised.
  uint32_t live = 0u - static_cast<uint32_t>(x >= -87.0f);
  uint32_t bits = (static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23) & live;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

inline float widen(uint16_t bf16) {
  uint32_t bits = static_cast<uint32_t>(bf16) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// To nearest, ties to even.
inline uint16_t narrow(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// Dropout of a row whose numbers begin at `start`, the rest times `factor`.
D2V_CLONES static void drop_row(const float *x, float *out, int64_t n, float factor, uint32_t start,
                                uint32_t below) {
  for (int64_t i = 0; i < n; ++i) out[i] = kept(x[i] * factor, start, i, below);
}

D2V_CLONES static void widen_row(const uint16_t *x, float *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = widen(x[i]);
}

D2V_CLONES static void narrow_row(const float *x, uint16_t *out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = narrow(x[i]);
}

}  // namespace d2v
