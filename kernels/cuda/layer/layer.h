// Launchers of the small kernels of a step, and of one of loading. Asynchronous on the stream; they check contracts and
// allocate nothing.
#pragma once

#include "params/copy_blocks.h"
#include "params/device_rows.h"
#include "params/fill_dummy.h"
#include "params/mean_rows.h"
#include "params/norm.h"
#include "params/prepare_batch.h"
#include "params/rope.h"
#include "params/stream.h"

namespace quire::cuda {

void norm(const NormParams& params, Stream stream);
void mean_rows(const MeanRowsParams& params, Stream stream);
void rope_kv_write(const RopeKvWriteParams& params, Stream stream);
void copy_blocks(const CopyBlocksParams& params, Stream stream);
void update_rows(const UpdateRowsParams& params, Stream stream);
void prepare_batch(const PrepareBatchParams& params, Stream stream);
void store_sampled(const StoreSampledParams& params, Stream stream);
// Once, at load.
void fill_dummy(const FillDummyParams& params, Stream stream);

}  // namespace quire::cuda
