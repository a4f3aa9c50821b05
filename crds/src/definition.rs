//! The `CustomResourceDefinition`, as it is installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::RegistryMirror;

/// The longest name a mirror may have, as its children's names are longer.
pub const MAX_NAME_LENGTH: i64 = 40;

/// Returns the CRD. The derived [`RegistryMirror::crd`] is incomplete: this function adds the rule for names and
/// removes `null` from the values of fields.
pub fn crd() -> CustomResourceDefinition {
    let mut crd = RegistryMirror::crd();
    for version in &mut crd.spec.versions {
        let root = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut());
        if let Some(root) = root {
            tidy(root);
            root.properties
                .get_or_insert_default()
                .insert("metadata".to_owned(), metadata());
        }
    }
    crd
}

/// Returns the CRD as YAML, with a header that names its source.
///
/// # Errors
/// None in practice: every value has a form in YAML.
pub fn yaml() -> Result<String, serde_saphyr::ser::Error> {
    Ok(format!(
        "# Generated from the types in crds/src; a test fails where they differ.\n{}",
        serde_saphyr::to_string(&crd())?
    ))
}

/// Returns the schema of the metadata. The API server rejects CEL rules about the name, so the schema constrains it:
/// DNS labels that start with a letter, as for Services.
fn metadata() -> JSONSchemaProps {
    let name = JSONSchemaProps {
        type_: Some("string".to_owned()),
        max_length: Some(MAX_NAME_LENGTH),
        pattern: Some("^[a-z]([-a-z0-9]*[a-z0-9])?$".to_owned()),
        ..JSONSchemaProps::default()
    };
    JSONSchemaProps {
        type_: Some("object".to_owned()),
        properties: Some([("name".to_owned(), name)].into()),
        ..JSONSchemaProps::default()
    }
}

/// Makes `null` no value of any field, and lines out of comments paragraphs.
fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    if let Some(description) = &mut schema.description {
        let paragraphs = description
            .split("\n\n")
            .map(|paragraph| paragraph.replace('\n', " "));
        *description = paragraphs.collect::<Vec<_>>().join("\n\n");
    }
    schema
        .properties
        .iter_mut()
        .flat_map(|properties| properties.values_mut())
        .for_each(tidy);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        tidy(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}
