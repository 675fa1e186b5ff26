//! How examples are shown in a report.

/// An example, rendered for a report.
#[derive(Clone, Debug, PartialEq)]
pub enum Preview {
    /// A picture; tokens lie on it from left to right, or as a grid from the top left.
    Raster(Raster),
    /// A piece of writing per token.
    Pieces(Vec<String>),
}

/// A picture: rows from the top, channels interleaved.
#[derive(Clone, Debug, PartialEq)]
pub struct Raster {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// 1 (grey) or 3 (red, green, blue).
    pub channels: usize,
    /// `height · width · channels` values.
    pub values: Vec<u8>,
    /// Whether it is dark on light ground, like a spectrogram: dark pages invert it.
    pub is_drawing: bool,
}
