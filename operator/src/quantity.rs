//! Compares Kubernetes quantities as floating point numbers, so that every valid text is a number and no product
//! overflows.

use kube_quantity::ParsedQuantity;

/// Returns the value in base units (bytes, cores); `None` for an invalid quantity.
pub(crate) fn amount(text: &str) -> Option<f64> {
    let parsed = ParsedQuantity::try_from(text).ok()?;
    parsed.to_bytes_f64().filter(|amount| amount.is_finite())
}

/// Returns whether two quantities are equal in any notation: `1Gi` and `1024Mi`, `0.5` and `500m`.
pub(crate) fn is_same(one: &str, other: &str) -> bool {
    let (Some(one), Some(other)) = (amount(one), amount(other)) else {
        return false;
    };
    // The rounding error of a multiplication by 0.001.
    (one - other).abs() <= one.abs() * 4.0 * f64::EPSILON
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    /// Two quantities in different notations are equal.
    #[test_case("1Gi", "1024Mi" => true)]
    #[test_case("1.5Ti", "1536Gi" => true)]
    #[test_case("700m", "0.7" => true)]
    #[test_case("50Gi", "53687091201" => false; "a byte more")]
    #[test_case("1G", "1Gi" => false)]
    #[test_case("9999999999999999999999E", "1m" => false; "what no integer holds")]
    #[test_case("lots", "lots" => false; "what is none")]
    fn quantities_are_equal(one: &str, other: &str) -> bool {
        is_same(one, other)
    }
}
