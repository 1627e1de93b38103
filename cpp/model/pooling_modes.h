// The ways of pooling that sentence-transformers has beside first, mean and last, and several of them joined: on the
// host, from the hidden states of a text. Their sums are in double.
//
// Decides: names and formulas. Does not know: devices, requests. They are rare, so no device has kernels for them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace quire {

// Of the tokens that are pooled: the first one's states, the largest of each column, the mean, the sum over the square
// root of their number, the mean weighted by each token's place in the text (from 1), the last one's states. In the
// order in which sentence-transformers joins what pooling_mode_* flags name.
enum class PoolingMode : uint8_t { cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken };

inline constexpr PoolingMode kPoolingModes[] = {PoolingMode::cls,          PoolingMode::max,
                                                PoolingMode::mean,         PoolingMode::mean_sqrt_len_tokens,
                                                PoolingMode::weightedmean, PoolingMode::lasttoken};

const char* pooling_mode_name(PoolingMode mode);
// "max + mean".
std::string joined_names(std::span<const PoolingMode> modes);

// `states`: [tokens, hidden] of one text. The first `num_skipped` tokens are not pooled; at least one must be left.
// `out`: [modes * hidden].
void pool_by_modes(std::span<const float> states, int64_t hidden, int64_t num_skipped,
                   std::span<const PoolingMode> modes, std::span<float> out);

}  // namespace quire
