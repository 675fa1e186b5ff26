//! Examples as an encoder sees them, made for the page. Nothing here draws from what training draws from: every
//! example has random streams of its own.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use data2vec_core::random::{Purpose, stream};
use data2vec_core::{Dataset, Encoder, FeatureEncoder, MaskStrategy};
use tch::{Device, Kind, Tensor};

use crate::modality::{Modality, Portrait};
use crate::page::exhibits::{Card, Exhibits, Gallery, Neighbours, Shown};
use crate::page::{features, picture};
use crate::recipe::Recipe;

/// Examples with masks and features.
const SHOWN: usize = 6;
/// Masks of each, at most.
const MASKS: usize = 3;
/// Examples among which neighbours are looked for.
const AMONG: usize = 48;
/// Those whose neighbours are shown, and how many.
const ASKED: usize = 6;
const NEAREST: usize = 4;

/// Makes the gallery of a run, whenever it is wanted.
pub struct Curator<M: Modality> {
    features: <M::Encoder as FeatureEncoder>::Config,
    mask: M::Mask,
    copies: usize,
    seed: u64,
    /// Where the data are, and what may be known of them.
    data: PathBuf,
    /// Whether training never sees the examples.
    held_out: bool,
    /// Looked up once.
    labels: OnceCell<Vec<Option<String>>>,
}

/// An example with its features.
struct Seen {
    portrait: Portrait,
    /// `(T, D)`
    features: Tensor,
    grid: [i64; 2],
}

impl<M: Modality> Curator<M> {
    /// Of a run by `recipe` on `data`.
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

    /// What `encoder` makes of a few of the examples after `step` steps: the same ones each time.
    pub fn exhibit(
        &self,
        examples: &M::Dataset,
        encoder: &Encoder<M::Encoder>,
        device: Device,
        step: u64,
    ) -> Result<Exhibits> {
        let count = examples.len().min(AMONG);
        // From all over the data, which often lie in order.
        let all: Vec<usize> = (0..count).map(|i| i * examples.len() / count).collect();
        let labels = match self.labels.get() {
            Some(labels) => labels,
            None => {
                let labels = M::labels(examples, &self.data, &all)?;
                self.labels.get_or_init(|| labels)
            }
        };
        let (mut cards, mut seen) = (Vec::new(), Vec::new());
        for (&index, label) in all.iter().zip(labels) {
            // Unusable ones have been told of, and counted, where they were met.
            let Ok(one) = self.look(examples, encoder, device, index) else { continue };
            let picture = picture::small(&one.portrait)?;
            cards.push(Card { name: short(examples.name(index)), label: label.clone(), picture });
            seen.push((index, one));
        }
        ensure!(!seen.is_empty(), "none of {count} examples could be read");
        let some = |most: usize| {
            let count = seen.len().min(most);
            (0..count).map(|i| i * seen.len() / count).collect::<Vec<_>>()
        };

        let chosen = some(SHOWN);
        let tokens: Vec<Tensor> =
            chosen.iter().map(|&i| seen[i].1.features.shallow_clone()).collect();
        let (colours, shares) = features::colours(&tokens)?;
        let masking = M::masking(&self.mask, &self.features)?;
        let mut shown = Vec::new();
        for (&i, colours) in chosen.iter().zip(colours) {
            let (index, one) = &seen[i];
            let masks = self.masks(&*masking, *index as u64, one)?;
            let card = Card { picture: picture::large(&one.portrait)?, ..cards[i].clone() };
            shown.push(Shown { card, grid: one.grid.map(|n| n as usize), masks, colours });
        }

        let pooled: Vec<Tensor> = seen
            .iter()
            .map(|(_, one)| one.features.f_mean_dim(&[0_i64][..], false, Kind::Float))
            .collect::<Result<_, _>>()?;
        let asked = some(ASKED);
        let found = features::nearest(&Tensor::f_stack(&pooled, 0)?, &asked, NEAREST)?;
        let neighbours = asked.iter().zip(found).map(|(&of, found)| Neighbours {
            of: cards[of].clone(),
            nearest: found.into_iter().map(|(at, cosine)| (cards[at].clone(), cosine)).collect(),
        });
        let neighbours = neighbours.collect();
        let gallery =
            Gallery { held_out: self.held_out, shown, shares, neighbours, among: seen.len() };
        Ok(Exhibits { step, gallery: Some(gallery), judged: None })
    }

    /// One example, seen alone.
    fn look(
        &self,
        examples: &M::Dataset,
        encoder: &Encoder<M::Encoder>,
        device: Device,
        index: usize,
    ) -> Result<Seen> {
        let mut rng = stream(self.seed, Purpose::HeldOut, &[index as u64, 2]);
        let example = examples.load(index, &mut rng)?;
        let batch = examples.collate(vec![example], &mut rng)?;
        let (features, grid) = tch::no_grad(|| -> Result<_> {
            let tokens = encoder.embed(&batch.to_device(device), false)?;
            let hidden = encoder.contextualize(&tokens, None, None).x; // (1, T, D)
            let features = hidden.f_get(0)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            Ok((features, tokens.grid()))
        })?;
        let portrait =
            M::portray(examples, &self.features, &batch.inputs.f_get(0)?, grid[0] * grid[1])?;
        Ok(Seen { portrait, features, grid })
    }

    /// Masks as training draws them, but from a stream of their own.
    fn masks(&self, masking: &dyn MaskStrategy, index: u64, one: &Seen) -> Result<Vec<String>> {
        let tokens = one.grid[0] * one.grid[1];
        let mut rng = stream(self.seed, Purpose::HeldOut, &[index, 3]);
        let rows = self.copies.min(MASKS);
        let mask = masking.sample(&vec![tokens; rows], tokens, &mut rng)?;
        let mut marks: Vec<Vec<char>> = mask
            .hidden()
            .rows()
            .into_iter()
            .map(|row| row.iter().map(|&hidden| if hidden { '#' } else { '.' }).collect())
            .collect();
        for other in mask.substitutes() {
            marks[other.row][other.token] = '?';
        }
        Ok(marks.into_iter().map(String::from_iter).collect())
    }
}

/// The end of a path, which tells examples apart.
fn short(name: String) -> String {
    let parts: Vec<&str> = name.rsplitn(3, '/').collect();
    if parts.len() < 3 { name } else { format!("{}/{}", parts[1], parts[0]) }
}
