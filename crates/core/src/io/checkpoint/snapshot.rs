//! What a checkpoint holds, copied, so that training goes on while it is written.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use tch::{Device, Tensor};

use super::write_tensors;
use crate::{Error, Result};

/// The files of a checkpoint, in memory: copies that further steps do not change, on the CPU.
#[derive(Debug, Default)]
pub struct Snapshot {
    tensors: Vec<(&'static str, HashMap<String, Tensor>)>,
    texts: Vec<(&'static str, String)>,
}

impl Snapshot {
    /// Copies `tensors`, for the safetensors file `name`.
    ///
    /// # Errors
    /// [`Error::Torch`] if there is no memory for the copies.
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

    /// Adds the text of the file `name`.
    pub fn add_text(&mut self, name: &'static str, text: String) {
        self.texts.push((name, text));
    }

    /// Writes all files to the folder `dir` and flushes them to the disk.
    ///
    /// # Errors
    /// [`Error::Io`] if one cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        for (name, tensors) in &self.tensors {
            write_tensors(&dir.join(name), tensors)?;
        }
        for (name, text) in &self.texts {
            let path = dir.join(name);
            let written = File::create(&path).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            });
            written.map_err(|e| Error::io(&path, e))?;
        }
        Ok(())
    }
}
