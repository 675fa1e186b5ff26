//! What the processes of a run tell each other before every step.

use std::collections::BTreeMap;

use anyhow::Result;
use data2vec_core::{Dataset, Loader};

use super::feed::check_bad;
use super::{Run, Trainee};
use crate::signals::Stop;

impl<T: Trainee, D: Dataset<Batch = T::Batch>> Run<T, D> {
    /// Takes note of unusable examples that this process has met. Returns those that are new.
    pub(super) fn new_bad(
        &mut self,
        loader: &Loader<T::Batch>,
    ) -> Result<BTreeMap<String, String>> {
        let mut news: BTreeMap<String, String> = loader.bad().into_iter().collect();
        news.retain(|name, _| !self.pending.bad.contains(name));
        self.meet_bad(&news)?;
        Ok(news)
    }

    /// Tells of unusable examples, and ends the run if they are too many.
    fn meet_bad(&mut self, news: &BTreeMap<String, String>) -> Result<()> {
        self.bad_list.as_mut().map_or(Ok(()), |list| list.add(news.values()))?;
        for (name, reason) in news {
            if self.pending.bad.insert(name.clone()) {
                self.log.say(&format!("note: skipped {reason}"));
                check_bad(&self.train, self.bad_before + self.pending.bad.len(), reason)?;
            }
        }
        Ok(())
    }

    /// What all processes have loaded, and whether one of them was told to stop. All get to know unusable
    /// examples that are news to one of them.
    pub(super) fn agree(
        &mut self,
        stop: &Stop,
        batches: usize,
        size: u64,
        news: &BTreeMap<String, String>,
    ) -> Result<Agreed> {
        let code = stop.exit_code();
        let is = |signal: u8| f64::from(code == Some(128 + signal));
        let mine = [batches as f64, size as f64, news.len() as f64, is(2), is(15)];
        let [batches, size, bad, interrupted, terminated] =
            self.ranks.sum_numbers(mine, self.trainee.device())?;
        if self.ranks.count() > 1 && bad > 0.0 {
            for text in self.ranks.gather_texts(&serde_json::to_string(news)?)? {
                self.meet_bad(&serde_json::from_str(&text)?)?;
            }
        }
        let stop = match (interrupted > 0.0, terminated > 0.0) {
            (true, _) => Some(130),
            (_, true) => Some(143),
            _ => None,
        };
        Ok(Agreed { batches: batches as u64, size, stop })
    }
}

/// See [`Run::agree`].
pub(super) struct Agreed {
    /// How many there are.
    pub batches: u64,
    /// Of all of them.
    pub size: f64,
    /// The exit code, if all are to stop.
    pub stop: Option<u8>,
}
