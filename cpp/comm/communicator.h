// Collectives of tensor parallelism, as one rank sees them. Verb: forward.
//
// Decides: what a rank may ask of the others, and how a group that lost a rank is told. Does not know: models, weights,
// what is summed. A Communicator is used by its rank's thread alone; a group by whoever owns the ranks.
//
// A rank that does not come would keep the others waiting for ever: each wait has the group's time limit, after which
// the group is aborted, and an aborted group fails every call until it is reset.
#pragma once

#include <cstddef>
#include <string>

#include "base/check.h"
#include "params/collective.h"
#include "params/stream.h"

namespace quire {

// This rank's work was given up because another one's failed; that one's error is the one to show.
class CollectiveAborted : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

// A rank did not come within the time limit; the message names it.
class MissingRank : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int num_ranks() const = 0;
  // Whether all_reduce may be given a norm.
  virtual bool fuses_norm() const = 0;
  // Put on the stream, in order with what is there; on the host done on return.
  virtual void all_reduce(const AllReduceParams& params, Stream stream) = 0;
  virtual void gather_columns(const GatherColumnsParams& params, Stream stream) = 0;
  // The first rank's bytes for all.
  virtual void broadcast(void* data, size_t num_bytes, Stream stream) = 0;
  // What is put on the stream from now on comes after what all ranks have put on theirs: their memory may be reused.
  virtual void barrier(Stream stream) = 0;
};

class CommunicatorGroup {
 public:
  virtual ~CommunicatorGroup() = default;
  virtual int num_ranks() const = 0;
  // Lives as long as the group.
  virtual Communicator& rank(int rank) = 0;
  // From any thread: whoever waits for other ranks, now or later, throws CollectiveAborted with `why`.
  virtual void abort(const std::string& why) = 0;
  // As new. No rank may be in a call.
  virtual void reset() = 0;
};

}  // namespace quire
