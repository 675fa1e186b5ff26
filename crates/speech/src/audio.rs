//! Reads audio files as the input of the model: mono, 16 kHz, `f32`.
//!
//! Formats: WAV (PCM, float, A-law, µ-law, ADPCM), AIFF, CAF, FLAC, OGG Vorbis, MP3, AAC (ADTS,
//! M4A) and ALAC (M4A). A damaged file is an error and never partly decoded or silent: a corpus is
//! better without it.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use data2vec_core::{Error, Result, guarded};
use multiversion::multiversion;
use symphonia::core::{
    codecs::{
        CodecParameters,
        audio::{
            AudioDecoderOptions,
            well_known::{CODEC_ID_AAC, CODEC_ID_MP3, CODEC_ID_VORBIS},
        },
    },
    errors::Error as DecodeError,
    formats::{
        FormatOptions, FormatReader, Track, TrackType,
        probe::Hint,
        well_known::{FORMAT_ID_ADTS, FORMAT_ID_MP1, FORMAT_ID_MP2, FORMAT_ID_MP3},
    },
    io::{MediaSource, MediaSourceStream},
    meta::MetadataOptions,
};

use crate::resample::{resample, resampled_len};

/// Sampling rate of all decoded audio in Hz.
pub const SAMPLE_RATE: u32 = 16_000;

/// Extensions, in lower case, of audio files in a directory.
pub const EXTENSIONS: [&str; 14] = [
    "wav", "flac", "mp3", "ogg", "oga", "m4a", "mp4", "aac", "aif", "aiff", "aifc", "caf", "mp2",
    "mka",
];

/// Accepted sampling rates in Hz.
const RATES: std::ops::RangeInclusive<u32> = 1_000..=768_000;
/// Maximum number of channels.
const MAX_CHANNELS: usize = 64;
/// Maximum length of a file in seconds; longer headers are wrong, longer files must be split first.
pub(crate) const MAX_SECONDS: u64 = 12 * 3600;

/// Length and format of an audio file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AudioInfo {
    /// Length in samples at [`SAMPLE_RATE`]; an estimate for MP3 without an index and for raw AAC.
    pub samples: u64,
    /// Sampling rate of the file in Hz.
    pub rate: u32,
    /// Number of channels of the file.
    pub channels: usize,
}

/// Reads a file: the mean of its channels, resampled to [`SAMPLE_RATE`], not normalized.
///
/// The result is deterministic.
///
/// # Errors
/// Returns [`Error::Io`] if the file cannot be read, and [`Error::File`] if it is not audio, damaged,
/// truncated, empty or silent, or has NaN or infinite samples.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<f32>> {
    Ok(read_with_info(path)?.0)
}

/// Reads a file and returns its samples with their length, and the format of the file; see
/// [`read`].
///
/// # Errors
/// Returns the errors of [`read`].
pub fn read_with_info(path: impl AsRef<Path>) -> Result<(Vec<f32>, AudioInfo)> {
    let path = path.as_ref();
    guarded(path, || finish(path, decode(open(path)?, path)?))
}

/// Reads audio from memory or any other source; see [`read`]. Errors show `name`, whose extension
/// helps to detect the format.
///
/// # Errors
/// Returns the errors of [`read`].
pub fn read_from(
    source: impl Read + Seek + Send + Sync + 'static,
    name: impl AsRef<Path>,
) -> Result<Vec<f32>> {
    Ok(read_from_with_info(source, name.as_ref())?.0)
}

/// Reads samples and format from any source; see [`read_with_info`] and [`read_from`].
pub(crate) fn read_from_with_info(
    source: impl Read + Seek + Send + Sync + 'static,
    name: &Path,
) -> Result<(Vec<f32>, AudioInfo)> {
    guarded(name, || finish(name, decode(sized(source, name)?, name)?))
}

/// Reads length, rate and channels of a file from its header, or by decoding if the header lacks
/// them.
///
/// # Errors
/// Returns the errors of [`read`] that the header shows.
pub fn probe(path: impl AsRef<Path>) -> Result<AudioInfo> {
    let path = path.as_ref();
    probe_with(path, || open(path))
}

