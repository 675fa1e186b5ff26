//! Copies of the content of a checkpoint, to write while training continues.

use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Tensor};

use super::write_tensors;
use crate::Result;
use crate::io::file::write_file;

/// The files of a checkpoint, copied to CPU memory.
#[derive(Debug, Default)]
pub struct Snapshot {
    tensors: Vec<(&'static str, HashMap<String, Tensor>)>,
    files: Vec<(&'static str, String)>,
}

impl Snapshot {
    /// Copies `tensors`, to be written to the safetensors file `name`.
    ///
    /// # Errors
    /// Returns [`Error::Torch`](crate::Error::Torch) if memory is short.
    pub fn add_tensors(
        &mut self,
        name: &'static str,
        tensors: &HashMap<String, Tensor>,
    ) -> Result<()> {
        let copy = |(name, tensor): (&String, &Tensor)| {
            let mut copy = Tensor::f_empty(tensor.size(), (tensor.kind(), Device::Cpu))?;
            copy.f_copy_(tensor)?;
            Ok((name.clone(), copy))
        };
        let copies: Result<_> = tch::no_grad(|| tensors.iter().map(copy).collect());
        self.tensors.push((name, copies?));
        Ok(())
    }

    /// Adds a text file `name`.
    pub fn add_file(&mut self, name: &'static str, content: String) {
        self.files.push((name, content));
    }

    /// Writes all files to the directory `dir` and flushes them to disk.
    ///
    /// # Errors
    /// Returns [`Error::Io`](crate::Error::Io) if a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        for (name, tensors) in &self.tensors {
            write_tensors(&dir.join(name), tensors)?;
        }
        for (name, content) in &self.files {
            write_file(&dir.join(name), content)?;
        }
        Ok(())
    }
}
