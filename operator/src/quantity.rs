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

/// Returns whether the API server stores a quantity as another one: in any notation, and rounded up to thousandths, as it
/// rounds resources.
pub(crate) fn is_stored_as(desired: &str, live: &str) -> bool {
    let (Some(from), Some(to)) = (amount(desired), amount(live)) else {
        return false;
    };
    let rounded_up = to - from;
    is_same(desired, live) || (rounded_up > 0.0 && rounded_up < 0.001 * (1.0 - 1e-6))
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

    /// A quantity that the API server rounds is stored as the rounded one, and as no other.
    #[test_case("0.1", "100m" => true)]
    #[test_case("0.5", "500m" => true; "half a byte")]
    #[test_case("1e3", "1k" => true; "an exponent")]
    #[test_case("+.5", "500m" => true; "a sign and no digit before the point")]
    #[test_case("100u", "1m" => true; "micro")]
    #[test_case("0.1234", "124m" => true; "rounded up")]
    #[test_case("1.12345678Gi", "1206302532143m" => true; "a part of a byte")]
    #[test_case("0.1234", "123m" => false; "rounded down")]
    #[test_case("100m", "101m" => false; "a thousandth more")]
    #[test_case("101m", "100m" => false; "a thousandth less")]
    #[test_case("1Gi", "1073741825" => false; "a byte more than asked")]
    fn rounded_quantity_is_the_stored_one(desired: &str, live: &str) -> bool {
        is_stored_as(desired, live)
    }
}