/// Reads length, rate and channels from memory; see [`probe`].
pub(crate) fn probe_bytes(bytes: Bytes, name: &Path) -> Result<AudioInfo> {
    probe_with(name, || sized(Cursor::new(bytes.clone()), name))
}

fn probe_with(path: &Path, open: impl Fn() -> Result<Box<dyn MediaSource>>) -> Result<AudioInfo> {
    guarded(path, || {
        let format = detect_format(open()?, path)?;
        let track = audio_track(format.as_ref(), path)?;
        let CodecParameters::Audio(params) = codec(track, path)? else {
            return Err(Error::file(path, "its audio track has no audio codec"));
        };
        let channels = params.channels.as_ref().map(|channels| channels.count());
        let (Some(rate), Some(frames), Some(channels)) =
            (params.sample_rate, frames(track), channels)
        else {
            let sound = decode(open()?, path)?;
            let samples = resampled_len(sound.mono.len(), sound.rate, SAMPLE_RATE) as u64;
            return Ok(AudioInfo { samples, rate: sound.rate, channels: sound.channels });
        };
        check_layout(rate, channels, path)?;
        check_duration(frames, rate, path)?;
        if frames == 0 {
            return Err(Error::file(path, "holds no samples"));
        }
        let samples = resampled_len(frames as usize, rate, SAMPLE_RATE) as u64;
        Ok(AudioInfo { samples, rate, channels })
    })
}

/// Normalizes a signal to zero mean and unit variance: `(x − mean) / √(var + 1e-5)` with the biased
/// variance, like fairseq's `layer_norm(wav, wav.shape)` in the training of the released models.
#[multiversion(targets("x86_64+avx2"))]
pub fn normalize(wave: &mut [f32]) {
    let n = wave.len().max(1) as f64;
    let mean = sum(wave, |x| x) / n;
    let var = sum(wave, |x| (x - mean).powi(2)) / n;
    let scale = 1.0 / (var + 1e-5).sqrt();
    for x in wave {
        *x = ((f64::from(*x) - mean) * scale) as f32;
    }
}

/// Returns the sum of `term` over the signal, in eight partial sums for SIMD.
#[inline(always)]
fn sum(wave: &[f32], term: impl Fn(f64) -> f64) -> f64 {
    let (chunks, rest) = wave.as_chunks::<8>();
    let mut parts = [0.0; 8];
    for chunk in chunks {
        for (part, &x) in parts.iter_mut().zip(chunk) {
            *part += term(f64::from(x));
        }
    }
    parts.iter().sum::<f64>() + rest.iter().map(|&x| term(f64::from(x))).sum::<f64>()
}

/// A decoded signal with averaged channels.
struct Sound {
    mono: Vec<f32>,
    rate: u32,
    channels: usize,
}

/// Checks a decoded signal and resamples it to [`SAMPLE_RATE`].
fn finish(path: &Path, sound: Sound) -> Result<(Vec<f32>, AudioInfo)> {
    let Sound { mono, rate, channels } = sound;
    let Some(&first) = mono.first() else {
        return Err(Error::file(path, "holds no samples"));
    };
    // A fold without early exit vectorizes, unlike `position`.
    let is_finite = mono.iter().fold(true, |all, x| all & x.is_finite());
    if !is_finite && let Some(at) = mono.iter().position(|x| !x.is_finite()) {
        let second = at as f64 / f64::from(rate);
        return Err(Error::file(path, format!("sample at {second:.3} s is NaN or infinite")));
    }
    if mono.iter().all(|&x| x == first) {
        return Err(Error::file(path, "silent: all samples are equal"));
    }
    let wave = match rate {
        SAMPLE_RATE => mono,
        _ => resample(&mono, rate, SAMPLE_RATE).map_err(|reason| Error::file(path, reason))?,
    };
    let info = AudioInfo { samples: wave.len() as u64, rate, channels };
    Ok((wave, info))
}

