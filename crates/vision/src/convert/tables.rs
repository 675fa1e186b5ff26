//! Our names and theirs.

use data2vec_core::convert::{MASK_TOKEN, Table};

use crate::PatchEncoderConfig;

/// A table of relative positions, relative to what has one.
pub(super) const TABLE: &str = "relative_position_bias_table";
/// One of a block's own, relative to the block, as Hugging Face calls it.
pub(super) const HF_BIAS: &str =
    "attention.attention.relative_position_bias.relative_position_bias_table";
/// The one that all blocks of BEiT's fork share.
pub(super) const BEIT_BIAS: &str = "rel_pos_bias.relative_position_bias_table";

/// What has another shape there: the patches' map, which is a convolution, and CLS.
fn shaped(
    table: Table,
    config: &PatchEncoderConfig,
    dim: i64,
    [patches, cls]: [String; 2],
) -> Table {
    let patch = config.patch_size;
    table
        .shaped(
            "encoder.features.embed.proj.weight",
            patches,
            vec![dim, config.channels, patch, patch],
        )
        .shaped("encoder.features.positions.cls", cls, vec![1, 1, dim])
}

/// Hugging Face's, of a model whose encoder's names begin with `prefix`; `mean`: patches are pooled.
pub(super) fn hugging_face(
    prefix: &str,
    config: &PatchEncoderConfig,
    dim: i64,
    mean: bool,
) -> Table {
    let own_bias = format!("encoder.layer.*.{HF_BIAS}");
    let shared_bias = format!("encoder.relative_position_bias.{TABLE}");
    let table = Table::new("Hugging Face's Data2VecVision")
        .rows(
            "encoder.features.",
            prefix,
            &[
                ("embed.proj.bias", "embeddings.patch_embeddings.projection.bias"),
                ("positions.relative_bias", &shared_bias),
                ("positions.blocks.*.relative_bias", &own_bias),
            ],
        )
        .rows(
            "encoder.transformer.blocks.*.",
            &format!("{prefix}encoder.layer.*."),
            &[
                ("norm1.*", "layernorm_before.*"),
                ("attn.qkv.weight", "attention.attention.{query,key,value}.weight"),
                ("attn.qkv.bias", "attention.attention.{query,?key,value}.bias"),
                ("attn.proj.*", "attention.output.dense.*"),
                ("norm2.*", "layernorm_after.*"),
                ("mlp.fc1.*", "intermediate.dense.*"),
                ("mlp.fc2.*", "output.dense.*"),
                ("scale1", "lambda_1"),
                ("scale2", "lambda_2"),
            ],
        )
        .rows(
            "head.",
            prefix,
            &[("norm.*", if mean { "pooler.layernorm.*" } else { "layernorm.*" })],
        )
        .rows("head.", "", &[("out.*", "classifier.*")]);
    let own = |name: &str| format!("{prefix}embeddings.{name}");
    let theirs = [own("patch_embeddings.projection.weight"), own("cls_token")];
    shaped(table, config, dim, theirs).shaped(MASK_TOKEN, own("mask_token"), vec![1, 1, dim])
}

/// Those of BEiT's fork; `mean`: patches are pooled.
pub(super) fn beit(config: &PatchEncoderConfig, dim: i64, mean: bool) -> Table {
    let own_bias = format!("blocks.*.attn.{TABLE}");
    let table = Table::new("BEiT's fork")
        .rows(
            "encoder.features.",
            "",
            &[
                ("embed.proj.bias", "patch_embed.proj.bias"),
                ("positions.relative_bias", BEIT_BIAS),
                ("positions.blocks.*.relative_bias", &own_bias),
            ],
        )
        .rows(
            "encoder.transformer.",
            "",
            &[
                ("blocks.*.norm1.*", "blocks.*.norm1.*"),
                ("blocks.*.attn.qkv.weight", "blocks.*.attn.qkv.weight"),
                ("blocks.*.attn.qkv.bias", "blocks.*.attn.{q_bias,?k_bias,v_bias}"),
                ("blocks.*.attn.proj.*", "blocks.*.attn.proj.*"),
                ("blocks.*.norm2.*", "blocks.*.norm2.*"),
                ("blocks.*.mlp.*.*", "blocks.*.mlp.*.*"),
                ("blocks.*.scale1", "blocks.*.gamma_1"),
                ("blocks.*.scale2", "blocks.*.gamma_2"),
            ],
        )
        .rows(
            "head.",
            "",
            &[("norm.*", if mean { "fc_norm.*" } else { "norm.*" }), ("out.*", "head.*")],
        );
    let theirs = ["patch_embed.proj.weight", "cls_token"].map(str::to_owned);
    shaped(table, config, dim, theirs).shaped(MASK_TOKEN, MASK_TOKEN.into(), vec![1, 1, dim])
}

/// fairseq's, of 2.0: `prenet` of the `depth` blocks come before the main ones.
pub(super) fn fairseq2(
    prefix: &str,
    prenet: usize,
    depth: usize,
    config: &PatchEncoderConfig,
    dim: i64,
) -> Table {
    let own = format!("{prefix}modality_encoders.IMAGE.");
    let mut table = Table::new("fairseq's data2vec 2.0")
        .rows(
            "encoder.",
            &own,
            &[
                ("features.embed.proj.bias", "local_encoder.proj.bias"),
                ("transformer.input_norm.*", "context_encoder.norm.*"),
            ],
        )
        .rows("head.", "", &[("norm.*", "fc_norm.*"), ("out.*", "head.*")]);
    table = table.fairseq_blocks(
        &format!("{prefix}blocks."),
        &format!("{own}context_encoder.blocks."),
        prenet,
        depth,
    );
    let theirs = ["local_encoder.proj.weight", "extra_tokens"];
    shaped(table, config, dim, theirs.map(|name| format!("{own}{name}")))
}
