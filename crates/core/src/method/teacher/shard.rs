//! The teacher's weights divided over ranks: each keeps the exact values of its own, moves these, and tells the others
//! what they are in bf16, in which products are computed anyway.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tch::{Kind, Tensor};

use crate::checkpoint::assign;
use crate::{World, Result};

/// Of all weights that are divided.
#[derive(Debug)]
pub struct Shard {
    ranks: World,
    divided: BTreeMap<String, Divided>,
}

#[derive(Debug)]
struct Divided {
    owner: usize,
    /// bf16: what all ranks compute with.
    weight: Tensor,
    /// f32, at the owner's.
    exact: Option<Tensor>,
}

impl Shard {
    /// Gives each rank about as much of the f32 `weights`, which become bf16.
    pub fn divide(weights: BTreeMap<String, Tensor>, ranks: &World) -> Self {
        let sizes: Vec<usize> = weights.values().map(Tensor::numel).collect();
        let owners = ranks.divide(&sizes);
        let divided = weights.into_iter().zip(owners).map(|((name, mut weight), owner)| {
            let exact = weight.detach();
            weight.set_data(&exact.to_kind(Kind::BFloat16));
            let exact = (owner == ranks.rank()).then_some(exact);
            (name, Divided { owner, weight, exact })
        });
        Self { ranks: ranks.clone(), divided: divided.collect() }
    }

    /// Whether `name` is among them.
    pub fn has(&self, name: &str) -> bool {
        self.divided.contains_key(name)
    }

    /// The exact values that this rank keeps.
    pub fn own(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.divided.iter().filter_map(|(name, weight)| Some((name, weight.exact.as_ref()?)))
    }

    /// Tells all ranks what each has moved.
    ///
    /// # Errors
    /// [`Error::Dist`](crate::Error::Dist) if another rank is gone.
    pub fn tell(&self) -> Result<()> {
        for rank in 0..self.ranks.count() {
            let of_rank: Vec<Tensor> = self
                .divided
                .values()
                .filter(|weight| weight.owner == rank)
                .map(|weight| {
                    if let Some(exact) = &weight.exact {
                        tch::no_grad(|| weight.weight.shallow_clone().copy_(exact));
                    }
                    weight.weight.shallow_clone()
                })
                .collect();
            self.ranks.broadcast(&of_rank, rank)?;
        }
        Ok(())
    }

    /// All exact values, in rank 0's memory; one at a time is anywhere else.
    ///
    /// # Errors
    /// As [`tell`](Self::tell).
    pub fn gather(&self) -> Result<HashMap<String, Tensor>> {
        let mut all = HashMap::new();
        for (name, Divided { owner, weight, exact }) in &self.divided {
            let exact = match exact {
                Some(exact) => exact.shallow_clone(),
                None => tch::no_grad(|| weight.to_kind(Kind::Float)),
            };
            self.ranks.broadcast(&[exact.shallow_clone()], *owner)?;
            if self.ranks.is_rank0() {
                all.insert(name.clone(), exact.to_device(tch::Device::Cpu));
            }
        }
        Ok(all)
    }

    /// Gives each rank its own of what rank 0 has `read` from the file `path`, and all of them the rest.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if a weight is missing or of another shape; as [`tell`](Self::tell).
    pub fn scatter(&self, path: &Path, read: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, Divided { weight, exact, .. }) in &self.divided {
            let arrived = tch::no_grad(|| weight.to_kind(Kind::Float));
            if self.ranks.is_rank0() {
                assign(path, &[(name.clone(), arrived.shallow_clone())].into(), read)?;
            }
            self.ranks.broadcast(&[arrived.shallow_clone()], 0)?;
            if let Some(exact) = exact {
                tch::no_grad(|| exact.shallow_clone().copy_(&arrived));
            }
        }
        self.tell()
    }
}
