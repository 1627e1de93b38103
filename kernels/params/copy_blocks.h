// Copies whole pages of the KV cache, the keys and values of all layers in one launch: what a fork of a sequence whose
// last page is not full needs (beam search), or a cache that moves.
//
// Pages are copied as bytes, so the layout inside a page does not matter.
#pragma once

#include <cstdint>

namespace quire {

struct BlockCopy {
  int32_t source = 0;
  int32_t destination = 0;  // of no other pair of the launch, neither source nor destination: pairs run in any order
};

// The K pages, or the V pages, of one layer.
struct PageArray {
  void* pages = nullptr;   // 16-byte aligned
  int64_t page_bytes = 0;  // a multiple of 16
};

struct CopyBlocksParams {
  const PageArray* arrays = nullptr;  // [num_arrays] in the memory of the backend; two a layer
  int32_t num_arrays = 0;             // at most 65,535
  const BlockCopy* copies = nullptr;  // [num_copies] in the memory of the backend
  int32_t num_copies = 0;
};

}  // namespace quire
