use super::{Experts, Linear, Mlp};
use crate::params::Parameter;
use burn::tensor::Tensor;

/// What mixes the channels of a layer.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "there are as many as layers")]
pub enum FeedForward {
    /// The same for every token.
    Dense(Mlp),
    /// A few of several for each token.
    Experts(Experts),
}

impl FeedForward {
    /// `[n, width]` to `[n, width]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Dense(mlp) => mlp.forward(x),
            Self::Experts(experts) => experts.forward(x).0,
        }
    }

    /// If every token has the same.
    pub fn dense(&self) -> Option<&Mlp> {
        match self {
            Self::Dense(mlp) => Some(mlp),
            Self::Experts(_) => None,
        }
    }

    /// If it is a mixture.
    pub fn experts(&self) -> Option<&Experts> {
        match self {
            Self::Dense(_) => None,
            Self::Experts(experts) => Some(experts),
        }
    }

    /// One, or every expert.
    fn each(&self) -> &[Mlp] {
        match self {
            Self::Dense(mlp) => std::slice::from_ref(mlp),
            Self::Experts(experts) => &experts.each,
        }
    }

    /// The projections, in file order: gate-up and down, of each expert if there are some.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.each().iter().flat_map(|m| [&m.gate_up, &m.down])
    }

    /// The router, if there is one, and the projections, to change.
    pub fn split_mut(&mut self) -> (Option<&mut Parameter>, impl Iterator<Item = &mut Linear>) {
        let (router, each) = match self {
            Self::Dense(mlp) => (None, std::slice::from_mut(mlp)),
            Self::Experts(experts) => (Some(&mut experts.router), &mut experts.each[..]),
        };
        (router, each.iter_mut().flat_map(|m| [&mut m.gate_up, &mut m.down]))
    }

    /// Every parameter, in file order; adapters are none.
    pub fn parameters(&self) -> Vec<&Parameter> {
        let router = self.experts().map(|e| &e.router);
        router.into_iter().chain(self.linears().flat_map(Linear::parameters)).collect()
    }

    /// The same, to change.
    pub fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let (router, linears) = self.split_mut();
        router.into_iter().chain(linears.flat_map(Linear::parameters_mut)).collect()
    }
}
