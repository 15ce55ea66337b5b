use super::RmsNorm;
use crate::params::Parameter;
use burn::tensor::{Device, Tensor};
use danlu_core::Rng;
use danlu_ops::ConvShape;

/// Convolution with channels last.
#[derive(Debug, Clone)]
pub struct Conv {
    /// `[outputs, kernel rows, kernel columns, inputs]`.
    pub weight: Parameter,
    /// `[outputs]`.
    pub bias: Parameter,
    /// Kernel, stride, padding.
    pub shape: ConvShape,
}

impl Conv {
    /// Weights with variance `gain^2 / fan-in`, biases 0.
    pub fn new(
        name: &str,
        [outputs, inputs]: [usize; 2],
        shape: ConvShape,
        gain: f32,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let [kh, kw] = shape.kernel;
        let std = gain / ((kh * kw * inputs) as f32).sqrt();
        Self {
            weight: Parameter::normal(
                format!("{name}.weight"),
                &[outputs, kh, kw, inputs],
                std,
                rng,
                device,
            ),
            bias: Parameter::constant(format!("{name}.bias"), &[outputs], 0.0, device),
            shape,
        }
    }

    /// `[batch, height, width, inputs]` to `[batch, height', width', outputs]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        danlu_ops::conv2d(x, self.weight.tensor.clone(), self.bias.tensor.clone(), self.shape)
    }
}

/// `[n, h, w, c]` to `[n, h / fh, w / fw, fh fw c]`: blocks of positions become channels.
pub(crate) fn fold(x: Tensor<4>, [fh, fw]: [usize; 2]) -> Tensor<4> {
    let [n, h, w, c] = x.dims();
    x.reshape([n, h / fh, fh, w / fw, fw, c]).permute([0, 1, 3, 2, 4, 5]).reshape([
        n,
        h / fh,
        w / fw,
        fh * fw * c,
    ])
}

/// `x + conv1x1(silu(conv(norm(x))))`.
#[derive(Debug, Clone)]
pub struct ResBlock {
    /// Over the channels.
    pub norm: RmsNorm,
    /// Looks at the neighbours.
    pub wide: Conv,
    /// Back to the residual stream.
    pub narrow: Conv,
}

impl ResBlock {
    /// Random weights; the last convolution starts at a tenth, so a deep stack starts near identity.
    pub fn new(
        name: &str,
        channels: usize,
        kernel: [usize; 2],
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let both = [channels, channels];
        Self {
            norm: RmsNorm::new(&format!("{name}.norm"), channels, 1e-6, device),
            wide: Conv::new(
                &format!("{name}.wide"),
                both,
                ConvShape::same(kernel),
                1.4,
                rng,
                device,
            ),
            narrow: Conv::new(
                &format!("{name}.narrow"),
                both,
                ConvShape::same([1, 1]),
                0.1,
                rng,
                device,
            ),
        }
    }

    /// Same shape in and out.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [b, h, w, c] = x.dims();
        let flat = x.clone().reshape([b * h * w, c]);
        let y = self.wide.forward(self.norm.forward(flat).reshape([b, h, w, c]));
        let y = danlu_ops::silu(y.reshape([b * h * w, c])).reshape([b, h, w, c]);
        x + self.narrow.forward(y)
    }

    /// Every parameter.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let Self { norm, wide, narrow } = self;
        vec![&norm.weight, &wide.weight, &wide.bias, &narrow.weight, &narrow.bias]
    }

    /// Every parameter, to change.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let Self { norm, wide, narrow } = self;
        vec![
            &mut norm.weight,
            &mut wide.weight,
            &mut wide.bias,
            &mut narrow.weight,
            &mut narrow.bias,
        ]
    }
}
