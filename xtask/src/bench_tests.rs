#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: Bench,
}

fn parse(line: &str) -> Bench {
    Cli::try_parse_from(format!("bench {line}").split_whitespace()).unwrap().bench
}

#[test]
fn all_six_recipes_are_there_and_have_shapes() {
    let bench = parse("");
    let root = repo::root().unwrap();
    let shapes: Vec<(u64, f64, f64)> = bench
        .recipes
        .iter()
        .map(|name| {
            let shape = Shape::usual(&read(&root, name).unwrap().1);
            (shape.batch, shape.size, shape.amount())
        })
        .collect();
    let (speech, vision) = ((2, 10.0, 20.0), (8, 1.0, 8.0));
    let (text_v1, text) = ((8, 512.0, 4096.0), (1, 512.0, 512.0));
    assert_eq!(shapes, [speech, vision, text_v1, speech, vision, text]);
    assert!(read(&root, "speach").unwrap_err().to_string().starts_with("--recipes speach: cannot"));
}

#[test]
fn both_sides_get_the_same_line() {
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
fn the_peer_keeps_freed_memory_unless_told() {
    let variables = |line: &str| {
        let command = peer_command(Path::new("/r"), &parse(line), Path::new("py"));
        command.get_envs().filter(|(name, _)| name.to_string_lossy().starts_with("MALLOC_")).count()
    };
    assert_eq!((variables("peer"), variables("peer --peer-malloc default")), (3, 0));
}

#[test]
fn files_of_results_are_told_apart() {
    assert_eq!(parse("").name(), "step-f32-cpu");
    assert_eq!(parse("infer --device cuda:1").name(), "infer-f32-cuda");
    assert_eq!(parse("peer --compile --precision bf16").name(), "peer-step-compiled-bf16-cpu");
    assert_eq!(parse("data").name(), "data");
}
