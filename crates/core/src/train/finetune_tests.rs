use super::*;

#[test]
fn blocks_learn_the_slower_the_deeper_they_lie() {
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
    let pace = |config: &FinetuneConfig, name: &str| {
        let ParamGroup { scale, start } = config.pace(name, 3);
        (scale, start)
    };
    // BEiT: the last block decay¹, the first decay^depth, below them decay^(depth + 1).
    assert_eq!(pace(&config, "encoder.transformer.blocks.2.mlp.fc1.weight"), (0.5, 7));
    assert_eq!(pace(&config, "encoder.transformer.blocks.0.norm1.bias"), (0.125, 7));
    assert_eq!(pace(&config, "encoder.features.embed.proj.weight"), (0.0625, 7));
    assert_eq!(pace(&config, "encoder.transformer.input_norm.weight"), (1.0, 7));
    assert_eq!(pace(&config, "head.out.weight"), (1.0, 0));
    let config = FinetuneConfig { decay_embed: false, ..config };
    assert_eq!(pace(&config, "encoder.features.embed.proj.weight"), (1.0, 7));
}
