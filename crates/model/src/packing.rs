//! Latent images to tokens and back: one token is one 2×2 patch.

use tch::Tensor;

use crate::error::{ModelError, Result};

/// Side of the square of latent pixels that one token holds.
pub const PATCH: i64 = 2;

/// Rows and columns of the token grid of a latent of `height` × `width`.
pub fn grid(height: i64, width: i64) -> (i64, i64) {
    (height / PATCH, width / PATCH)
}

/// Packs `[batch, channels, height, width]` (even height and width) into
/// `[batch, height/2 · width/2, channels · 4]`, row-major, each token laid out (channel, row, column).
pub fn pack(latent: &Tensor) -> Result<Tensor> {
    let &[batch, channels, height, width] = latent.size().as_slice() else {
        return Err(ModelError::input(
            "latent",
            format!("shape {:?} is not [batch, channels, height, width]", latent.size()),
        ));
    };
    if height % PATCH != 0 || width % PATCH != 0 || height == 0 || width == 0 {
        return Err(ModelError::input(
            "latent",
            format!("height {height} and width {width} must be even and positive"),
        ));
    }
    let (rows, columns) = grid(height, width);
    // [b, c, rows, 2, columns, 2] -> [b, rows, columns, c, 2, 2]
    Ok(latent
        .f_reshape([batch, channels, rows, PATCH, columns, PATCH])?
        .f_permute([0, 2, 4, 1, 3, 5])?
        .f_reshape([batch, rows * columns, channels * PATCH * PATCH])?)
}

/// The inverse of [`pack`]: tokens `[batch, rows · columns, channels · 4]` to
/// `[batch, channels, 2 · rows, 2 · columns]`.
pub fn unpack(tokens: &Tensor, rows: i64, columns: i64) -> Result<Tensor> {
    let &[batch, count, width] = tokens.size().as_slice() else {
        return Err(ModelError::input(
            "tokens",
            format!("shape {:?} is not [batch, tokens, channels]", tokens.size()),
        ));
    };
    if rows < 1 || columns < 1 || rows.checked_mul(columns) != Some(count) || width % (PATCH * PATCH) != 0 {
        return Err(ModelError::input(
            "tokens",
            format!(
                "shape {:?} is not a grid of {rows} by {columns} tokens of 4 channels each",
                tokens.size()
            ),
        ));
    }
    let channels = width / (PATCH * PATCH);
    // [b, rows, columns, c, 2, 2] -> [b, c, rows, 2, columns, 2]
    Ok(tokens
        .f_reshape([batch, rows, columns, channels, PATCH, PATCH])?
        .f_permute([0, 3, 1, 4, 2, 5])?
        .f_reshape([batch, channels, rows * PATCH, columns * PATCH])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn unpack_undoes_pack() {
        let latent = Tensor::arange(2 * 3 * 4 * 6, (Kind::Float, Device::Cpu)).view([2, 3, 4, 6]);
        let tokens = pack(&latent).unwrap();
        assert_eq!(tokens.size(), [2, 6, 12]);
        // The first token holds the top left 2×2 pixels of each channel.
        let first: Vec<f32> = Vec::try_from(tokens.get(0).get(0).narrow(0, 0, 4)).unwrap();
        assert_eq!(first, [0.0, 1.0, 6.0, 7.0]);
        assert_eq!(unpack(&tokens, 2, 3).unwrap(), latent);
    }

    #[test]
    fn misshapen_inputs_are_errors() {
        let odd = Tensor::zeros([1, 4, 3, 4], (Kind::Float, Device::Cpu));
        assert!(pack(&odd).is_err());
        assert!(pack(&odd.get(0)).is_err());
        let tokens = Tensor::zeros([1, 6, 16], (Kind::Float, Device::Cpu));
        assert!(unpack(&tokens, 2, 2).is_err());
        assert!(unpack(&tokens, -2, -3).is_err());
    }
}