fn decode(source: Box<dyn MediaSource>, path: &Path) -> Result<Sound> {
    let mut format = detect_format(source, path)?;
    let track = audio_track(format.as_ref(), path)?;
    let (track_id, expected) = (track.id, frames(track));
    let CodecParameters::Audio(params) = codec(track, path)?.clone() else {
        return Err(Error::file(path, "its audio track has no audio codec"));
    };
    if let (Some(rate), Some(frames)) = (params.sample_rate, expected) {
        check_duration(frames, rate, path)?;
    }
    // The MD5 of FLAC is not checked, which would take a third of the time: each frame has its own
    // checksum, and lost frames make the file too short.
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(&params, &AudioDecoderOptions::default())
        .map_err(|error| Error::file(path, format!("cannot be decoded: {error}")))?;

    let mut sound = Sound { mono: Vec::new(), rate: 0, channels: 0 };
    let mut packet_samples: Vec<f32> = Vec::new(); // interleaved
    loop {
        let packet = match format.next_packet() {
            Ok(Some(packet)) if packet.track_id == track_id => packet,
            Ok(Some(_)) => continue,
            Ok(None) => break,
            Err(error) => return Err(decode_error(&sound, &error, path)),
        };
        let decoded =
            decoder.decode(&packet).map_err(|error| decode_error(&sound, &error, path))?;
        let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
        if sound.rate == 0 {
            check_layout(rate, channels, path)?;
            (sound.rate, sound.channels) = (rate, channels);
        } else if (sound.rate, sound.channels) != (rate, channels) {
            let at = sound.mono.len() as f64 / f64::from(sound.rate);
            return Err(Error::file(path, format!("changes rate or channels at {at:.2} s")));
        }
        decoded.copy_to_vec_interleaved(&mut packet_samples);
        if channels == 1 {
            sound.mono.extend_from_slice(&packet_samples);
        } else {
            let mean = |frame: &[f32]| frame.iter().sum::<f32>() / channels as f32;
            sound.mono.extend(packet_samples.chunks_exact(channels).map(mean));
        }
        check_duration(sound.mono.len() as u64, rate, path)?;
    }
    if let Some(expected) = expected.filter(|_| is_exact(format.as_ref(), track_id)) {
        // Lossy codecs work in blocks of up to 1152 frames, and not all containers say how much of the
        // first and the last one is padding.
        let lossy = [CODEC_ID_MP3, CODEC_ID_AAC, CODEC_ID_VORBIS].contains(&params.codec);
        let slack = if lossy { 2 * 1152 } else { 0 };
        let got = sound.mono.len() as u64;
        if got + slack < expected {
            let seconds = |frames: u64| frames as f64 / f64::from(sound.rate);
            let (got, all) = (seconds(got), seconds(expected));
            let reason = format!("truncated after {got:.2} s, but the header says {all:.2} s");
            return Err(Error::file(path, reason));
        }
        sound.mono.truncate(expected as usize);
    }
    Ok(sound)
}

/// Returns true if the length in the header is exact, not estimated from the file size.
fn is_exact(format: &dyn FormatReader, track_id: u32) -> bool {
    match format.format_info().format {
        FORMAT_ID_ADTS | FORMAT_ID_MP1 | FORMAT_ID_MP2 => false,
        // Encoders that write delay and padding also write the number of frames.
        FORMAT_ID_MP3 => {
            format.tracks().iter().any(|track| track.id == track_id && track.delay.is_some())
        }
        _ => true,
    }
}

fn decode_error(sound: &Sound, error: &DecodeError, path: &Path) -> Error {
    let after = sound.mono.len() as f64 / f64::from(sound.rate.max(1));
    let reason = match error {
        DecodeError::IoError(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            format!("truncated after {after:.2} s")
        }
        DecodeError::IoError(source) => {
            return Error::io(path, io::Error::new(source.kind(), source.to_string()));
        }
        DecodeError::ResetRequired => {
            format!("contains several streams, the second one after {after:.2} s; split the file")
        }
        error => format!("damaged after {after:.2} s: {error}"),
    };
    Error::file(path, reason)
}

