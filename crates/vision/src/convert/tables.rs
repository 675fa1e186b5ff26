//! Tables of tensor names: ours and those of other programs.

use data2vec_core::io::convert::{MASK_TOKEN, NameMap};

use crate::config::PatchEncoderConfig;

/// Relative position bias, relative to its module.
pub(super) const TABLE: &str = "relative_position_bias_table";
/// Hugging Face's relative position bias of one block, relative to the block.
pub(super) const HF_BIAS: &str =
    "attention.attention.relative_position_bias.relative_position_bias_table";
/// Relative position bias shared by all blocks in BEiT's fork.
pub(super) const BEIT_BIAS: &str = "rel_pos_bias.relative_position_bias_table";

/// Adds the tensors of another shape there: the patch embedding (a convolution) and CLS.
fn shaped(
    table: NameMap,
    config: &PatchEncoderConfig,
    dim: i64,
    [patches, cls]: [String; 2],
) -> NameMap {
    let patch = config.patch_size;
    table
        .shaped(
            "encoder.features.embed.proj.weight",
            patches,
            vec![dim, config.channels, patch, patch],
        )
        .shaped("encoder.features.positions.cls", cls, vec![1, 1, dim])
}

/// Returns Hugging Face's names. `prefix` starts the encoder's names; `mean`: the head pools the
/// mean of all patches.
pub(super) fn hugging_face(
    prefix: &str,
    config: &PatchEncoderConfig,
    dim: i64,
    mean: bool,
) -> NameMap {
    let own_bias = format!("encoder.layer.*.{HF_BIAS}");
    let shared_bias = format!("encoder.relative_position_bias.{TABLE}");
    let table = NameMap::new("Hugging Face's Data2VecVision")
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

/// Returns the names of BEiT's fork; `mean`: the head pools the mean of all patches.
pub(super) fn beit(config: &PatchEncoderConfig, dim: i64, mean: bool) -> NameMap {
    let own_bias = format!("blocks.*.attn.{TABLE}");
    let table = NameMap::new("BEiT's fork")
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

/// Returns fairseq's names (2.0); the first `prenet` of the `depth` blocks precede the main ones.
pub(super) fn fairseq2(
    prefix: &str,
    prenet: usize,
    depth: usize,
    config: &PatchEncoderConfig,
    dim: i64,
) -> NameMap {
    let own = format!("{prefix}modality_encoders.IMAGE.");
    let mut table = NameMap::new("fairseq's data2vec 2.0")
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
