//! Sharded moments: each rank owns some parameters, updates them and broadcasts the new values.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tch::{Device, Tensor};

use super::Group;
use crate::io::checkpoint::assign;
use crate::{Result, World};

/// The owner rank of each parameter.
#[derive(Debug)]
pub struct Owners {
    rank: usize,
    /// Owner rank by group and index in the group.
    owner: Vec<Vec<usize>>,
}

impl Owners {
    /// Assigns about as many values to each rank and frees the moments of other ranks.
    pub fn partition(groups: &mut [Group], world: &World) -> Self {
        let sizes: Vec<usize> =
            groups.iter().flat_map(|group| &group.params).map(Tensor::numel).collect();
        let mut owners = world.partition(&sizes).into_iter();
        let owner = groups.iter().map(|g| owners.by_ref().take(g.params.len()).collect()).collect();
        let owners = Self { rank: world.rank(), owner };
        for (number, group) in groups.iter_mut().enumerate() {
            for i in (0..group.params.len()).filter(|&i| !owners.is_mine(number, i)) {
                let empty = || Tensor::zeros([0], (group.params[i].kind(), Device::Cpu));
                (group.exp_avgs[i], group.exp_avg_sqs[i]) = (empty(), empty());
            }
        }
        owners
    }

    pub fn is_mine(&self, number: usize, i: usize) -> bool {
        self.owner[number][i] == self.rank
    }

    /// Broadcasts the updated parameters of each rank to all others.
    pub fn broadcast_params(&self, groups: &[Group], world: &World) -> Result<()> {
        for rank in 0..world.size() {
            let mut updated = Vec::new();
            for (group, owner) in groups.iter().zip(&self.owner) {
                let of_rank = group.params.iter().zip(owner).filter(|(_, owner)| **owner == rank);
                updated.extend(of_rank.map(|(param, _)| param.shallow_clone()));
            }
            world.broadcast(&updated, rank)?;
        }
        Ok(())
    }

    /// Gathers all moments in the CPU memory of rank 0, one parameter at a time.
    pub fn gather(&self, groups: &[Group], world: &World) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        self.for_each(groups, |names, moments, param, owner| {
            let moments = match owner == world.rank() {
                true => moments.map(Tensor::shallow_clone),
                false => tch::no_grad(|| [param.zeros_like(), param.zeros_like()]),
            };
            world.broadcast(&moments, owner)?;
            if world.is_rank0() {
                state.extend(names.into_iter().zip(moments.map(|m| m.to_device(Device::Cpu))));
            }
            Ok(())
        })?;
        Ok(state)
    }

    /// Sends each rank its own moments of those that rank 0 has `read` from the file `path`.
    pub fn scatter(
        &self,
        groups: &[Group],
        world: &World,
        path: &Path,
        read: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        self.for_each(groups, |names, moments, param, owner| {
            let received = tch::no_grad(|| [param.zeros_like(), param.zeros_like()]);
            if world.is_rank0() {
                let copies = received.each_ref().map(Tensor::shallow_clone);
                assign(path, &names.into_iter().zip(copies).collect(), read)?;
            }
            world.broadcast(&received, 0)?;
            if owner == world.rank() {
                tch::no_grad(|| {
                    for (moment, received) in moments.into_iter().zip(&received) {
                        moment.shallow_clone().copy_(received);
                    }
                });
            }
            Ok(())
        })
    }

    /// Calls `visit` with the names of the moments, the moments, the parameter and its owner.
    fn for_each(
        &self,
        groups: &[Group],
        mut visit: impl FnMut([String; 2], [&Tensor; 2], &Tensor, usize) -> Result<()>,
    ) -> Result<()> {
        for (group, owner) in groups.iter().zip(&self.owner) {
            for (i, &owner) in owner.iter().enumerate() {
                visit(group.moment_names(i), group.moments(i), &group.params[i], owner)?;
            }
        }
        Ok(())
    }
}