fn detect_format(source: Box<dyn MediaSource>, path: &Path) -> Result<Box<dyn FormatReader>> {
    let mut hint = Hint::new();
    if let Some(extension) = path.extension().and_then(|extension| extension.to_str()) {
        hint.with_extension(extension);
    }
    let stream = MediaSourceStream::new(source, Default::default());
    symphonia::default::get_probe()
        .probe(&hint, stream, FormatOptions::default(), MetadataOptions::default())
        .map_err(|error| match error {
            DecodeError::IoError(source) if source.kind() != io::ErrorKind::UnexpectedEof => {
                Error::io(path, source)
            }
            error => {
                Error::file(path, format!("not audio of a known format, or cut off ({error})"))
            }
        })
}

fn audio_track<'a>(format: &'a dyn FormatReader, path: &Path) -> Result<&'a Track> {
    format.default_track(TrackType::Audio).ok_or_else(|| Error::file(path, "has no audio track"))
}

fn codec<'a>(track: &'a Track, path: &Path) -> Result<&'a CodecParameters> {
    let unknown = || Error::file(path, "its audio codec is unknown");
    track.codec_params.as_ref().ok_or_else(unknown)
}

/// Returns the number of frames (samples per channel) at the rate of the file, if the header has it.
fn frames(track: &Track) -> Option<u64> {
    track.num_frames.or_else(|| {
        let rate = track.codec_params.as_ref()?.audio()?.sample_rate?;
        let base = track.time_base?;
        let seconds = f64::from(base.numer.get()) / f64::from(base.denom.get());
        Some((track.duration?.get() as f64 * seconds * f64::from(rate)).round() as u64)
    })
}

fn check_layout(rate: u32, channels: usize, path: &Path) -> Result<()> {
    if !RATES.contains(&rate) {
        return Err(Error::file(path, format!("sampling rate {rate} Hz is outside {RATES:?}")));
    }
    if !(1..=MAX_CHANNELS).contains(&channels) {
        return Err(Error::file(path, format!("{channels} channels; must be 1 to {MAX_CHANNELS}")));
    }
    Ok(())
}

fn check_duration(frames: u64, rate: u32, path: &Path) -> Result<()> {
    if frames / u64::from(rate.max(1)) >= MAX_SECONDS {
        let reason = format!("longer than {} h; split it", MAX_SECONDS / 3600);
        return Err(Error::file(path, reason));
    }
    Ok(())
}

fn open(path: &Path) -> Result<Box<dyn MediaSource>> {
    // Checked before opening: opening a named pipe without a writer would block.
    let meta = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
    if !meta.is_file() {
        return Err(Error::file(path, "is not a file"));
    }
    if meta.len() == 0 {
        return Err(Error::file(path, "is empty (0 bytes)"));
    }
    Ok(Box::new(File::open(path).map_err(|source| Error::io(path, source))?))
}

/// A reader of known length, which decoders need.
struct SizedReader<R> {
    inner: R,
    len: u64,
}

fn sized<R>(mut inner: R, name: &Path) -> Result<Box<dyn MediaSource>>
where
    R: Read + Seek + Send + Sync + 'static,
{
    let mut measure = || {
        let len = inner.seek(SeekFrom::End(0))?;
        inner.rewind()?;
        Ok(len)
    };
    let len = measure().map_err(|source| Error::io(name, source))?;
    if len == 0 {
        return Err(Error::file(name, "is empty (0 bytes)"));
    }
    Ok(Box::new(SizedReader { inner, len }))
}

impl<R: Read> Read for SizedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

impl<R: Seek> Seek for SizedReader<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

impl<R: Read + Seek + Send + Sync> MediaSource for SizedReader<R> {
    fn is_seekable(&self) -> bool {
        true
    }

    fn byte_len(&self) -> Option<u64> {
        Some(self.len)
    }
}
