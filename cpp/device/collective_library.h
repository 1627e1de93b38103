// Collectives between devices of a kind, one a rank, by a library of their maker (NCCL).
//
// Decides nothing: each call is one of the library's, and who may call when is comm/library.cpp's affair. Any thread,
// one at a time. Between begin() and end() every rank is given the same collectives, and what it sends is received;
// they are on the streams when end() returns. What fails is a DeviceError that names the library's call, the rank and
// what the library says; only abort() is of use then.
#pragma once

#include <cstddef>
#include <cstdint>

#include "params/stream.h"

namespace quire {

class CollectiveLibrary {
 public:
  virtual ~CollectiveLibrary() = default;
  // Makes the ranks known to each other: long, and it takes memory of the devices. Also after abort().
  virtual void open() = 0;
  virtual bool is_open() const = 0;
  // Throws what the library found out about this rank since the last call.
  virtual void check(int rank) = 0;

  virtual void begin() = 0;
  virtual void all_reduce(int rank, const float* in, float* out, int64_t count, Stream stream) = 0;
  virtual void broadcast(int rank, void* data, size_t num_bytes, Stream stream) = 0;  // the first rank's
  virtual void send(int rank, int to, const float* data, int64_t count, Stream stream) = 0;
  virtual void receive(int rank, int from, float* data, int64_t count, Stream stream) = 0;
  virtual void end() = 0;
  // After begin(), instead of end().
  virtual void cancel() noexcept = 0;

  // Ends what waits for other ranks on the streams, and gives back what open() took.
  virtual void abort() noexcept = 0;
};

}  // namespace quire
