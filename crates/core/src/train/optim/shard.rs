//! Moments divided over ranks: each keeps those of its own parameters, moves these, and tells the others.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use tch::{Device, Tensor};

use super::Group;
use crate::checkpoint::assign;
use crate::{World, Result};

/// Which rank keeps the moments of which parameter.
#[derive(Debug)]
pub struct Owners {
    rank: usize,
    /// By group and place in it.
    owner: Vec<Vec<usize>>,
}

impl Owners {
    /// Gives each rank about as many values, and frees the others' moments.
    pub fn divide(groups: &mut [Group], ranks: &World) -> Self {
        let sizes: Vec<usize> =
            groups.iter().flat_map(|group| &group.params).map(Tensor::numel).collect();
        let mut owners = ranks.divide(&sizes).into_iter();
        let owner = groups.iter().map(|g| owners.by_ref().take(g.params.len()).collect()).collect();
        let owners = Self { rank: ranks.rank(), owner };
        for (number, group) in groups.iter_mut().enumerate() {
            for i in (0..group.params.len()).filter(|&i| !owners.is_mine(number, i)) {
                let nothing = || Tensor::zeros([0], (group.params[i].kind(), Device::Cpu));
                (group.exp_avgs[i], group.exp_avg_sqs[i]) = (nothing(), nothing());
            }
        }
        owners
    }

    pub fn is_mine(&self, number: usize, i: usize) -> bool {
        self.owner[number][i] == self.rank
    }

    /// Tells all ranks the parameters that each has moved.
    pub fn share_params(&self, groups: &[Group], ranks: &World) -> Result<()> {
        for rank in 0..ranks.count() {
            let mut moved = Vec::new();
            for (group, owner) in groups.iter().zip(&self.owner) {
                let of_rank = group.params.iter().zip(owner).filter(|(_, owner)| **owner == rank);
                moved.extend(of_rank.map(|(param, _)| param.shallow_clone()));
            }
            ranks.broadcast(&moved, rank)?;
        }
        Ok(())
    }

    /// All moments, in rank 0's memory; one parameter's at a time are anywhere else.
    pub fn gather(&self, groups: &[Group], ranks: &World) -> Result<HashMap<String, Tensor>> {
        let mut state = HashMap::new();
        self.each(groups, |names, moments, param, owner| {
            let moments = match owner == ranks.rank() {
                true => moments.map(Tensor::shallow_clone),
                false => tch::no_grad(|| [param.zeros_like(), param.zeros_like()]),
            };
            ranks.broadcast(&moments, owner)?;
            if ranks.is_rank0() {
                state.extend(names.into_iter().zip(moments.map(|m| m.to_device(Device::Cpu))));
            }
            Ok(())
        })?;
        Ok(state)
    }

    /// Gives each rank its own of the moments that rank 0 has `read` from the file `path`.
    pub fn scatter(
        &self,
        groups: &[Group],
        ranks: &World,
        path: &Path,
        read: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        self.each(groups, |names, moments, param, owner| {
            let arrived = tch::no_grad(|| [param.zeros_like(), param.zeros_like()]);
            if ranks.is_rank0() {
                let copies = arrived.each_ref().map(Tensor::shallow_clone);
                assign(path, &names.into_iter().zip(copies).collect(), read)?;
            }
            ranks.broadcast(&arrived, 0)?;
            if owner == ranks.rank() {
                tch::no_grad(|| {
                    for (moment, arrived) in moments.into_iter().zip(&arrived) {
                        moment.shallow_clone().copy_(arrived);
                    }
                });
            }
            Ok(())
        })
    }

    /// Calls `what` for every parameter with its moments, their names, and its owner.
    fn each(
        &self,
        groups: &[Group],
        mut what: impl FnMut([String; 2], [&Tensor; 2], &Tensor, usize) -> Result<()>,
    ) -> Result<()> {
        for (group, owner) in groups.iter().zip(&self.owner) {
            for (i, &owner) in owner.iter().enumerate() {
                what(group.moment_names(i), group.moments(i), &group.params[i], owner)?;
            }
        }
        Ok(())
    }
}
