// Hashing of token blocks for the prefix cache.
//
// A hash only finds candidates: the prefix cache compares the tokens themselves before it believes a hit, so the
// mixing function needs to be fast and even, not cryptographic.
#pragma once

#include <cstdint>
#include <span>

namespace quire {

// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection on 64 bits with full avalanche.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

constexpr uint64_t hash_combine(uint64_t seed, uint64_t value) { return mix64(seed ^ mix64(value)); }

constexpr uint64_t hash_tokens(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = hash_combine(parent, tokens.size());
  for (const int32_t token : tokens) hash = hash_combine(hash, static_cast<uint32_t>(token));
  return hash;
}

}  // namespace quire
