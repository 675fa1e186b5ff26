//! data2vec on log-mel spectrograms: a modality of one's own, trained by `data2vec-train`.
//! docs/extending.md walks through this program.

mod modality;

use anyhow::{Result, bail};
use data2vec_core::{Modality, Precision};
use data2vec_train::probe::{ProbeOptions, probe};
use data2vec_train::recipe::{self, Recipe};
use data2vec_train::{Outcome, PretrainOptions, RunOptions, pretrain};
use tch::Device;

use crate::modality::Spectrogram;

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pretrain", path, data, out] => {
            let table = recipe::read(path.as_ref(), None, &[])?;
            let recipe = Recipe::<Spectrogram>::from_table(path.as_ref(), table)?;
            let run = RunOptions::new(out);
            let options = PretrainOptions { run, data: data.into(), plan: false };
            if let Outcome::Finished(Some(summary)) = pretrain(recipe, options)? {
                println!("{}", summary.exported.dir);
            }
        }
        ["extract", encoder, file] => {
            let extractor = Spectrogram::extractor(encoder.as_ref(), Device::Cpu, Precision::F32)?;
            println!("{:?}", extractor.layers(file.as_ref())?.last().map(|x| x.dim()));
        }
        ["probe", encoder, data] => {
            let options = ProbeOptions::new(encoder, data, Device::Cpu);
            for layer in probe::<Spectrogram>(&options, &mut |_| {})?.layers {
                println!(
                    "block {}: kNN {:.3}, linear {:.3}",
                    layer.layer, layer.accuracies.knn, layer.accuracies.linear
                );
            }
        }
        _ => bail!("usage: pretrain RECIPE DATA OUT | extract ENCODER FILE | probe ENCODER DATA"),
    }
    Ok(())
}
