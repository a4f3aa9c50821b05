//! The Kubernetes names of enum variants.

/// Gives enums whose variants are called as Kubernetes calls them that spelling.
macro_rules! kubernetes_names {
    ($($name:ident { $($variant:ident),* $(,)? })*) => {$(
        impl $name {
            /// Returns the name in the Kubernetes API.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)*
                }
            }
        }
    )*};
}

pub(crate) use kubernetes_names;
