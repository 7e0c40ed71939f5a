//! Quantities (`250m`, `64Mi`) as whole thousandths.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths, rounded up; what cannot be read counts as nothing.
pub(crate) fn milli(quantity: &Quantity) -> i128 {
    resources::quantity::Quantity::parse(&quantity.0).map_or(0, |q| i128::from(q.milli_value()))
}
