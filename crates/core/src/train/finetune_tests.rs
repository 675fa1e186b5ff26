use super::*;

#[test]
fn deeper_blocks_have_lower_learning_rates() {
    let config = FinetuneConfig {
        freeze_steps: 7,
        freeze_local: false,
        layer_decay: 0.5,
        decay_embed: true,
        input_dropout: 0.0,
        dropout: 0.0,
        attention_dropout: 0.0,
        activation_dropout: 0.0,
        layer_drop: 0.0,
        drop_path: 0.0,
        precision: Precision::F32,
        activation_checkpointing: false,
    };
    let settings = |config: &FinetuneConfig, name: &str| {
        let ParamGroup { lr_scale, freeze_steps } = config.param_group(name, 3);
        (lr_scale, freeze_steps)
    };
    // As in BEiT: decay¹ for the last block, decay^depth for the first, decay^(depth + 1) below it.
    assert_eq!(settings(&config, "encoder.transformer.blocks.2.mlp.fc1.weight"), (0.5, 7));
    assert_eq!(settings(&config, "encoder.transformer.blocks.0.norm1.bias"), (0.125, 7));
    assert_eq!(settings(&config, "encoder.features.embed.proj.weight"), (0.0625, 7));
    assert_eq!(settings(&config, "encoder.transformer.input_norm.weight"), (1.0, 7));
    assert_eq!(settings(&config, "head.out.weight"), (1.0, 0));
    let config = FinetuneConfig { decay_embed: false, ..config };
    assert_eq!(settings(&config, "encoder.features.embed.proj.weight"), (1.0, 7));
}
