//! One encoder serves many requests of an async handler: encoders are `Send`, not `Sync`, so a thread
//! of its own owns the encoder and answers over channels.

use std::thread;

use data2vec_core::{Data2Vec, Encoder, Mask, TrainState};
use data2vec_speech::{SpeechEncoder, WaveEncoder};
use data2vec_tests::tiny::{self, FixedMask};
use ndarray::{Array2, array};
use tch::Device;
use tokio::sync::{mpsc, oneshot};

/// Samples, and where the features go.
type Request = (Vec<f32>, oneshot::Sender<Array2<f32>>);

/// Starts the thread that owns the encoder.
fn serve(encoder: SpeechEncoder) -> mpsc::Sender<Request> {
    let (sender, mut requests) = mpsc::channel::<Request>(16);
    thread::spawn(move || {
        while let Some((samples, reply)) = requests.blocking_recv() {
            let features = encoder.features(&samples).expect("long enough");
            let _ = reply.send(features); // a client that is gone needs no answer
        }
    });
    sender
}

/// An async handler.
async fn handle(encoder: mpsc::Sender<Request>, samples: Vec<f32>) -> Array2<f32> {
    let (reply, features) = oneshot::channel();
    encoder.send((samples, reply)).await.expect("the encoder's thread runs");
    features.await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_encoder_serves_concurrent_requests() {
    let mask = FixedMask(Mask::new(array![[true, false]]).expect("a masked token"));
    let model = Data2Vec::<WaveEncoder>::new(tiny::speech_v2(), Box::new(mask), Device::Cpu, 1);
    let dir = tempfile::tempdir().expect("a directory");
    model.expect("valid settings").export(dir.path()).expect("written");
    let load = || SpeechEncoder::load(dir.path(), Device::Cpu).expect("an encoder");
    let (alone, encoder) = (load(), serve(load()));
    let recordings: Vec<Vec<f32>> = (0..8)
        .map(|i| (0..4000 + 400 * i).map(|t| (t as f32 * 0.01 * (i + 1) as f32).sin()).collect())
        .collect();
    let tasks: Vec<_> = recordings
        .iter()
        .map(|samples| tokio::spawn(handle(encoder.clone(), samples.clone())))
        .collect();
    for (task, samples) in tasks.into_iter().zip(&recordings) {
        assert_eq!(task.await.expect("no panic"), alone.features(samples).expect("long enough"));
    }
}

#[test]
fn models_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Encoder<WaveEncoder>>();
    is_send::<SpeechEncoder>();
    is_send::<TrainState<WaveEncoder>>();
}
