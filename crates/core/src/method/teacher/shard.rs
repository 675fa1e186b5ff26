//! Shards the teacher's weights over ranks: each keeps and averages the exact values of its share and
//! broadcasts them in bf16, in which products are computed anyway.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tch::{Kind, Tensor};

use crate::io::checkpoint::assign;
use crate::{Result, World};

/// The sharded weights.
#[derive(Debug)]
pub struct Shard {
    world: World,
    weights: BTreeMap<String, Sharded>,
}

#[derive(Debug)]
struct Sharded {
    owner: usize,
    /// bf16, for computing; on all ranks.
    weight: Tensor,
    /// f32, on the owner.
    exact: Option<Tensor>,
}

impl Shard {
    /// Divides the f32 `weights` about evenly over the ranks, and rounds them to bf16.
    pub fn divide(weights: BTreeMap<String, Tensor>, world: &World) -> Self {
        let sizes: Vec<usize> = weights.values().map(Tensor::numel).collect();
        let owners = world.partition(&sizes);
        let weights = weights.into_iter().zip(owners).map(|((name, mut weight), owner)| {
            let exact = weight.detach();
            weight.set_data(&exact.to_kind(Kind::BFloat16));
            let exact = (owner == world.rank()).then_some(exact);
            (name, Sharded { owner, weight, exact })
        });
        Self { world: world.clone(), weights: weights.collect() }
    }

    /// Returns whether the weight `name` is sharded.
    pub fn has(&self, name: &str) -> bool {
        self.weights.contains_key(name)
    }

    /// Iterates over the exact values that this rank keeps.
    pub fn own(&self) -> impl Iterator<Item = (&String, &Tensor)> {
        self.weights.iter().filter_map(|(name, weight)| Some((name, weight.exact.as_ref()?)))
    }

    /// Broadcasts each rank's share, rounded to bf16.
    ///
    /// # Errors
    /// [`Error::Dist`](crate::Error::Dist) if another rank is gone.
    pub fn publish(&self) -> Result<()> {
        for rank in 0..self.world.size() {
            let share: Vec<Tensor> = self
                .weights
                .values()
                .filter(|weight| weight.owner == rank)
                .map(|weight| {
                    if let Some(exact) = &weight.exact {
                        tch::no_grad(|| weight.weight.shallow_clone().copy_(exact));
                    }
                    weight.weight.shallow_clone()
                })
                .collect();
            self.world.broadcast(&share, rank)?;
        }
        Ok(())
    }

    /// Collects all exact values in rank 0's memory, one at a time.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn gather(&self) -> Result<HashMap<String, Tensor>> {
        let mut all = HashMap::new();
        for (name, Sharded { owner, weight, exact }) in &self.weights {
            let exact = match exact {
                Some(exact) => exact.shallow_clone(),
                None => tch::no_grad(|| weight.to_kind(Kind::Float)),
            };
            self.world.broadcast(&[exact.shallow_clone()], *owner)?;
            if self.world.is_rank0() {
                all.insert(name.clone(), exact.to_device(tch::Device::Cpu));
            }
        }
        Ok(all)
    }

    /// Sends each rank its share of the weights that rank 0 has `read` from the file `path`.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if a weight is missing or of another shape; as [`publish`](Self::publish).
    pub fn scatter(&self, path: &Path, read: &BTreeMap<String, Tensor>) -> Result<()> {
        for (name, Sharded { weight, exact, .. }) in &self.weights {
            let received = tch::no_grad(|| weight.to_kind(Kind::Float));
            if self.world.is_rank0() {
                assign(path, &[(name.clone(), received.shallow_clone())].into(), read)?;
            }
            self.world.broadcast(&[received.shallow_clone()], 0)?;
            if let Some(exact) = exact {
                tch::no_grad(|| exact.shallow_clone().copy_(&received));
            }
        }
        self.publish()
    }
}
