//! Tensor names: ours and those of other programs.

use data2vec_core::io::convert::NameMap;

/// Number of rows of the position embeddings that no token uses.
pub(super) const UNUSED_POSITIONS: i64 = 2;

/// Returns the names of Hugging Face; those of the encoder start with `prefix`.
pub(super) fn hugging_face(prefix: &str) -> NameMap {
    NameMap::new("Hugging Face's Data2VecText")
        .rows(
            "encoder.features.",
            &format!("{prefix}embeddings."),
            &[
                ("embed.words", "word_embeddings.weight"),
                ("positions.table", "position_embeddings.weight"),
                ("positions.norm.*", "LayerNorm.*"),
            ],
        )
        .rows(
            "encoder.transformer.blocks.*.",
            &format!("{prefix}encoder.layer.*."),
            &[
                ("attn.qkv.*", "attention.self.{query,key,value}.*"),
                ("attn.proj.*", "attention.output.dense.*"),
                ("norm1.*", "attention.output.LayerNorm.*"),
                ("mlp.fc1.*", "intermediate.dense.*"),
                ("mlp.fc2.*", "output.dense.*"),
                ("norm2.*", "output.LayerNorm.*"),
            ],
        )
        .rows("head.", "classifier.", &[("dense.*", "dense.*"), ("out.*", "out_proj.*")])
}

/// Returns the names of fairseq, data2vec 1.0; those of the head start with `head`.
pub(super) fn fairseq1(prefix: &str, head: &str) -> NameMap {
    let own = format!("{prefix}sentence_encoder.");
    NameMap::new("fairseq's data2vec 1.0")
        .rows(
            "encoder.features.",
            &own,
            &[
                ("embed.words", "embed_tokens.weight"),
                ("positions.table", "embed_positions.weight"),
                ("positions.norm.*", "layernorm_embedding.*"),
            ],
        )
        .rows(
            "encoder.transformer.blocks.*.",
            &format!("{own}layers.*."),
            &[
                ("attn.qkv.*", "self_attn.{q,k,v}_proj.*"),
                ("attn.proj.*", "self_attn.out_proj.*"),
                ("norm1.*", "self_attn_layer_norm.*"),
                ("mlp.*.*", "*.*"),
                ("norm2.*", "final_layer_norm.*"),
            ],
        )
        .rows("head.", head, &[("dense.*", "dense.*"), ("out.*", "out_proj.*")])
}

/// Returns the names of fairseq, data2vec 2.0; the first `prenet` of `depth` blocks belong to the
/// modality encoder.
pub(super) fn fairseq2(prefix: &str, head: &str, prenet: usize, depth: usize) -> NameMap {
    let own = format!("{prefix}modality_encoders.TEXT.");
    let mut table = NameMap::new("fairseq's data2vec 2.0")
        .rows(
            "encoder.features.",
            &format!("{own}local_encoder."),
            &[
                ("embed.words", "embed_tokens.weight"),
                ("positions.table", "embed_positions.weight"),
                ("positions.norm.*", "layernorm_embedding.*"),
            ],
        )
        .rows("encoder.transformer.", &own, &[("input_norm.*", "context_encoder.norm.*")])
        .rows("head.", head, &[("dense.*", "dense.*"), ("out.*", "out_proj.*")]);
    table = table.fairseq_blocks(
        &format!("{prefix}blocks."),
        &format!("{own}context_encoder.blocks."),
        prenet,
        depth,
    );
    table
}
