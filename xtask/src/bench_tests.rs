#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: BenchArgs,
}

fn parse(line: &str) -> BenchArgs {
    Cli::try_parse_from(format!("bench {line}").split_whitespace()).unwrap().bench
}

#[test]
fn default_recipes_have_shapes() {
    let bench = parse("");
    let root = repo::root().unwrap();
    let shapes: Vec<(u64, f64, f64)> = bench
        .recipes
        .iter()
        .map(|name| {
            let shape = Shape::default_for(&read(&root, name).unwrap().1);
            (shape.batch, shape.size, shape.amount())
        })
        .collect();
    let (speech, vision) = ((2, 10.0, 20.0), (8, 1.0, 8.0));
    let (text_v1, text) = ((8, 512.0, 4096.0), (1, 512.0, 512.0));
    assert_eq!(shapes, [speech, vision, text_v1, speech, vision, text]);
    assert!(read(&root, "speach").unwrap_err().to_string().starts_with("--recipes speach: cannot"));
}

#[test]
fn both_programs_get_the_same_arguments() {
    let bench = parse("peer --precision bf16 --infer --set a.b=1");
    let shape = Shape { batch: 2, size: 0.5, unit: Unit::Seconds };
    let line = bench.arguments(Path::new("r.toml"), shape, 3);
    let line: Vec<_> = line.iter().map(|word| word.to_string_lossy()).collect();
    assert_eq!(
        line.join(" "),
        "infer r.toml --batch 2 --size 0.5 --precision bf16 --device cpu --threads 3 \
         --set transformer.layer_drop=0 --set a.b=1"
    );
}

#[test]
fn peer_keeps_freed_memory_by_default() {
    let variables = |line: &str| {
        let command = peer_command(Path::new("/r"), &parse(line), Path::new("py"));
        command.get_envs().filter(|(name, _)| name.to_string_lossy().starts_with("MALLOC_")).count()
    };
    assert_eq!((variables("peer"), variables("peer --peer-malloc default")), (3, 0));
}

#[test]
fn result_names_are_unique() {
    assert_eq!(parse("").result_name(), "step-f32-cpu");
    assert_eq!(parse("infer --device cuda:1").result_name(), "infer-f32-cuda");
    assert_eq!(
        parse("peer --compile --precision bf16").result_name(),
        "peer-step-compiled-bf16-cpu"
    );
    assert_eq!(parse("data").result_name(), "data");
}
