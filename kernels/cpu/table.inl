// The KernelTable of this instruction set. kName comes from the backend file.
static constexpr KernelTable kTable = {
    .name = kName,
    .packed_weight_bytes = packed_weight_bytes,
    .pack_weight = pack_weight,
    .embedding = embedding,
    .norm = norm,
    .gemm = gemm,
    .rope_kv_write = rope_kv_write,
    .paged_attention = paged_attention,
    .attention_workspace_bytes = attention_workspace_bytes,
    .attention_plan_bytes = attention_plan_bytes,
    .plan_attention = plan_attention,
    .sample = sample,
    .sampling_workspace_bytes = sampling_workspace_bytes,
    .prepare_batch = prepare_batch,
    .copy_blocks = copy_blocks,
    .block_size_multiple = kTileTokens,
};
