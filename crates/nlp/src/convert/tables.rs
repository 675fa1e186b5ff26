//! Our names and theirs.

use data2vec_core::convert::Table;

/// Hugging Face's, of a model whose encoder's names begin with `prefix`.
pub(super) fn hugging_face(prefix: &str) -> Table {
    Table::new("Hugging Face's Data2VecText")
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

/// fairseq's, of 1.0; a head's names begin with `head`.
pub(super) fn fairseq1(prefix: &str, head: &str) -> Table {
    let own = format!("{prefix}sentence_encoder.");
    Table::new("fairseq's data2vec 1.0")
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

/// fairseq's, of 2.0: `prenet` of the `depth` blocks come before the main ones.
pub(super) fn fairseq2(prefix: &str, head: &str, prenet: usize, depth: usize) -> Table {
    let own = format!("{prefix}modality_encoders.TEXT.");
    let mut table = Table::new("fairseq's data2vec 2.0")
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
