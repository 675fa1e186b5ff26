//! Renders examples with masks, features and nearest neighbours. Uses random streams of its own, so
//! that it does not change training.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Dataset, Encoder, Features, MaskStrategy, Modality, Preview};
use tch::{Device, Kind, Tensor};

use crate::recipe::Recipe;
use crate::report::previews::{Card, Gallery, Neighbours, PreviewExamples, Shown};
use crate::report::{features, picture};

/// Number of examples with masks and features.
const SHOWN: usize = 6;
/// Maximum number of masks per example.
const MASKS: usize = 3;
/// Number of examples among which neighbours are searched.
const AMONG: usize = 48;
/// Number of examples whose neighbours are shown.
const QUERIES: usize = 6;
/// Number of neighbours of each.
const NEAREST: usize = 4;

/// Renders the examples of a pretraining run.
pub struct PreviewBuilder<M: Modality> {
    features: Features<M>,
    mask: M::Mask,
    copies: usize,
    seed: u64,
    /// Path of the data, for labels.
    data: PathBuf,
    /// Whether the examples are held out.
    held_out: bool,
    /// Labels of the examples, read once.
    labels: OnceCell<Vec<Option<String>>>,
}

/// An encoded example.
struct Encoded {
    preview: Preview,
    /// Features `(T, D)`.
    features: Tensor,
    /// Rows and columns of tokens.
    grid: [i64; 2],
}

impl<M: Modality> PreviewBuilder<M> {
    /// Creates a builder for a run of `recipe` on `data`; `held_out` says whether its examples are
    /// held out.
    pub fn new(recipe: &Recipe<M>, data: &Path, held_out: bool) -> Self {
        Self {
            features: recipe.features.clone(),
            mask: recipe.mask.clone(),
            copies: recipe.model.copies as usize,
            seed: recipe.seed,
            data: data.to_owned(),
            held_out,
            labels: OnceCell::new(),
        }
    }

    /// Renders a few of `examples`, always the same ones, with `encoder` after `step` steps.
    ///
    /// # Errors
    /// If no example can be read, features are not finite, or a tensor operation fails.
    pub fn preview(
        &self,
        examples: &M::Dataset,
        encoder: &Encoder<M::Encoder>,
        device: Device,
        step: u64,
    ) -> Result<PreviewExamples> {
        let count = examples.len().min(AMONG);
        // Evenly spaced, because data are often sorted.
        let all: Vec<usize> = (0..count).map(|i| i * examples.len() / count).collect();
        let labels = match self.labels.get() {
            Some(labels) => labels,
            None => {
                let labels = M::labels(examples, &self.data, &all)?;
                self.labels.get_or_init(|| labels)
            }
        };
        let (mut cards, mut encoded) = (Vec::new(), Vec::new());
        for (&index, label) in all.iter().zip(labels) {
            // Unusable examples are reported by training.
            let Ok(example) = self.encode(examples, encoder, device, index) else { continue };
            let picture = picture::small(&example.preview)?;
            cards.push(Card { name: short(examples.name(index)), label: label.clone(), picture });
            encoded.push((index, example));
        }
        ensure!(!encoded.is_empty(), "none of {count} examples could be read");
        let spaced = |max: usize| {
            let count = encoded.len().min(max);
            (0..count).map(|i| i * encoded.len() / count).collect::<Vec<_>>()
        };

        let chosen = spaced(SHOWN);
        let tokens: Vec<Tensor> =
            chosen.iter().map(|&i| encoded[i].1.features.shallow_clone()).collect();
        let (colours, shares) = features::colours(&tokens)?;
        let masking = M::masking(&self.mask, &self.features)?;
        let mut shown = Vec::new();
        for (&i, colours) in chosen.iter().zip(colours) {
            let (index, example) = &encoded[i];
            let masks = self.masks(&*masking, *index as u64, example)?;
            let card = Card { picture: picture::large(&example.preview)?, ..cards[i].clone() };
            shown.push(Shown { card, grid: example.grid.map(|n| n as usize), masks, colours });
        }

        let pooled: Vec<Tensor> = encoded
            .iter()
            .map(|(_, example)| example.features.f_mean_dim(&[0_i64][..], false, Kind::Float))
            .collect::<Result<_, _>>()?;
        let queries = spaced(QUERIES);
        let found = features::nearest(&Tensor::f_stack(&pooled, 0)?, &queries, NEAREST)?;
        let neighbours = queries.iter().zip(found).map(|(&of, found)| Neighbours {
            of: cards[of].clone(),
            nearest: found.into_iter().map(|(at, cosine)| (cards[at].clone(), cosine)).collect(),
        });
        let neighbours = neighbours.collect();
        let gallery =
            Gallery { held_out: self.held_out, shown, shares, neighbours, among: encoded.len() };
        Ok(PreviewExamples { step, gallery: Some(gallery), evaluated: None })
    }

    /// Encodes one example as a batch of its own.
    fn encode(
        &self,
        examples: &M::Dataset,
        encoder: &Encoder<M::Encoder>,
        device: Device,
        index: usize,
    ) -> Result<Encoded> {
        let mut rng = stream(self.seed, Purpose::HeldOut, &[index as u64, 2]);
        let example = examples.load(index, &mut rng)?;
        let batch = examples.collate(vec![example], &mut rng)?;
        let (features, grid) = tch::no_grad(|| -> Result<_> {
            let tokens = encoder.embed(&batch.to_device(device), false)?;
            let output = encoder.contextualize(&tokens, None, None)?.x; // (1, T, D)
            let features = output.f_get(0)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            Ok((features, tokens.grid()))
        })?;
        let preview =
            M::preview(examples, &self.features, &batch.inputs.f_get(0)?, grid[0] * grid[1])?;
        let preview = preview.unwrap_or_else(|| Preview::Pieces(Vec::new()));
        Ok(Encoded { preview, features, grid })
    }

    /// Draws masks as training does, one string per mask: `#` masked, `?` replaced, `.` visible.
    fn masks(
        &self,
        masking: &dyn MaskStrategy,
        index: u64,
        example: &Encoded,
    ) -> Result<Vec<String>> {
        let tokens = example.grid[0] * example.grid[1];
        let mut rng = stream(self.seed, Purpose::HeldOut, &[index, 3]);
        let rows = self.copies.min(MASKS);
        let mask = masking.sample(&vec![tokens; rows], tokens, &mut rng)?;
        let mut marks: Vec<Vec<char>> = mask
            .masked()
            .rows()
            .into_iter()
            .map(|row| row.iter().map(|&masked| if masked { '#' } else { '.' }).collect())
            .collect();
        for other in mask.substitutes() {
            marks[other.row][other.token] = '?';
        }
        Ok(marks.into_iter().map(String::from_iter).collect())
    }
}

/// Shortens a path to its last two parts.
fn short(name: String) -> String {
    let parts: Vec<&str> = name.rsplitn(3, '/').collect();
    if parts.len() < 3 { name } else { format!("{}/{}", parts[1], parts[0]) }
}
