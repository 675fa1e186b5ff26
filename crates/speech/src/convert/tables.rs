//! Tensor names of Hugging Face and fairseq.

use data2vec_core::io::convert::{MASK_TOKEN, NameMap};

/// Returns the names of Hugging Face, whose encoder has names with `prefix`; `ctc` selects the name of
/// the output layer.
pub(super) fn hugging_face(prefix: &str, ctc: bool) -> NameMap {
    NameMap::new("Hugging Face's Data2VecAudio")
        .rows(
            "encoder.features.",
            prefix,
            &[
                ("embed.conv_layers.*.conv.weight", "feature_extractor.conv_layers.*.conv.weight"),
                ("embed.conv_layers.*.norm.*", "feature_extractor.conv_layers.*.layer_norm.*"),
                ("embed.norm.*", "feature_projection.layer_norm.*"),
                ("embed.proj.*", "feature_projection.projection.*"),
                ("positions.convs.*.*", "encoder.pos_conv_embed.layers.*.conv.*"),
            ],
        )
        .rows(
            "encoder.transformer.",
            prefix,
            &[
                ("input_norm.*", "encoder.layer_norm.*"),
                ("blocks.*.attn.qkv.*", "encoder.layers.*.attention.{q,k,v}_proj.*"),
                ("blocks.*.attn.proj.*", "encoder.layers.*.attention.out_proj.*"),
                ("blocks.*.norm1.*", "encoder.layers.*.layer_norm.*"),
                ("blocks.*.mlp.fc1.*", "encoder.layers.*.feed_forward.intermediate_dense.*"),
                ("blocks.*.mlp.fc2.*", "encoder.layers.*.feed_forward.output_dense.*"),
                ("blocks.*.norm2.*", "encoder.layers.*.final_layer_norm.*"),
            ],
        )
        .rows("", prefix, &[(MASK_TOKEN, "masked_spec_embed")])
        .rows(
            "head.",
            "",
            &[
                ("dense.*", "projector.*"),
                ("out.*", if ctc { "lm_head.*" } else { "classifier.*" }),
            ],
        )
}

/// Returns the names of fairseq's data2vec 1.0.
pub(super) fn fairseq1(prefix: &str) -> NameMap {
    NameMap::new("fairseq's data2vec 1.0")
        .rows(
            "encoder.features.",
            prefix,
            &[
                ("embed.conv_layers.*.conv.weight", "feature_extractor.conv_layers.*.0.weight"),
                ("embed.conv_layers.*.norm.*", "feature_extractor.conv_layers.*.2.1.*"),
                ("embed.norm.*", "layer_norm.*"),
                ("embed.proj.*", "post_extract_proj.*"),
                ("positions.convs.*.*", "encoder.pos_conv.*.0.*"),
            ],
        )
        .rows(
            "encoder.transformer.",
            prefix,
            &[
                ("input_norm.*", "encoder.layer_norm.*"),
                ("blocks.*.attn.qkv.*", "encoder.layers.*.self_attn.{q,k,v}_proj.*"),
                ("blocks.*.attn.proj.*", "encoder.layers.*.self_attn.out_proj.*"),
                ("blocks.*.norm1.*", "encoder.layers.*.self_attn_layer_norm.*"),
                ("blocks.*.mlp.fc1.*", "encoder.layers.*.fc1.*"),
                ("blocks.*.mlp.fc2.*", "encoder.layers.*.fc2.*"),
                ("blocks.*.norm2.*", "encoder.layers.*.final_layer_norm.*"),
            ],
        )
        .rows("", prefix, &[(MASK_TOKEN, "mask_emb")])
        .rows("head.", "w2v_encoder.", &[("out.*", "proj.*")])
}

/// Returns the names of fairseq's data2vec 2.0; `prenet` of the `depth` blocks belong to the modality
/// encoder.
pub(super) fn fairseq2(
    prefix: &str,
    prenet: usize,
    depth: usize,
    pos_layers: usize,
    heads: i64,
) -> NameMap {
    let own = format!("{prefix}modality_encoders.AUDIO.");
    let mut table = NameMap::new("fairseq's data2vec 2.0")
        .rows(
            "encoder.features.",
            &own,
            &[
                ("embed.conv_layers.*.conv.weight", "local_encoder.conv_layers.*.0.weight"),
                ("embed.conv_layers.*.norm.*", "local_encoder.conv_layers.*.2.1.*"),
                ("embed.norm.*", "project_features.1.*"),
                ("embed.proj.*", "project_features.2.*"),
            ],
        )
        .rows("encoder.transformer.", &own, &[("input_norm.*", "context_encoder.norm.*")])
        .shaped(
            "encoder.features.positions.alibi_scale",
            format!("{own}alibi_scale"),
            vec![1, 1, heads, 1, 1],
        )
        .rows("head.", "w2v_encoder.", &[("out.*", "proj.*")]);
    for i in 0..pos_layers {
        let (ours, theirs) = (
            format!("positions.convs.{i}.*"),
            format!("relative_positional_encoder.{}.0.*", i + 1),
        );
        table = table.rows("encoder.features.", &own, &[(&ours, &theirs)]);
    }
    table = table.fairseq_blocks(
        &format!("{prefix}blocks."),
        &format!("{own}context_encoder.blocks."),
        prenet,
        depth,
    );
    table
}

/// Parses the strides of fairseq's `[(512, 10, 5)] + [(512, 3, 2)] * 4 + …`; `None` if invalid.
pub(super) fn strides(spec: &str) -> Option<Vec<i64>> {
    let mut strides = Vec::new();
    for term in spec.split('+') {
        let (list, times) = match term.rsplit_once('*') {
            Some((list, times)) => (list, times.trim().parse::<usize>().ok()?),
            None => (term, 1),
        };
        let list = list.trim().strip_prefix('[')?.strip_suffix(']')?;
        let mut own = Vec::new();
        for layer in list.split(')').map(str::trim).filter(|layer| !layer.is_empty()) {
            let layer = layer.trim_start_matches(',').trim().strip_prefix('(')?;
            let numbers: Option<Vec<i64>> =
                layer.split(',').map(|n| n.trim().parse().ok()).collect();
            let [_, _, stride] = numbers?.try_into().ok()?;
            own.push(stride);
        }
        if times > 64 {
            return None;
        }
        strides.extend(std::iter::repeat_n(own, times).flatten());
    }
    Some(strides)
}

#[cfg(test)]
mod tests {
    use super::strides;

    #[test]
    fn parses_fairseq_conv_layers() {
        let released = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]";
        assert_eq!(strides(released), Some(vec![5, 2, 2, 2, 2, 2, 2]));
        assert_eq!(strides("[(32, 10, 5), (32, 3, 2)]"), Some(vec![5, 2]));
        for wrong in ["", "[(1, 2)]", "[(1, 2, 3)] * x", "print('x')", "[(1, 2, 3)] * 1000000000"] {
            assert_eq!(strides(wrong), None, "{wrong}");
        }
    }
}
