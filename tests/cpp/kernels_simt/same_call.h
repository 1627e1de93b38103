// Whether two function pointers are called alike, for declarations of ours that stand for NVIDIA's.
#pragma once

#include <type_traits>

namespace quire {

// Passed alike: pointers as pointers, structs as structs, numbers and enumerations of one size.
template <typename Ours, typename Theirs>
constexpr bool kSamePassing = std::is_pointer_v<Ours> == std::is_pointer_v<Theirs> && sizeof(Ours) == sizeof(Theirs) &&
                              alignof(Ours) == alignof(Theirs) && std::is_class_v<Ours> == std::is_class_v<Theirs> &&
                              std::is_floating_point_v<Ours> == std::is_floating_point_v<Theirs>;

template <typename Ours, typename Theirs>
struct SameCall : std::false_type {};
template <typename R, typename... A, typename S, typename... B>
  requires(sizeof...(A) == sizeof...(B))
struct SameCall<R (*)(A...), S (*)(B...)> : std::bool_constant<kSamePassing<R, S> && (kSamePassing<A, B> && ...)> {};

}  // namespace quire
